"""Where a job can be sent: one file for each kind of cluster, with the same few functions.

A back end has `Options` (what a site and the command line tell it), `plan` (the job, checked), `render` (exactly what
is submitted), `check` (whether the cluster can take it), `submit`, and of a submitted job `state`, `logs` and `cancel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

BACKENDS = {
    "local": "in the background of this machine",
    "slurm": "by sbatch",
    "ray": "on a Ray cluster, through its job server",
    "kubernetes": "by kubectl",
}
RECORD, LOG, EXIT = "job.json", "log.txt", "exit"
"""Files of a submitted job's directory: what it is, what it says, and its exit code once it has ended. The tasks of a
job array have the last two in directories of their own, 0, 1 …"""


@dataclass(frozen=True)
class Job:
    """A job on its way: `command` is what stands after `pairstream`."""

    name: str
    directory: Path
    """Its record, an absolute path."""
    command: tuple[str, ...]
    nodes: int = 1
    ranks: int = 1
    """On each node."""
    warnings: tuple[str, ...] = ()
    tasks: int = 0
    """Of a job array; each is one process."""

    @property
    def trains(self) -> bool:
        """Whether its ranks share one training; any other job is one process."""
        return self.command[0] == "train"


@dataclass(frozen=True)
class State:
    """What has become of a job: queued, running, finished, preempted, failed, killed or unknown."""

    name: str
    code: int | None = None
    """Its exit code, once it has ended and where it is known."""
    ended: float | None = None
    """Seconds since 1970."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    """Of a job array: how many are in each state."""

    @property
    def alive(self) -> bool:
        """Whether the job has not ended yet."""
        return self.name in ("queued", "running")


class Backend(Protocol):
    """What each file of this folder is. `record` is the content of job.json."""

    Options: Any

    def plan(self, inner: list[str], options: Any) -> Job:
        """The job. Raises UserError where it could not work anywhere."""

    def render(self, job: Job, options: Any) -> str:
        """The script, manifest or command that is submitted."""

    def check(self, job: Job, options: Any) -> None:
        """Raise UserError where this cluster cannot take the job. A dry run goes without."""

    def submit(self, job: Job, options: Any, text: str) -> dict[str, Any]:
        """Send what was rendered. Returns what the record has to remember: the cluster's "id" of it, and the like."""

    def state(self, record: dict[str, Any], directory: Path) -> State:
        """What has become of the job."""

    def logs(self, record: dict[str, Any], directory: Path, follow: bool) -> None:
        """Print what the job has said; with `follow` until it ends."""

    def cancel(self, record: dict[str, Any], directory: Path) -> None:
        """Ask the job to save and end; returns at once. Raises UserError where that cannot be asked."""


def log_of(directory: Path, tasks: int) -> Path:
    """Where the job in a directory says what it does; of a job array a pattern."""
    return directory / "*" / LOG if tasks else directory / LOG


def backend(name: str) -> Backend:
    """The file of this folder for this kind of cluster."""
    module: Backend = import_module(f"jobs.submitting.{name}")
    return module
