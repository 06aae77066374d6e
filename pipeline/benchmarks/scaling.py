"""Weak scaling: ranks that train together against as many processes that know nothing of each other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from infra.checkpoint import Checkpoints
from infra.distributed import World, cores
from infra.errors import UserError
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.crew import Answers, Crew
from pipeline.benchmarks.harness import Outcome, alternate
from pipeline.config import Run
from pipeline.course import write
from pipeline.engine import Engine
from pipeline.progress import Vote
from pipeline.train import build

BATCHES = 4
"""Different steps of each process, which are repeated."""
CASES: Mapping[str, Callable[[], Run]] = {"mnist": cases.mnist, "celeba": cases.celeba}
RANKS = 2
ALONE, TOGETHER, SILENT = f"{RANKS} processes on their own", f"{RANKS} ranks", f"{RANKS} ranks, gradients not summed"
TURN = 2.0
"""Seconds that a turn takes, about."""


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Rows per second of two ranks with one thread each, batches of 100 each and in memory, against two independent
    processes in turn: what they reach is the machine's own limit.

    Figures: the share of a step in which gradients are summed (beside ranks that leave it out), the seconds of a
    checkpoint, and its share of the time at the recipe's interval. `samples` is the number of steps of a turn; 0 takes
    as many as fit into two seconds.
    """
    enough_cores()
    with ExitStack() as open_:
        crews = {
            ALONE: open_.enter_context(Crew(training, (case,), RANKS, ranks=False)),
            TOGETHER: open_.enter_context(Crew(training, (case,), RANKS, ranks=True)),
            SILENT: open_.enter_context(Crew(training, (case, False), RANKS, ranks=True)),
        }
        crews[TOGETHER].seconds(2)
        count = samples or max(2, round(TURN / (crews[TOGETHER].seconds(2) / 2)))
        turns = {name: _turn(crew, count) for name, crew in crews.items()}
        outcome = alternate("scaling", case, "rows", turns, blocks, [ALONE], progress=progress)
        saving = min(crews[TOGETHER].ask("save")[0] for _ in range(5))
        gradients = crews[TOGETHER].ask("parameters")[0]
    step = RANKS * cases.SIZE / outcome.per_second[TOGETHER]
    interval = CASES[case]().train.checkpoint_every
    return replace(
        outcome,
        figures={
            "a step of the ranks, ms": 1e3 * step,
            "gradients that are summed, MB": gradients / 1e6,
            "share of a step spent summing them": 1 - outcome.per_second[TOGETHER] / outcome.per_second[SILENT],
            "a checkpoint, s": saving,
            f"share of the time spent on checkpoints, one every {interval:,} steps": saving
            / (saving + interval * step),
        },
    )


def _turn(crew: Crew, count: int) -> Callable[[], tuple[int, float]]:
    def turn() -> tuple[int, float]:
        return RANKS * cases.SIZE * count, crew.seconds(count)

    return turn


def enough_cores() -> None:
    """Raises UserError where ranks would have to share a core."""
    if cores() < RANKS:
        raise UserError(f"{RANKS} ranks with a core each need {RANKS} cores; this machine lets us use {cores()}")


def training(world: World, number: int, case: str, summing: bool = True) -> Answers:
    """What a process of a crew is asked: a number of steps, "save" a checkpoint, "parameters" for its gradients' bytes.

    Ranks sum their gradients each step, unless `summing` is off: then they do all else that ranks do. Every process
    takes batches of the same size, so that work grows with processes (weak scaling).
    """
    run = CASES[case]()
    run = replace(run, train=replace(run.train, batch=cases.SIZE * world.size))
    batches = cases.batches(run, BATCHES)
    engine = Engine(build(run), run, world)
    if not summing:
        engine.module.enable_backward_allreduce = False
    taken = 0

    def answers(asked: int | str) -> float | None:
        nonlocal taken
        if asked == "parameters":
            return 4.0 * sum(parameter.numel() for parameter in engine.module.parameters())
        if asked == "save":
            _save(engine)
            return None
        for _ in range(int(asked)):
            batch = batches[taken % BATCHES]
            terms = cases.scored(engine.module, run, batch, taken)
            vote = Vote(world, False, None, [terms], [batch], taken)
            engine.step(terms.loss)
            vote.count()
            taken += 1
        return None

    return answers


def _save(engine: Engine) -> None:
    """A checkpoint, as a run writes it."""
    with tempfile.TemporaryDirectory() as place:
        write(Checkpoints(Path(place)), 1, engine, {}, engine.world)
