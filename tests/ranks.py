"""One pair of rank processes for the whole test session: starting torch and DeepSpeed costs more than most tests."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from infra.distributed import free_port

TIMEOUT = 120
"""Seconds after which a call counts as hung."""


def _serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    from infra.distributed import start

    start("cpu", threads=1)
    while True:
        task = pipe.recv()
        if task is None:
            return
        function, arguments = task
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Ranks:
    """`size` processes in one gloo group. `run` calls a module-level function on all of them, collectively."""

    def __init__(self, size: int = 2) -> None:
        context = get_context("spawn")
        port = free_port()
        self._pipes, self._workers = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            worker.start()
            self._pipes.append(ours)
            self._workers.append(worker)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The function's result on every rank. Fails on an exception in any rank, or when one hangs."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(TIMEOUT):
                self.close()
                raise AssertionError(f"rank {rank} hung in {function.__name__}")
            done, value = pipe.recv()
            results.append((done, value))
        for rank, (done, value) in enumerate(results):
            if not done:
                print(value, file=sys.stderr)
                raise AssertionError(f"rank {rank} failed in {function.__name__}: {value}")
        return [value for _, value in results]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
