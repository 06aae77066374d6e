"""Packed trials against the same trials one after another, and what starting a process for each would cost."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from infra import distributed
from pipeline.batch import Batch
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.harness import Outcome, alternate, drawing, one_thread, repeated
from pipeline.benchmarks.step import DEEPSPEED, LOOP, digits, wrapped
from pipeline.config import Run, override
from pipeline.corpora import prepare
from pipeline.packing import Member, train_packed
from pipeline.packing.joined import join
from pipeline.packing.program import Program
from pipeline.recipes import recipe
from pipeline.train import build, train

TRIALS = 16
BATCHES = 6
"""Different steps, which are repeated."""
STEPS = 100
"""Of each trial that is trained whole, with its data, checkpoints, validations and pictures."""
PACKED = f"{TRIALS} packed trials"
IMPORTS = (
    "import torch, accelerate, mlflow, pipeline.train, pipeline.pictures; "
    "from pipeline.zero import import_deepspeed; import_deepspeed(torch.device('cpu'))"
)


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Steps per second, of all trials together, of one packed program and of the same trials in turn under DeepSpeed
    and in a plain loop: one thread, batches of 100 in memory; trials differ in seed, k and learning rate.

    Figures of digits: the seconds of a fresh process's imports; and whole trials of `samples` steps (0: STEPS), packed
    and one after another in one process, as they are and with these imports counted: once for the pack, and for each of
    the others.
    """
    with one_thread():
        settings, batches = digits() if case == "digits" else (cases.mnist(), cases.batches(cases.mnist(), BATCHES, {}))
        trials = varied(settings)
        turns = {
            PACKED: drawing(repeated(packed(trials, batches[:BATCHES]))),
            DEEPSPEED: drawing(repeated(in_turn([wrapped(trial, batches[:BATCHES]) for trial in trials]))),
            LOOP: drawing(repeated(in_turn([cases.steps(trial, batches[:BATCHES]) for trial in trials]))),
        }
        outcome = alternate("pack", case, "steps", turns, blocks, [DEEPSPEED], progress=progress)
        return replace(outcome, figures=_whole(samples or STEPS)) if case == "digits" else outcome


def varied(settings: Run) -> list[Run]:
    """Trials of a recipe that differ in seed, k and learning rate."""
    return [
        override(settings, {"seed": n // 4, "objective.k": n % 2, "optim.lr": settings.optim.lr / (1 + n // 2 % 2)})
        for n in range(TRIALS)
    ]


def packed(trials: Sequence[Run], batches: Sequence[Batch]) -> Callable[[], int]:
    """Takes a step of every trial on each batch, each trial on another at a time; returns how many steps it took."""
    program = Program([build(trial) for trial in trials], trials, distributed.start("cpu", 1))
    count = len(batches)
    joined = [join([batches[(step + n) % count] for n in range(len(trials))]) for step in range(count)]

    def work() -> int:
        for step, batch in enumerate(joined):
            program.step([step] * len(trials), batch, False)
        return count * len(trials)

    return work


def in_turn(works: Sequence[Callable[[], int]]) -> Callable[[], int]:
    """The works of several trials one after another; returns how many steps they took."""

    def work() -> int:
        for one in works:
            one()
        return BATCHES * len(works)

    return work


def _whole(steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare("digits", place / "digits")
        changes = {
            "data": str(place / "digits"), "train.steps": steps, "engine.device": "cpu", "engine.threads": 1,
            "tracking.enabled": False,
        }  # fmt: skip
        trials = varied(override(recipe("digits"), changes))
        started = time.monotonic()
        train_packed([Member(trial, place / f"packed {n}") for n, trial in enumerate(trials)], TRIALS)
        together = time.monotonic() - started
        started = time.monotonic()
        for n, trial in enumerate(trials):
            train(trial, place / f"alone {n}")
        apart = time.monotonic() - started
    imports = _import_seconds()
    return {
        f"whole trials of {steps} steps, packed, s": together,
        f"whole trials of {steps} steps, one after another, s": apart,
        "imports of a process, s": imports,
        "whole trials, packed over one after another": apart / together,
        "the same with imports counted": (apart + TRIALS * imports) / (together + imports),
    }


def _import_seconds() -> float:
    """Median of three fresh processes."""
    found = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
        found.append(time.monotonic() - started)
    return statistics.median(found)
