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

from infra.disk import write_whole
from infra.errors import UserError, nearest
from jobs import cli
from jobs.arguments import closing_json, early_options, parse, split_name
from jobs.submitted import HINTS, LOG, RECORD, RECORDS, directories, find, look, process
from pipeline.recipes import OF_DATA, RECIPES, recipe, sweepable
from pipeline.settings import check


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
    inner = arguments[dashes + 1 :]
    for word in arguments[:dashes]:
        check(word.startswith("-"), f"{word!r} stands before --; the job comes after: submit local [OPTIONS] -- JOB …")
    options = parse("submit local", Local, arguments[:dashes], about=__doc__)
    directory = RECORDS / _new_name(inner)
    log = directory / LOG
    command = [sys.executable, "-m", "jobs.submitted", str(directory), *inner]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    job: dict[str, Any] = {"command": inner, "pid": None, "host": socket.gethostname(), "submitted": now}
    if not options.dry_run:
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be made ({error.strerror}); submit from elsewhere") from None
        with log.open("wb") as file:
            job["pid"] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            ).pid  # fmt: skip
        job["started"] = process(job["pid"])[1]
        write_whole(directory / RECORD, json.dumps(job, indent=2) + "\n")
    print(f"{'would start' if options.dry_run else 'started'} {directory.name}: {shlex.join(command)}")
    print(f"log:    {log}")
    for about, action in {"look:": "status", "follow:": "logs --follow", "stop:": "cancel"}.items():
        print(f"{about:<7} pairstream submit {action} {directory.name}")
    if options.json:
        closing_json({"job": directory.name, **job, "log": log, "dry_run": options.dry_run})
    return 0


def status(arguments: list[str]) -> int:
    """Show one job, or all of them."""
    options = parse("submit status", Status, arguments, about=__doc__)
    found = [look(path) for path in ([find(options.job)] if options.job else directories())]
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "submitted", "for", "command")
    for job in found:
        state = job["state"] + (f" ({job['code']})" if job["code"] else "")
        command = shlex.join(["pairstream", *job["command"]]).replace("[", r"\[")
        table.add_row(job["job"], state, job["submitted"], str(timedelta(seconds=job["seconds"])), command)
    Console(width=max(120, Console().width)).print(table)
    if options.job:
        print(f"log: {found[0]['log']}\n{HINTS.get(found[0]['state'], '')}".rstrip())
    if options.json:
        closing_json(found[0] if options.job else {"jobs": found})
    return 0


def logs(arguments: list[str]) -> int:
    """Print what a job has said."""
    options = parse("submit logs", Logs, arguments, about=__doc__)
    directory = find(options.job)
    with (directory / LOG).open("rb") as log:
        running = True
        while running:  # asked before reading, so that the last words are read too
            running = options.follow and look(directory)["state"] == "running"
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
            time.sleep(0.2 if running else 0)
    if options.json:
        print()  # the log may end within a line
        closing_json(look(directory))
    return 0


def cancel(arguments: list[str]) -> int:
    """Ask a job to save and end. Returns 1 where it has not ended in time."""
    options = parse("submit cancel", Cancel, arguments, about=__doc__)
    directory = find(options.job)
    job, deadline = look(directory), time.monotonic() + options.timeout
    check(job["state"] != "unknown", f"{job['job']} was started on {job['host']}: cancel it there")
    words = "had ended already"
    if job["state"] == "running":
        words = "ended"
        try:
            os.kill(job["pid"], signal.SIGTERM)  # this number's process is the job: `look` compares start times
        except ProcessLookupError:
            pass
        except PermissionError:
            raise UserError(f"{job['job']} is another user's, who alone can cancel it") from None
        while (job := look(directory))["state"] == "running" and time.monotonic() < deadline:
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
        early = early_options(rest)
        if not (early.resume or early.source):  # a run of its own has all that it needs
            recipe(split_name(name, "recipe", rest, [*RECIPES, *OF_DATA])[0], early.data)
    if name == "sweep":
        recipe(split_name(name, "recipe", rest, sweepable())[0], early_options(rest).data)
    words = [name, *(Path(word).name for word in rest[:1] if not word.startswith("-"))]
    free = re.sub(r"[^\w.-]+", "-", "-".join(words))[:80] + f"-{datetime.now():%Y%m%d-%H%M%S}"
    while (RECORDS / free).exists():
        free += "b"
    return free
