"""Submitted jobs: each is a directory runs/jobs/ID, of which job.json says where it went."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.errors import nearest
from jobs.arguments import RUNS
from jobs.submitting import RECORD, backend, log_of
from pipeline.settings import check

RECORDS = RUNS / "jobs"
HINTS = {
    "preempted": "told to stop, and saved: submit the same command with --resume to continue",
    "failed": "the log's end says why",
    "killed": "by a signal (kill -9, out of memory), its scheduler or a reboot: --resume continues from the last "
    "checkpoint",
    "unknown": "it was started on another machine, or its cluster does not answer: ask there",
}
"""What to do about a job that is neither running nor finished."""


def directories() -> list[Path]:
    """The directories of all jobs, the newest first."""
    files = sorted(RECORDS.glob(f"*/{RECORD}"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in files]


def find(name: str) -> Path:
    """The directory of a job. Raises UserError with the nearest names."""
    known = [path.name for path in directories()]
    check(bool(known), f"there is no submitted job under {RECORDS}/ here")
    check(bool(name), f"name a job: the latest here are {', '.join(known[:5])}")
    check(name in known, f"no submitted job {name!r}" + nearest(name, known[:20]))
    return RECORDS / name


def record_of(directory: Path) -> dict[str, Any]:
    """What job.json says."""
    record: dict[str, Any] = {"backend": "local"} | json.loads((directory / RECORD).read_text())
    return record


def look(directory: Path) -> dict[str, Any]:
    """A job and its state: queued, running, finished, preempted, failed, killed; unknown where nobody can tell.

    The state is asked for and stored nowhere, so that no kill -9 can leave a stale one behind.
    """
    job = record_of(directory)
    state = backend(job["backend"]).state(job, directory)
    until = time.time() if state.alive or state.ended is None else state.ended
    seconds = max(0, round(until - datetime.fromisoformat(job["submitted"]).timestamp()))
    tasks = {"tasks": dict(state.tasks)} if state.tasks else {}
    return {
        "job": directory.name, "state": state.name, "code": state.code, **job, **tasks, "seconds": seconds,
        "log": log_of(directory, job.get("array", 0)),
    }  # fmt: skip


def alive(directory: Path) -> bool:
    """Whether the job has not ended yet."""
    job = record_of(directory)
    return backend(job["backend"]).state(job, directory).alive


def free_name(inner: list[str]) -> str:
    """An id like train-digits-20260131-235959 that no job has."""
    words = [inner[0], *(Path(word).name for word in inner[1:2] if not word.startswith("-"))]
    free = re.sub(r"[^\w.-]+", "-", "-".join(words))[:80] + f"-{datetime.now():%Y%m%d-%H%M%S}"
    while (RECORDS / free).exists():
        free += "b"
    return free
