"""SLURM: an sbatch script, of which the head is rendered and the rest is infra/slurm/job.sh.

A template of our own rather than submitit, which pickles a Python function and requeues by calling it again: here the
job is a command line that anybody can read, run by hand and submit without us, and --resume is all that goes on.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from infra.errors import UserError, nearest
from jobs.submitting import LOG, Job, State
from jobs.submitting.checks import planned, seen_from_nodes
from jobs.submitting.files import ended, exit_code, follow_files
from jobs.submitting.site import Contained, seconds
from pipeline.settings import check as require

SCRIPT = "job.sh"
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
"""States of SLURM in which a job has not begun, or not again."""
PACE = 2.0
"""Seconds between two questions to SLURM's controller."""
FINAL = (0, UserError.code)
"""Exit codes after which no job is queued again."""
STATES = ("running", "queued", "failed", "preempted", "killed", "finished")
"""In the order in which one task's state is that of its array."""


@dataclass(frozen=True)
class Options(Contained):
    time: str = "1h"
    """Longest duration, such as 45m, 12h or 1d12h. What is not done by then saves, and is queued again."""
    array: int = 0
    """Spread a sweep over so many tasks of a job array: each is one process with one rank's cores and at most one GPU,
    and trains trials until none is left."""
    partition: str = ""
    """Partition; the cluster's default where not given."""
    account: str = ""
    """Account that is charged."""
    options: tuple[str, ...] = ()
    """More options of sbatch, each as --constraint=a100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.array >= 0, "--array must not be negative")
        require(
            seconds(self.time) > seconds(self.lead, "--lead"),
            f"--time {self.time} is not longer than --lead {self.lead}: the job would be told to save when it begins",
        )


def plan(inner: list[str], options: Options) -> Job:
    sees: Callable[[str], list[str]] = (lambda _: []) if options.image else seen_from_nodes
    if not (options.array and inner):
        return planned(inner, "slurm", options, sees)
    require(
        inner[0] == "sweep",
        f"--array spreads the trials of a sweep over a job array, and {inner[0]!r} is no sweep: leave --array away",
    )
    given = {word.partition("=")[0] for word in inner}
    words = [] if "--join" in given else ["--join"]
    words += [] if "--cpus" in given else ["--cpus", str(options.cpus)]
    job = planned([*inner, *words], "slurm", options, sees)
    from jobs.sweep import read

    total, warnings = read(list(job.command[1:])).plan.total, list(job.warnings)
    if options.array > total:
        warnings.append(f"--array {options.array}: the sweep has {total} trials, the other tasks find nothing to do")
    return replace(job, tasks=options.array, warnings=tuple(warnings))


def render(job: Job, options: Options) -> str:
    one = job.trains or job.tasks > 0  # a task is one process of a training, or of many that share a sweep
    head = {
        "job-name": job.name,
        "array": f"0-{job.tasks - 1}" if job.tasks else "",
        "output": job.directory / "%a" / LOG if job.tasks else job.directory / LOG,
        "open-mode": "append",
        "chdir": Path.cwd(),
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks,
        "cpus-per-task": options.cpus if one else options.cpus * options.per_node,
        "gpus-per-node": min(options.gpus, 1) if job.tasks else options.gpus,
        "mem": options.memory,
        "time": _minutes(seconds(options.time)),
        "signal": f"B:USR1@{seconds(options.lead)}",
        "partition": options.partition,
        "account": options.account,
    }
    lines = ["--requeue", *(f"--{name}={shlex.quote(str(value))}" for name, value in head.items() if value)]
    environment = {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": str(options.cpus)} if one else {})
    container = []
    if options.image:
        mounts = f"--container-mounts={','.join(options.mounts)}" if options.mounts else ""
        container = [f"--container-image={options.image}", mounts, f"--container-workdir={Path.cwd()}"]
    python = options.python or ("python" if options.image else sys.executable)
    start = [*filter(None, container), python, "-m", "jobs.submitting.process", "slurm"]
    record = shlex.quote(str(job.directory)) + ("/$SLURM_ARRAY_TASK_ID" if job.tasks else "")
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in [*lines, *options.options]),
            *(f"export {name}={shlex.quote(value)}" for name, value in (environment | options.environment).items()),
            f"record={record} restarts={options.restarts}",
            f'task=({shlex.join(start)} "$record" {shlex.join(job.command)})',
            (files("infra") / "slurm" / SCRIPT).read_text(),
        ]
    )


def check(job: Job, options: Options) -> None:
    if not shutil.which("sbatch"):
        raise UserError("SLURM is not installed here: there is no sbatch; submit from a login node, or see --dry-run")
    if options.partition:
        known = [name.rstrip("*") for name in _ask("sinfo", "--noheader", "--format=%P").split()]
        for name in options.partition.split(","):
            if name not in known:
                raise UserError(f"SLURM has no partition {name!r}" + nearest(name, known))


def submit(job: Job, options: Options, text: str) -> dict[str, Any]:
    script = job.directory / SCRIPT
    script.write_text(text)
    for place in _places(job.directory, job.tasks):
        place.mkdir(exist_ok=True)
        (place / LOG).touch()
    number = _ask("sbatch", "--parsable", str(script)).strip().partition(";")[0]
    return {"id": number} | ({"array": job.tasks} if job.tasks else {})


def state(record: dict[str, Any], directory: Path) -> State:
    """SLURM is asked first: what has written its exit code may be in the queue again. What has ended it forgets."""
    places = _places(directory, record.get("array", 0))
    try:
        said = _queued(record["id"])
    except UserError as error:
        if "Invalid job id" not in str(error) and any(exit_code(place) not in FINAL for place in places):
            return State("unknown")
        said = []
    found = dict(line.split() for line in said)  # of what is no array the index is N/A
    there = {index: State("queued" if word in WAITING else "running") for index, word in found.items()}
    if not record.get("array"):
        return next(iter(there.values()), None) or ended(directory)
    return _together([there.get(place.name) or ended(place) for place in places])


def _queued(number: str) -> list[str]:
    """The tasks of a job that are in the queue, "INDEX STATE" each. A controller that has much to do is asked again."""
    squeue = ("squeue", "--noheader", "--array", "--jobs", number, "--format=%K %T")
    for wait in (1.0, PACE):
        try:
            return _ask(*squeue).splitlines()
        except Refused as error:
            if "Invalid job id" in str(error):
                raise
            time.sleep(wait)
    return _ask(*squeue).splitlines()


def logs(record: dict[str, Any], directory: Path, follow: bool) -> None:
    files = [place / LOG for place in _places(directory, record.get("array", 0))]
    follow_files(files, lambda: follow and state(record, directory).alive, PACE)


def cancel(record: dict[str, Any], directory: Path) -> None:
    """TERM to the shells of the job, which have every rank save; what has not begun leaves the queue."""
    tasks = state(record, directory)
    if tasks.name == "queued" or tasks.tasks.get("queued"):  # first: it would begin where another ends
        _ask("scancel", *(["--state=PENDING"] if tasks.tasks else []), record["id"])
    if tasks.name != "queued":
        _ask("scancel", "--batch", "--signal=TERM", record["id"])


def _places(directory: Path, tasks: int) -> list[Path]:
    """Where a job leaves its log and its exit code: each task of an array has a directory of its own."""
    return [directory / str(number) for number in range(tasks)] if tasks else [directory]


def _together(tasks: list[State]) -> State:
    """What has become of a job array: it is at work while a task is, and has ended as the worst of them."""
    counts = {name: count for name in STATES if (count := sum(task.name == name for task in tasks))}
    name = next(iter(counts))
    code = next((task.code for task in tasks if task.name == name), None)
    times = [task.ended for task in tasks if task.ended is not None]
    return State(name, code, max(times, default=None), counts)


class Refused(UserError):
    """A command of SLURM has complained, which another time it may not."""


def _ask(*command: str) -> str:
    """What a command of SLURM prints. Raises UserError with what it complained of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    except FileNotFoundError:
        raise UserError(f"SLURM is not installed here: there is no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} has not answered for 60 s: is SLURM's controller up?") from None
    if done.returncode:
        raise Refused(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _minutes(duration: int) -> str:
    """Seconds as SLURM's days-hours:minutes:seconds."""
    minutes, rest = divmod(duration, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}"
