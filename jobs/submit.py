"""pairstream submit local|slurm|ray|kubernetes [--dry-run] [OPTIONS] -- JOB …     e.g. submit local -- train digits
pairstream submit status [JOB] | logs JOB [--follow] | cancel JOB [--timeout 60]     each with [--json]

Starts any other job in the background of this machine or on a cluster, and looks after it. --dry-run shows the script
or manifest. A site's defaults (partition, image, nodes, time …) stand in pairstream.toml, or where PAIRSTREAM_SITE is.
On a cluster a run that is preempted, or whose time ends, saves, is queued again, and goes on as the same run. With
submit slurm --array N a sweep is spread over the tasks of a job array, which need no Ray.
A submitted job is a directory: runs/jobs/ID holds job.json (command, where it went), what was submitted, and its log.
"""

from __future__ import annotations

import json
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import tyro

from infra.disk import write_whole
from infra.errors import UserError, nearest
from jobs import cli
from jobs.arguments import closing_json, parse, split_name
from jobs.submitted import HINTS, RECORDS, alive, directories, find, look, record_of
from jobs.submitting import BACKENDS, RECORD, backend, log_of
from jobs.submitting.site import options_of
from pipeline.settings import check


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
    actions = {"status": status, "logs": logs, "cancel": cancel}
    known = [*BACKENDS, *actions]
    if arguments[:1] in (["-h"], ["--help"]):
        targets = "\n".join(f"  {name:<11} {about}" for name, about in BACKENDS.items())
        print(f"{__doc__}\n{targets}\n\npairstream submit {'|'.join(known)} --help lists the options")
        return 0
    name, rest = split_name("submit", "target or command", arguments, known)
    check(name not in cli.JOBS, f"name a target before the job: pairstream submit local -- {shlex.join(arguments)}")
    check(name in known, f"submit knows no target or command {name!r}" + nearest(name, known))
    return start(name, rest) if name in BACKENDS else actions[name](rest)


def start(target: str, arguments: list[str]) -> int:
    """Render a job, show or check it, and send it off."""
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    before, inner = arguments[:dashes], arguments[dashes + 1 :]
    place = backend(target)
    if before and not before[0].startswith("-"):
        raise UserError(f"{before[0]!r} stands before --; the job comes after: submit {target} [OPTIONS] -- JOB …")
    options = options_of(target, place.Options, before, str(__doc__))
    job = place.plan(inner, options)
    text = place.render(job, options)
    for warning in job.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    record: dict[str, Any] = {
        "backend": target, "id": None, "command": list(job.command), "host": socket.gethostname(), "submitted": now,
    }  # fmt: skip
    directory = RECORDS / job.name
    if not options.dry_run:
        place.check(job, options)
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be made ({error.strerror}); submit from elsewhere") from None
        record |= place.submit(job, options, text)
        write_whole(directory / RECORD, json.dumps(record, indent=2) + "\n")
    if options.dry_run:
        print(text)
    print(f"{'would start' if options.dry_run else 'started'} {job.name} {BACKENDS[target]}")
    for about, action in {"look:": "status", "follow:": "logs --follow", "stop:": "cancel"}.items():
        print(f"{about:<7} pairstream submit {action} {job.name}")
    if options.json:
        closing_json({
            "job": job.name, **record, "log": log_of(directory, job.tasks), "submits": text, "warnings": job.warnings,
            "dry_run": options.dry_run,
        })  # fmt: skip
    return 0


def status(arguments: list[str]) -> int:
    """Show one job, or all of them."""
    options = parse("submit status", Status, arguments, about=__doc__)
    found = [look(path) for path in ([find(options.job)] if options.job else directories())]
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "where", "submitted", "for", "command")
    table.columns[0].no_wrap = True
    for job in found:
        tasks = ", ".join(f"{count} {name}" for name, count in job.get("tasks", {}).items())
        state = job["state"] + (f" ({tasks or job['code']})" if tasks or job["code"] else "")
        command = shlex.join(["pairstream", *job["command"]]).replace("[", r"\[")
        table.add_row(
            job["job"], state, job["backend"], job["submitted"], str(timedelta(seconds=job["seconds"])), command
        )
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
    record = record_of(directory)
    backend(record["backend"]).logs(record, directory, options.follow)
    if options.json:
        print()  # the log may end within a line
        closing_json(look(directory))
    return 0


def cancel(arguments: list[str]) -> int:
    """Ask a job to save and end. Returns 1 where it has not ended in time."""
    options = parse("submit cancel", Cancel, arguments, about=__doc__)
    directory = find(options.job)
    record, deadline = record_of(directory), time.monotonic() + options.timeout
    state, words = backend(record["backend"]).state(record, directory), "had ended already"
    if state.alive or state.name == "unknown":
        words = "ended"
        backend(record["backend"]).cancel(record, directory)
        while alive(directory) and time.monotonic() < deadline:
            time.sleep(0.5)
    job = look(directory)
    if alive(directory):
        words = f"was told to stop, and has not yet ended after {options.timeout:g} s"
    print(f"{job['job']} {words}: {job['state']}. {HINTS.get(job['state'], '')}".rstrip())
    if options.json:
        closing_json(job)
    return 1 if alive(directory) else 0
