"""python -m jobs.submitting.process TARGET DIR JOB [OPTIONS]: the process that a submitted job is.

It runs the job and leaves its exit code in DIR/exit. On a cluster it is one of the job's ranks, or the one that starts
them on its node; it goes on with a run that has begun, so that a job that is queued again is the same command.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType

from infra.allocation import ranks_of_srun
from infra.preemption import REQUEUE, SIGNALS
from jobs import cli
from jobs.arguments import early_options
from jobs.submitting import EXIT

BEGUN = {"train": "run.json", "sweep": "sweep.json"}
"""By job: what its directory holds once it has begun, and --resume is possible."""


def main(target: str, directory: Path, inner: list[str]) -> int:
    """Run the job in this process. A kill -9 takes both, and no code is left."""
    if target == "local":
        code = 1
        try:
            code = _run(target, inner)
        finally:
            _leave(directory / EXIT, code)
        return code
    if target == "slurm" and inner[0] == "train":
        os.environ |= ranks_of_srun(os.environ)
    for number in SIGNALS:  # until training listens for itself; it has nothing to save yet
        signal.signal(number, _end)
    code, rank = 1, int(os.environ.get("RANK", "0"))
    try:
        code = _run(target, continued(inner))
    finally:
        if target != "kubernetes" and (rank == 0 or code not in (0, REQUEUE)):
            _leave(directory / EXIT, code)
    if rank and code == 2:
        time.sleep(5)  # srun kills the others when we end, and rank 0 is about to say why
    return 0 if target == "slurm" and code == REQUEUE else code  # srun would kill ranks that are still saving


def _watched(target: str, inner: list[str]) -> AbstractContextManager[None]:
    """A job on a Ray cluster that saves when it is told to stop is told when its node is to go; the trials of a sweep
    hear of it where they are."""
    if target != "ray" or inner[0] not in ("train", "reproduce"):
        return nullcontext()
    from jobs.submitting.ray import ending_on_drain

    return ending_on_drain()


def continued(inner: list[str]) -> list[str]:
    """The job, with --resume where the run in its --out has begun."""
    out = early_options(inner[1:]).out
    begun = BEGUN.get(inner[0])
    going_on = out and begun and (out / begun).is_file() and "--resume" not in inner
    return [*inner, "--resume"] if going_on else inner


def _run(target: str, inner: list[str]) -> int:
    """The job's exit code, also where it ends by SystemExit."""
    try:
        with _watched(target, inner):
            return cli.main(inner)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _leave(file: Path, code: int) -> None:
    """Write the exit code unless another rank has: of several, the first that failed is the cause."""
    part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    part.write_text(f"{code}\n")
    try:
        os.link(part, file)  # whole, and only where there is none
    except FileExistsError:
        pass
    finally:
        part.unlink()


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(REQUEUE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]).absolute(), sys.argv[3:]))
