"""Runs that MLflow knows: whoever trained the same configuration on the same data has done this work already."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from infra.store import default_uri, runs, sqlite_path
from infra.tracking import TrackingError


@cache
def _finished(uri: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest finished run of each (configuration, data); none where there is no store."""
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return {}  # nothing has been recorded yet
    try:
        found = runs(uri)
    except TrackingError as error:
        print(f"pairstream: what MLflow holds is not known ({error}): it counts as not done", file=sys.stderr)
        return {}
    known = {}
    for run in reversed(found):  # newest first
        tags = run["tags"]
        if run["status"] == "FINISHED" and "pairstream.configuration" in tags:
            known[tags["pairstream.configuration"], tags.get("pairstream.data", "")] = run
    return known


def archived(configuration: str, fingerprint: str) -> dict[str, Any] | None:
    """The finished MLflow run of a configuration (`config.identity`) on data of this fingerprint."""
    return _finished(default_uri()).get((configuration, fingerprint))


def directory_of(run: dict[str, Any]) -> Path | None:
    """Its directory, where that is on this machine."""
    directory = Path(run["tags"].get("pairstream.directory", ""))
    return directory if (directory / "run.json").is_file() else None
