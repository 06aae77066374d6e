"""The background of this machine: a session of its own, which outlives the shell."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.errors import UserError
from jobs.submitted import RECORDS, free_name
from jobs.submitting import EXIT, LOG, Job, State
from jobs.submitting.checks import named
from jobs.submitting.files import ended, follow_files
from jobs.submitting.site import Asked as Options


def plan(inner: list[str], options: Options) -> Job:
    named(inner, "local")
    name = free_name(inner)
    return Job(name, RECORDS.absolute() / name, tuple(inner))


def render(job: Job, options: Options) -> str:
    return shlex.join(_command(job))


def check(job: Job, options: Options) -> None:
    """This machine takes everything."""


def submit(job: Job, options: Options, text: str) -> dict[str, Any]:
    with (job.directory / LOG).open("wb") as file:
        pid = subprocess.Popen(
            _command(job), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ).pid  # fmt: skip
    return {"id": pid, "started": process(pid)[1]}


def state(record: dict[str, Any], directory: Path) -> State:
    """Unknown where the job was started on another machine and has left no exit code."""
    here = record["host"] == socket.gethostname()
    if here and process(record["id"]) == (True, record["started"]):  # asked first: the code is written before the end
        return State("running")
    if not here and not (directory / EXIT).exists():
        return State("unknown", None, (directory / LOG).stat().st_mtime)
    return ended(directory)


def logs(record: dict[str, Any], directory: Path, follow: bool) -> None:
    follow_files([directory / LOG], lambda: follow and state(record, directory).alive)


def cancel(record: dict[str, Any], directory: Path) -> None:
    if state(record, directory).name == "unknown":
        raise UserError(f"{directory.name} was started on {record['host']}: cancel it there")
    try:
        os.kill(record["id"], signal.SIGTERM)  # this number's process is the job: `state` compares start times
    except ProcessLookupError:
        pass
    except PermissionError:
        raise UserError(f"{directory.name} is another user's, who alone can cancel it") from None


def process(pid: int) -> tuple[bool, str]:
    """Whether a process lives, and when it began as "boot id:clock ticks": numbers are used again, these are not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False, ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return fields[0] not in (b"Z", b"X"), f"{boot}:{fields[19].decode()}"


def _command(job: Job) -> list[str]:
    return [sys.executable, "-m", "jobs.submitting.process", "local", str(job.directory), *job.command]
