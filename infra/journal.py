"""A run's journal: append-only JSON lines, the truth about its parameters, data, points, files and status."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import nearest

JOURNAL = "journal.jsonl"
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
NEVER = (-1, math.nan)
"""Step and value of the last point of a metric that has none."""


class Journal:
    """Append-only JSON-lines file of one run, DIRECTORY/journal.jsonl; one writing process at a time.

    Opening reads the journal once (about 2.5 s per 100 MB), cuts off a last line torn by kill -9, and
    remembers what it holds. Methods raise OSError where the disk does, and leave the journal whole.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(directory / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._last: dict[str, tuple[int, float | str]] = {}  # last step per metric, and its value
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._datasets: list[dict[str, Any]] = []
        with open(directory / JOURNAL, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(line))
                self._remember(parse(line))

    def params(self, values: Mapping[str, object]) -> None:
        """Hyper-parameters. The same again is ignored; a changed one becomes the tag `changed.NAME`, since
        MLflow never changes a parameter."""
        given = {name: str(value) for name, value in values.items()}
        if new := {name: value for name, value in given.items() if name not in self._params}:
            self._append({"params": new})
        known = {name: self._tags.get(f"changed.{name}", self._params[name]) for name in given}
        self.tags({f"changed.{name}": value for name, value in given.items() if value != known[name]})

    def began(self, name: str) -> str | None:
        """A parameter as the run began with it."""
        return self._params.get(name)

    def reached(self, name: str) -> int:
        """The last step that a metric has a point of; -1 without any."""
        return self._last.get(name, NEVER)[0]

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags; the last value counts, and the same again is ignored."""
        if new := {name: str(value) for name, value in values.items() if self._tags.get(name) != str(value)}:
            self._append({"tags": new})

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, object]) -> None:
        """Data that the run is trained on: by `digest` it is known, `profile` tells what it holds. The same again is
        ignored."""
        new = {"name": name, "digest": digest, "source": source, "profile": dict(profile)}
        if new not in self._datasets:
            self._append({"dataset": new})

    def metrics(self, step: int, values: Mapping[str, float], again: bool = False) -> None:
        """Points of one step. A name's point at or before its last step is ignored: a resumed run replays the
        steps since its checkpoint, and they are the same bit for bit. `again` says that they need not be, as those of a
        second evaluation: another value at the last step takes its place."""
        told = {name: _encode(float(value)) for name, value in values.items()}
        last = {name: self._last.get(name, NEVER) for name in told}
        if new := {
            name: value
            for name, value in told.items()
            if step > last[name][0] or (again and step == last[name][0] and value != last[name][1])
        }:
            self._append({"step": int(step), "metrics": new})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or directory to upload to `folder` of the run; what it holds at delivery counts."""
        path, home = Path(path).resolve(), self.directory.resolve()
        path = path.relative_to(home) if path.is_relative_to(home) else path  # survives a move of the directory
        self._append({"artifact": str(path), "folder": folder})

    def status(self, status: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED; ValueError for anything else."""
        if status not in STATUSES:
            raise ValueError(f"no run can be {status!r}{nearest(status, list(STATUSES))}")
        self._append({"status": status})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _append(self, record: dict[str, Any]) -> None:
        record = {"t": time.time_ns() // 1_000_000, **record}  # ms since the epoch
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        written = os.write(self._fd, line)  # one call: a kill leaves at most a torn last line
        if written != len(line):  # the disk is full: take the torn line back, so that the next starts clean
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(f"no room for a line in {self.directory / JOURNAL}")
        self._remember(record)

    def _remember(self, record: dict[str, Any] | None) -> None:
        if record:
            self._last.update({name: (record["step"], value) for name, value in record.get("metrics", {}).items()})
            self._params.update(record.get("params", ()))
            self._tags.update(record.get("tags", ()))
            self._datasets += [record["dataset"]] if "dataset" in record else []


def points(directory: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, {name: value}) of every line of metrics in `directory`'s journal, also of a run at work."""
    with open(directory / JOURNAL, "rb") as lines:
        for line in lines:
            record = parse(line)
            if record and "metrics" in record:
                yield record["step"], {name: float(value) for name, value in record["metrics"].items()}


def _encode(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)  # JSON has no NaN; float("nan") reads it back


def parse(line: bytes) -> dict[str, Any] | None:
    """A line's record; None for a line that is torn or not ours."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and line.endswith(b"\n") else None
