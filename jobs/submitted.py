"""A submitted job: its directory runs/jobs/ID, its state, and the process that it is.

python -m jobs.submitted DIR JOB [OPTIONS] is that process: the job itself, which leaves its exit code in DIR/exit.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.disk import write_whole
from infra.errors import nearest
from infra.preemption import REQUEUE
from jobs import cli
from jobs.arguments import RUNS
from pipeline.settings import check

RECORDS = RUNS / "jobs"
RECORD, LOG, EXIT = "job.json", "log.txt", "exit"
HINTS = {
    "preempted": "told to stop, and saved: submit the same command with --resume to continue",
    "failed": "the log's end says why",
    "killed": "by a signal (kill -9, out of memory) or a reboot: --resume continues from the last checkpoint",
    "unknown": "it was started on another machine: ask there",
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


def look(directory: Path) -> dict[str, Any]:
    """A job and its state: running, finished, preempted, failed, killed; unknown where it runs on another machine.

    The state is worked out and stored nowhere, so that no kill -9 can leave a stale one behind.
    """
    job = json.loads((directory / RECORD).read_text())
    here = job["host"] == socket.gethostname()
    living = here and process(job["pid"]) == (True, job["started"])  # asked first: EXIT is written before the end
    log, end = directory / LOG, directory / EXIT
    code = int(end.read_text()) if end.exists() and not living else None
    state = {0: "finished", REQUEUE: "preempted", None: "killed" if here else "unknown"}.get(code, "failed")
    state = "running" if living else "killed" if 128 < (code or 0) < 255 else state
    until = time.time() if living else (end if end.exists() else log).stat().st_mtime
    seconds = max(0, round(until - datetime.fromisoformat(job["submitted"]).timestamp()))
    return {"job": directory.name, "state": state, "code": code, **job, "seconds": seconds, "log": log}


def process(pid: int) -> tuple[bool, str]:
    """Whether a process lives, and when it began as "boot id:clock ticks": numbers are used again, these are not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False, ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return fields[0] not in (b"Z", b"X"), f"{boot}:{fields[19].decode()}"


def run(directory: Path, inner: list[str]) -> int:
    """Run the job in this process, then write its exit code. A kill -9 takes both, and no code is left."""
    code = 1
    try:
        code = cli.main(inner)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        write_whole(directory / EXIT, f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]).absolute(), sys.argv[2:]))
