"""Processes that train the same recipe at the same time, each with one thread: on their own, or as ranks of one run."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from infra.checkpoint import Checkpoints
from infra.distributed import free_port, start
from infra.errors import UserError
from pipeline.benchmarks import cases
from pipeline.config import Run
from pipeline.course import grouped
from pipeline.engine import Engine
from pipeline.progress import Vote
from pipeline.train import build

BATCHES = 4
"""Different steps of each process, which are repeated."""
CASES: dict[str, Callable[[], Run]] = {"mnist": cases.mnist, "celeba": cases.celeba}
PATIENCE = 600
"""Seconds after which a process counts as hung."""


class Crew:
    """`size` processes with one thread each, in which a case's training is set up and waits.

    As ranks their gradients are summed each step, unless `summing` is off: then they do all else that ranks do. Every
    process takes batches of the same size, so that work grows with processes (weak scaling).
    """

    def __init__(self, case: str, size: int, ranks: bool, summing: bool = True) -> None:
        context, port = get_context("spawn"), free_port()
        self._pipes, self._workers = [], []
        for number in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_work, args=(theirs, case, number, size if ranks else 1, port, summing), daemon=True
            )
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(worker)
        self.answers()

    def steps(self, count: int) -> float:
        """Take so many steps, all processes at once; the seconds until the last has ended."""
        began = time.perf_counter()
        self._ask(count)
        return time.perf_counter() - began

    def ask(self, word: str) -> float:
        """Of the first process: "save" gives a checkpoint's seconds, "parameters" the bytes of its gradients."""
        return self._ask(word)[0]

    def _ask(self, what: int | str) -> list[float]:
        for pipe in self._pipes:
            pipe.send(what)
        return self.answers()

    def answers(self) -> list[float]:
        """What all processes have to say. Raises UserError where one of them cannot."""
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


def _work(pipe: Connection, case: str, rank: int, size: int, port: int, summing: bool) -> None:
    try:
        taking, engine = _training(case, rank, size, port, summing)
        pipe.send(0.0)
        while True:
            asked = pipe.recv()
            if asked == "parameters":
                pipe.send(4.0 * sum(parameter.numel() for parameter in engine.module.parameters()))
            else:
                began = time.perf_counter()
                _save(engine, rank) if asked == "save" else taking(asked)
                pipe.send(time.perf_counter() - began)
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc().strip().splitlines()[-1])


def _training(case: str, rank: int, size: int, port: int, summing: bool) -> tuple[Callable[[int], None], Engine]:
    os.environ |= {"OMP_NUM_THREADS": "1"}
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    world = start("cpu", 1)
    run = CASES[case]()
    run = replace(run, train=replace(run.train, batch=cases.SIZE * size))
    batches = cases.batches(run, BATCHES)
    engine = Engine(build(run), run, world)
    if not summing:
        engine.module.enable_backward_allreduce = False
    taken = 0

    def take(count: int) -> None:
        nonlocal taken
        for _ in range(count):
            batch = batches[taken % BATCHES]
            terms = cases.scored(engine.module, run, batch, taken)
            vote = Vote(world, False, None, [terms], [batch], taken)
            engine.step(terms.loss)
            vote.count()
            taken += 1

    return take, engine


def _save(engine: Engine, rank: int) -> None:
    """A checkpoint, as a run writes it."""
    state = engine.state()
    if rank == 0:
        with tempfile.TemporaryDirectory() as place:
            Checkpoints(Path(place)).save(1, grouped(state), {})
