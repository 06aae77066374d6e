"""Weak scaling: ranks that train together against as many processes that know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from infra.distributed import cores
from infra.errors import UserError
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.crew import CASES, Crew
from pipeline.benchmarks.harness import Outcome, alternate

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
    if cores() < RANKS:
        raise UserError(f"{RANKS} ranks with a core each need {RANKS} cores; this machine lets us use {cores()}")
    with ExitStack() as open_:
        crews = {
            ALONE: open_.enter_context(Crew(case, RANKS, ranks=False)),
            TOGETHER: open_.enter_context(Crew(case, RANKS, ranks=True)),
            SILENT: open_.enter_context(Crew(case, RANKS, ranks=True, summing=False)),
        }
        crews[TOGETHER].steps(2)
        count = samples or max(2, round(TURN / (crews[TOGETHER].steps(2) / 2)))
        turns = {name: _turn(crew, count) for name, crew in crews.items()}
        outcome = alternate("scaling", case, "rows", turns, blocks, [ALONE], progress=progress)
        saving = min(crews[TOGETHER].ask("save") for _ in range(5))
        gradients = crews[TOGETHER].ask("parameters")
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
        return RANKS * cases.SIZE * count, crew.steps(count)

    return turn
