"""Ranks: which one this process is, how ranks are started, and the few collectives that training needs."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

from infra.allocation import nodes
from infra.errors import UserError
from infra.preemption import LOST, REQUEUE

if TYPE_CHECKING:
    import torch
    from torch import Tensor


GRAIN = 2**15
"""Elements that torch has a thread of a CPU work on at the least (at::internal::GRAIN_SIZE)."""
LAUNCHER = "PAIRSTREAM_LAUNCHER"
"""Environment variable with the process id of who started the ranks."""


@dataclass(frozen=True)
class World:
    """This process among the others. On CPU the backend is gloo, on CUDA nccl."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of these numbers over all ranks, in float64; every rank gets them."""
        import torch

        if self.size == 1:
            return list(values)
        return self.sum_later(torch.tensor(values, dtype=torch.float64, device=self.device))()

    def sum_later(self, values: Tensor) -> Callable[[], list[float]]:
        """Begin to sum a tensor over all ranks; what is returned waits for the sums and reads them."""
        import torch
        import torch.distributed as dist

        work = dist.all_reduce(values, async_op=True) if self.size > 1 else None
        if values.is_cuda:
            if work is not None:
                work.wait()  # orders the stream, not the host
            there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()

        def wait() -> list[float]:
            if values.is_cuda:
                copied.synchronize()  # so far, not what has been queued since
                return [float(value) for value in there.tolist()]
            if work is not None:
                work.wait()
            return [float(value) for value in values.tolist()]

        return wait

    def gather(self, value: object) -> list[object]:
        """This object from every rank, in the order of ranks."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        result: list[object] = [None] * self.size
        dist.all_gather_object(result, value)
        return result

    def raise_together(self, failure: str | None) -> None:
        """Raise UserError on every rank where any rank has a failure. Collective."""
        failures = [str(text) for text in self.gather(failure) if text]
        if failures:
            error = UserError(failures[0])
            error.shared = True
            raise error


def is_worker() -> bool:
    """Whether a launcher (ours, torchrun, srun with its variables) has made this process one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(device: str = "auto", threads: int = 0, timeout: timedelta = timedelta(minutes=10)) -> World:
    """Join the process group (made once per process) and settle device and threads.

    A process on its own needs no port: its group lives in memory. Raises UserError where CUDA is asked for and
    there is none, or fewer devices than ranks.
    """
    if device == "cpu":  # before CUDA starts: everything behind us takes a device that it sees
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    import torch.distributed as dist

    _end_with_launcher()
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no CUDA device; use --engine.device auto or cpu")
    cuda = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {local_rank} of this machine has no CUDA device; there are {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if is_worker():
            _meet(backend, timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        atexit.register(_leave)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if threads or "OMP_NUM_THREADS" not in os.environ:  # which torch has heeded already
        torch.set_num_threads(threads or max(1, cores() // local_size))
    with flushing_denormals():  # torch's threads begin here, all alike, whatever is computed first
        torch.ones(torch.get_num_threads() * GRAIN).neg_()
    return World(dist.get_rank(), dist.get_world_size(), local_rank, place)


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Within it a float32 below 1.2e-38 is 0 to a CPU, whose products such numbers make up to twenty times slower:
    gradients of samples that weigh next to nothing are such. Afterwards the caller's thread is as it was.

    A processor's flag is each thread's own: those that start within it inherit and keep it (torch's do so in `start`,
    if nothing was computed before), those that ran before it stay as they are.
    """
    import torch

    flushed = not (torch.tensor(1e-40) * 1.5).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def _meet(backend: str, timeout: timedelta) -> None:
    """Raises UserError where not all ranks come."""
    import torch.distributed as dist

    try:
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        rank, size = (os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE"))
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        missed = UserError(
            f"rank {rank} of {size} has not met the others at {where} within {timeout.total_seconds():.0f} s "
            f"({str(error).strip().splitlines()[0]}): were all ranks started, and is that address reachable from here?"
        )
        missed.code = LOST  # a node that is late is no mistake of the user's
        raise missed from None


def _leave() -> None:
    """End the group's threads before the interpreter is gone; left to themselves they may abort the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Ask the kernel for TERM (save and stop) when the launcher is killed, so that no rank is left behind."""
    launcher = os.environ.get(LAUNCHER)
    if launcher and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(launcher):
            os.kill(os.getpid(), signal.SIGTERM)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_port(port: int = 0) -> int:
    """`port` if it is free on this machine, any free one for 0. Raises UserError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"port {port} cannot be used ({why}); choose another --port, or 0") from None
        return int(probe.getsockname()[1])


def check_ranks(ranks: int) -> None:
    """Raise UserError for more ranks than cores."""
    if ranks > cores():
        raise UserError(f"--ranks {ranks}: this machine lets us use {cores()} cores; ask for at most that many")


def launch(command: Sequence[str], ranks: int, port: int = 0) -> int:
    """Run `command` as `ranks` processes on this machine and return the job's exit code.

    Where this machine is one node of several (`infra.allocation.nodes`), they are its share of the world. Signals go on
    to every rank. When one rank fails the others are told to stop, and killed 10 seconds later; the code is that of the
    first rank that failed. Raises UserError for more ranks than cores or a port that is taken.
    """
    check_ranks(ranks)
    count, node = nodes()
    meeting = {} if count > 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port(port))}
    common = {
        **meeting,
        "WORLD_SIZE": str(count * ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        LAUNCHER: str(os.getpid()),
    }
    common.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // ranks))))
    workers = [
        # a session of their own: a terminal's Ctrl-C would reach them a second time, beside ours
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(node * ranks + rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )
        for rank in range(ranks)
    ]

    def forward(number: int, _frame: FrameType | None) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    previous = {
        number: signal.signal(number, forward)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        return _wait(workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(workers: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; once one fails, give the others a grace period. Returns the first failure's code, or 0.

    Ranks that were told to stop have agreed on it and saved: they end by themselves, within a minute.
    """
    failed, deadline = 0, float("inf")
    while any(worker.poll() is None for worker in workers):
        codes = [worker.poll() for worker in workers]
        if not failed and any(codes):
            rank, failed = next((rank, code) for rank, code in enumerate(codes) if code)
            deadline = time.monotonic() + (60 if failed == REQUEUE else 10)
            if failed not in (REQUEUE, 2):  # with 2 a rank has said why
                print(f"rank {rank} ended with code {failed}; stopping the others", file=sys.stderr)
            for worker in workers:
                if worker.poll() is None and failed != REQUEUE:
                    worker.terminate()
        if time.monotonic() > deadline:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
        time.sleep(0.05)
    codes = [worker.returncode for worker in workers]
    failed = failed or next((code for code in codes if code), 0)
    return failed if failed >= 0 else 128 - failed
