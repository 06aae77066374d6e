"""pairstream submit local [--dry-run] [--json] -- JOB [OPTIONS]     e.g. pairstream submit local -- train digits
pairstream submit status [JOB] | logs JOB [--follow] | cancel JOB [--timeout 60]     each with [--json]

Starts any other job in the background of this machine, where it outlives the shell, and looks after it. A submitted
job is a directory: runs/jobs/ID holds job.json (command, process), log.txt and, once it has ended, exit (its code).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import tyro

from infra.errors import UserError, nearest
from infra.preemption import REQUEUE
from jobs import cli
from jobs.arguments import RUNS, closing_json, parse, split_name
from pipeline.config import check
from pipeline.recipes import RECIPES, SWEEPS, recipe, sweep

RECORDS = RUNS / "jobs"
HINTS = {
    "preempted": "told to stop, and saved: submit the same command with --resume to continue",
    "failed": "the log's end says why",
    "killed": "by a signal (kill -9, out of memory) or a reboot: training goes on from its last checkpoint with --resume",
    "unknown": "it was started on another machine: ask there",
}
"""What to do about a job that is neither running nor finished."""


@dataclass(frozen=True)
class Local:
    dry_run: bool = False
    """Show the command and the paths; start nothing."""
    json: bool = False
    """Print one JSON object as the last line. (After -- it belongs to the job.)"""


@dataclass(frozen=True)
class Status:
    job: tyro.conf.Positional[str] = ""
    """The job's id."""
    json: bool = False
    """Print one JSON object as the last line."""


@dataclass(frozen=True)
class Logs(Status):
    follow: bool = False
    """Go on until the job ends."""


@dataclass(frozen=True)
class Cancel(Status):
    timeout: float = 60.0
    """Seconds to wait for the job to save and end."""


def main(arguments: list[str]) -> int:
    actions = {"local": local, "status": status, "logs": logs, "cancel": cancel}
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{__doc__}\npairstream submit {'|'.join(actions)} --help lists the options")
        return 0
    name, rest = split_name("submit", "target or command", arguments, list(actions))
    check(name not in cli.JOBS, f"name a target before the job: pairstream submit local -- {shlex.join(arguments)}")
    check(name in actions, f"submit knows no target or command {name!r}" + nearest(name, list(actions)))
    return actions[name](rest)


def local(arguments: list[str]) -> int:
    """Start a job in the background of this machine."""
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    options = parse("submit local", Local, arguments[:dashes], about=__doc__)
    inner = arguments[dashes + 1 :]
    directory = RECORDS / _new_name(inner)
    command = [sys.executable, "-m", "jobs.submit", str(directory), *inner]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    job: dict[str, Any] = {"command": inner, "pid": None, "host": socket.gethostname(), "submitted": now}
    if not options.dry_run:
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be made ({error.strerror}); submit from elsewhere") from None
        with (directory / "log.txt").open("wb") as log:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            job["pid"] = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **quiet).pid
        job["started"] = _process(job["pid"])[1]
        _write(directory / "job.json", json.dumps(job, indent=2) + "\n")
    print(f"{'would start' if options.dry_run else 'started'} {directory.name}: {shlex.join(command)}")
    print(f"log:    {directory / 'log.txt'}")
    for about, action in {"look:": "status", "follow:": "logs --follow", "stop:": "cancel"}.items():
        print(f"{about:<7} pairstream submit {action} {directory.name}")
    if options.json:
        closing_json({"job": directory.name, **job, "log": directory / "log.txt", "dry_run": options.dry_run})
    return 0


def status(arguments: list[str]) -> int:
    """Show one job, or all of them."""
    options = parse("submit status", Status, arguments, about=__doc__)
    found = [_look(path) for path in ([_find(options.job)] if options.job else _directories())]
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "submitted", "for", "command")
    for job in found:
        state = job["state"] + (f" ({job['code']})" if job["code"] else "")
        table.add_row(job["job"], state, job["submitted"], str(timedelta(seconds=job["seconds"])), job["command"])
    Console(width=max(120, Console().width)).print(table)
    if options.job:
        print(f"log: {found[0]['log']}\n{HINTS.get(found[0]['state'], '')}".rstrip())
    if options.json:
        closing_json(found[0] if options.job else {"jobs": found})
    return 0


