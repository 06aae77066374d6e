"""Processes that do the same work at the same time, each with one thread: on their own, or as ranks of one world."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from infra.distributed import World, free_port, start
from infra.errors import UserError

PATIENCE = 600
"""Seconds after which a process counts as hung."""
Answers = Callable[[Any], float | None]
"""Does what it is asked; what it returns, or the seconds that it took where that is None, is the answer."""


class Crew:
    """`size` processes with one thread each, in which work is set up and waits."""

    def __init__(self, make: Callable[..., Answers], arguments: tuple[Any, ...], size: int, ranks: bool) -> None:
        """Each calls `make(world, number, *arguments)`, a function that a spawned process can import; as `ranks` they
        share a world, otherwise each has its own. Raises UserError where one of them cannot."""
        context, port = get_context("spawn"), free_port()
        self._pipes, self._workers = [], []
        for number in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_work, args=(theirs, number, size if ranks else 1, port, make, arguments), daemon=True
            )
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(worker)
        self._answers()

    def seconds(self, asked: Any) -> float:
        """Ask all processes at once; the seconds until the last has answered."""
        began = time.perf_counter()
        self.ask(asked)
        return time.perf_counter() - began

    def ask(self, asked: Any) -> list[float]:
        """What each process answers. Raises UserError where one of them cannot."""
        for pipe in self._pipes:
            pipe.send(asked)
        return self._answers()

    def _answers(self) -> list[float]:
        found = []
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE):
                raise UserError(f"a process of the benchmark has said nothing for {PATIENCE} s")
            answer = pipe.recv()
            if isinstance(answer, str):
                raise UserError(f"a process of the benchmark failed: {answer}")
            found.append(float(answer))
        return found

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
            worker.join()


def _work(
    pipe: Connection, number: int, size: int, port: int, make: Callable[..., Answers], arguments: tuple[Any, ...]
) -> None:
    try:
        answers = make(_world(number, size, port), number, *arguments)
        pipe.send(0.0)
        while True:
            asked = pipe.recv()
            began = time.perf_counter()
            answer = answers(asked)
            pipe.send(time.perf_counter() - began if answer is None else answer)
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc().strip().splitlines()[-1])


def _world(rank: int, size: int, port: int) -> World:
    os.environ |= {"OMP_NUM_THREADS": "1"}
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    return start("cpu", 1)
