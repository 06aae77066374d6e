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
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from infra.errors import UserError, nearest
from jobs.submitting import LOG, Job, State
from jobs.submitting.checks import planned, seen_from_nodes
from jobs.submitting.files import ended, exit_code, follow_file
from jobs.submitting.site import Contained, seconds
from pipeline.settings import check as require

SCRIPT = "job.sh"
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
"""States of SLURM in which a job has not begun, or not again."""
FINAL = (0, UserError.code)
"""Exit codes after which no job is queued again."""


@dataclass(frozen=True)
class Options(Contained):
    time: str = "1h"
    """Longest duration, such as 45m, 12h or 1d12h. What is not done by then saves, and is queued again."""
    partition: str = ""
    """Partition; the cluster's default where not given."""
    account: str = ""
    """Account that is charged."""
    options: tuple[str, ...] = ()
    """More options of sbatch, each as --constraint=a100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            seconds(self.time) > seconds(self.lead, "--lead"),
            f"--time {self.time} is not longer than --lead {self.lead}: the job would be told to save when it begins",
        )


def plan(inner: list[str], options: Options) -> Job:
    return planned(inner, "slurm", options, (lambda _: []) if options.image else seen_from_nodes)


def render(job: Job, options: Options) -> str:
    head = {
        "job-name": job.name,
        "output": job.directory / LOG,
        "open-mode": "append",
        "chdir": Path.cwd(),
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks,
        "cpus-per-task": options.cpus if job.trains else options.cpus * options.per_node,
        "gpus-per-node": options.gpus,
        "mem": options.memory,
        "time": _minutes(seconds(options.time)),
        "signal": f"B:USR1@{seconds(options.lead)}",
        "partition": options.partition,
        "account": options.account,
    }
    lines = ["--requeue", *(f"--{name}={shlex.quote(str(value))}" for name, value in head.items() if value)]
    environment = {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": str(options.cpus)} if job.trains else {})
    container = []
    if options.image:
        mounts = f"--container-mounts={','.join(options.mounts)}" if options.mounts else ""
        container = [f"--container-image={options.image}", mounts, f"--container-workdir={Path.cwd()}"]
    python = options.python or ("python" if options.image else sys.executable)
    task = [
        *filter(None, container),
        python,
        "-m",
        "jobs.submitting.process",
        "slurm",
        str(job.directory),
        *job.command,
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in [*lines, *options.options]),
            *(f"export {name}={shlex.quote(value)}" for name, value in (environment | options.environment).items()),
            f"record={shlex.quote(str(job.directory))} restarts={options.restarts}",
            f"task=({shlex.join(task)})",
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
    (job.directory / LOG).touch()
    return {"id": _ask("sbatch", "--parsable", str(script)).strip().partition(";")[0]}


def state(record: dict[str, Any], directory: Path) -> State:
    """SLURM is asked first: what has written its exit code may be in the queue again. What has ended it forgets."""
    try:
        said = _ask("squeue", "--noheader", "--jobs", record["id"], "--format=%T").strip()
    except UserError as error:
        if "Invalid job id" not in str(error) and exit_code(directory) not in FINAL:
            return State("unknown")
        said = ""
    if not said:
        return ended(directory)
    return State("queued" if said in WAITING else "running")


def logs(record: dict[str, Any], directory: Path, follow: bool) -> None:
    follow_file(directory / LOG, lambda: follow and state(record, directory).alive)


def cancel(record: dict[str, Any], directory: Path) -> None:
    """TERM to the job's shell, which has every rank save; what has not begun leaves the queue."""
    if state(record, directory).name == "queued":
        _ask("scancel", record["id"])
    else:
        _ask("scancel", "--batch", "--signal=TERM", record["id"])


def _ask(*command: str) -> str:
    """What a command of SLURM prints. Raises UserError with what it complained of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    except FileNotFoundError:
        raise UserError(f"SLURM is not installed here: there is no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} has not answered for 60 s: is SLURM's controller up?") from None
    if done.returncode:
        raise UserError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _minutes(duration: int) -> str:
    """Seconds as SLURM's days-hours:minutes:seconds."""
    minutes, rest = divmod(duration, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}"