def logs(arguments: list[str]) -> int:
    """Print what a job has said."""
    options = parse("submit logs", Logs, arguments, about=__doc__)
    directory = _find(options.job)
    with (directory / "log.txt").open("rb") as log:
        running = True
        while running:  # asked before reading, so that the last words are read too
            running = options.follow and _look(directory)["state"] == "running"
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
            time.sleep(0.2 if running else 0)
    if options.json:
        print()  # the log may end within a line
        closing_json(_look(directory))
    return 0


def cancel(arguments: list[str]) -> int:
    """Ask a job to save and end. Returns 1 where it has not ended in time."""
    options = parse("submit cancel", Cancel, arguments, about=__doc__)
    directory = _find(options.job)
    job, deadline = _look(directory), time.monotonic() + options.timeout
    check(job["state"] != "unknown", f"{job['job']} was started on {job['host']}: cancel it there")
    words = "had ended already"
    if job["state"] == "running":
        words = "ended"
        try:
            os.kill(job["pid"], signal.SIGTERM)  # this number's process is the job: _look compares start times
        except ProcessLookupError:
            pass
        except PermissionError:
            raise UserError(f"{job['job']} is another user's, who alone can cancel it") from None
        while (job := _look(directory))["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.1)
    if job["state"] == "running":
        words = f"was told to stop, and has not yet ended after {options.timeout:g} s"
    print(f"{job['job']} {words}: {job['state']}. {HINTS.get(job['state'], '')}".rstrip())
    if options.json:
        closing_json(job)
    return 1 if job["state"] == "running" else 0


def _new_name(inner: list[str]) -> str:
    """A job's id like train-digits-20260131-235959 that is not taken. Raises UserError where the job cannot start."""
    check(bool(inner), "submit needs the job after --, e.g. pairstream submit local -- train digits")
    name, rest = inner[0], inner[1:]
    check(name in cli.JOBS, f"no job {name!r}" + nearest(name, list(cli.JOBS)))
    check(name != "submit", "submit cannot submit itself; name another job after --")
    if name == "train":
        recipe(split_name(name, "recipe", rest, list(RECIPES))[0])
    if name == "sweep":
        sweep(split_name(name, "recipe", rest, list(SWEEPS))[0])
    words = [name, *(Path(word).name for word in rest[:1] if not word.startswith("-"))]
    free = re.sub(r"[^\w.-]+", "-", "-".join(words))[:80] + f"-{datetime.now():%Y%m%d-%H%M%S}"
    while (RECORDS / free).exists():
        free += "b"
    return free


def _directories() -> list[Path]:
    """The records of all jobs, the newest first."""
    files = sorted(RECORDS.glob("*/job.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in files]


def _find(name: str) -> Path:
    """The record of a job. Raises UserError with the nearest names."""
    known = [path.name for path in _directories()]
    check(bool(known), f"there is no submitted job under {RECORDS}/ here")
    check(bool(name), f"name a job: the latest here are {', '.join(known[:5])}")
    check(name in known, f"no submitted job {name!r}" + nearest(name, known[:20]))
    return RECORDS / name


def _look(directory: Path) -> dict[str, Any]:
    """A job and its state: running, finished, preempted, failed, killed; unknown where it runs on another machine."""
    job = json.loads((directory / "job.json").read_text())
    here = job["host"] == socket.gethostname()
    living = here and _process(job["pid"]) == (True, job["started"])  # asked first: `exit` is written before the end
    log, end = directory / "log.txt", directory / "exit"
    code = int(end.read_text()) if end.exists() and not living else None
    state = {0: "finished", REQUEUE: "preempted", None: "killed" if here else "unknown"}.get(code, "failed")
    state = "running" if living else "killed" if (code or 0) > 128 else state
    until = time.time() if living else (end if end.exists() else log).stat().st_mtime
    seconds = max(0, round(until - datetime.fromisoformat(job["submitted"]).timestamp()))
    command = shlex.join(["pairstream", *job["command"]])
    return {"job": directory.name, "state": state, "code": code, **job, "command": command, "seconds": seconds, "log": log}


def _process(pid: int) -> tuple[bool, str]:
    """Whether a process lives, and when it began as "boot id:clock ticks": numbers are used again, these are not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False, ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return fields[0] not in (b"Z", b"X"), f"{boot}:{fields[19].decode()}"


def _write(path: Path, text: str) -> None:
    """Write a file that nobody can read half of."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _run(directory: Path, inner: list[str]) -> int:
    """What the background process does: the job itself, then its exit code into a file."""
    code = 1
    try:
        code = cli.main(inner)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        _write(directory / "exit", f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[1]), sys.argv[2:]))
