"""A Ray cluster, through its job server (`ray[default]` there; only this file of the folder knows Ray).

The job is a process on a node of the cluster: a sweep spreads its trials over the cluster from there (--ray auto), a
training takes that node's ranks. Nodes see the working directory where this machine does.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from jobs.submitting import Job, State
from jobs.submitting.checks import planned, seen_from_nodes
from jobs.submitting.files import exit_code, name_of
from jobs.submitting.site import Cluster, seconds
from pipeline.settings import check as require

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STATES = {"PENDING": "queued", "RUNNING": "running"}


@dataclass(frozen=True)
class Options(Cluster):
    address: str = "http://127.0.0.1:8265"
    """The cluster's job server (its dashboard)."""


def plan(inner: list[str], options: Options) -> Job:
    words = ["--ray", "auto"] if inner[:1] == ["sweep"] and "--ray" not in inner else []
    job = planned([*inner, *words], "ray", options, seen_from_nodes)
    require(
        job.nodes == 1,
        f"--nodes {job.nodes}: Ray starts a training on one node; take slurm or kubernetes for several (a sweep "
        "spreads its trials over the cluster by itself)",
    )
    return job


def render(job: Job, options: Options) -> str:
    """The entry point, as the cluster's shell gets it."""
    words = list(job.command)
    if job.ranks > 1:
        words += ["--ranks", str(job.ranks)]
    task = [options.python or sys.executable, "-m", "jobs.submitting.process", "ray", str(job.directory), *words]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(task)}"


def check(job: Job, options: Options) -> None:
    _client(options.address)


def submit(job: Job, options: Options, text: str) -> dict[str, Any]:
    environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(seconds(options.lead))}
    if job.trains:
        environment["OMP_NUM_THREADS"] = str(options.cpus)
    _client(options.address).submit_job(
        entrypoint=text,
        submission_id=job.name,
        entrypoint_num_cpus=options.cpus * job.ranks if job.trains else None,  # a sweep's trials ask for theirs
        entrypoint_num_gpus=options.gpus if job.trains else None,
        runtime_env={"env_vars": environment | options.environment},
    )
    return {"id": job.name, "address": options.address}


def state(record: dict[str, Any], directory: Path) -> State:
    """Unknown where the cluster is gone: it takes what it knows of jobs along."""
    try:
        found = _client(record["address"]).get_job_info(record["id"])
    except (UserError, RuntimeError):
        return State("unknown")
    ended = found.end_time / 1000 if found.end_time else None
    if found.status.value in STATES:
        return State(STATES[found.status.value])
    # of a stopped job Ray does not say whether it ended by itself in time; the job does
    code: int | None = found.driver_exit_code if found.driver_exit_code is not None else exit_code(directory)
    return State(name_of(code), code, ended)


def logs(record: dict[str, Any], directory: Path, follow: bool) -> None:
    client, shown = _client(record["address"]), 0
    running = True
    while running:
        running = follow and state(record, directory).alive
        said = client.get_job_logs(record["id"])
        print(said[shown:], end="", flush=True)
        shown = len(said)
        time.sleep(1 if running else 0)


def cancel(record: dict[str, Any], directory: Path) -> None:
    """TERM to the job's processes, and a kill --lead later."""
    if state(record, directory).name == "unknown":
        raise UserError(f"{directory.name}: the Ray cluster at {record['address']} does not know it any more")
    _client(record["address"]).stop_job(record["id"])


@contextmanager
def ending_on_drain() -> Iterator[None]:
    """In a job: what runs within gets TERM, once, when the job's node is drained. Where Ray does not let the job in (a
    Python of another version than the cluster's), it is not told."""
    import ray

    from jobs.tuning.drain import on_drain

    def end() -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    previous = signal.getsignal(signal.SIGTERM)
    watching: AbstractContextManager[None] = nullcontext()
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")  # the job server says where
        watching = on_drain(end)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        print(f"this job is not told when its node is drained: {reason}", file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGTERM, previous)  # Ray takes it for itself
    try:
        with watching:
            yield
    finally:
        ray.shutdown()


def _client(address: str) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no Ray job server answers at {address} ({reason}): start the cluster with `ray start --head` of "
            "ray[default], or name it by --address"
        ) from None
