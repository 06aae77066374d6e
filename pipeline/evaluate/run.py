"""Evaluate a run's checkpoint: the same numbers on any number of ranks, written down and sent to MLflow."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import Timeout

from infra import distributed
from infra.checkpoint import Checkpoint, Checkpoints
from infra.disk import write_whole
from infra.errors import UserError
from infra.tracking import Tracker
from pipeline import config
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate import OFTEN, Measure, evaluate
from pipeline.evaluate.classification import sampled_accuracy
from pipeline.evaluate.importance import importance_sampled
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.record import destination, training_lock
from pipeline.train import build, load_weights

Which = Literal["best", "last"]
Study = Callable[[Subject], dict[str, Scored]]
"""Metrics of a model that are no means over the rows of batches: by name, {} where the run does not define them."""
STUDIES: tuple[Study, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one checkpoint on one split."""

    directory: Path
    split: str
    checkpoint: Which
    samples: int
    """Importance samples of each row's log-likelihoods; 0 where they were not estimated."""
    step: int
    fingerprint: str
    scores: dict[str, Scored]
    """By metric, each with its standard error over the rows."""

    @property
    def metrics(self) -> dict[str, float]:
        """The values alone."""
        return {name: score.value for name, score in self.scores.items()}


def checkpoint_of(directory: Path, which: Which = "best") -> Checkpoint:
    """The checkpoint that evaluation takes. Raises UserError where the run has none yet."""
    checkpoints = Checkpoints(directory / "checkpoints")
    found = checkpoints.best() if which == "best" else checkpoints.latest()[0]
    if found is None:
        raise UserError(f"{directory} has no checkpoint yet: train it first (pairstream train … --out {directory})")
    return found


def subject_of(directory: Path, split: str = "test", run: Run | None = None, which: Which = "best") -> Subject:
    """A run's trained model on a split of its data. Collective.

    Raises UserError where there is no checkpoint, or the data are not those that the run was trained on.
    """
    run = run or config.load(directory / "run.json")
    checkpoint = checkpoint_of(directory, which)
    manifest = check_data(run)
    if checkpoint.meta["fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"{directory} was trained on data {checkpoint.meta['fingerprint']}, {run.data} is {manifest.fingerprint}: "
            "its splits may differ, so its numbers would mean nothing"
        )
    world = distributed.start(run.engine.device, run.engine.threads)
    model = build(run).to(world.device)
    load_weights(model, checkpoint)
    model.eval()
    return Subject(model, run, manifest, split, world)


def evaluate_run(
    directory: Path,
    split: str = "test",
    run: Run | None = None,
    samples: int = 0,
    which: Which = "best",
    studies: Sequence[Study] = STUDIES,
) -> Evaluation:
    """All metrics of a run's checkpoint on a split; log-likelihoods where `samples` are asked for. Collective.

    Leaves evaluation.SPLIT.json and .csv in the run's directory and in its MLflow run. Raises UserError where the data
    is not the data that the run was trained on.
    """
    subject = subject_of(directory, split, run, which)
    measures: list[Measure] = [*OFTEN, sampled_accuracy]
    if samples:
        measures.append(partial(importance_sampled, samples=samples))
    model, world = subject.model, subject.world
    scores = evaluate(model, model, subject.run, subject.manifest, split, world, measures)
    for study in studies:
        scores |= {f"{split}/{name}": score for name, score in study(subject).items()}
    step = checkpoint_of(directory, which).step
    result = Evaluation(directory, split, which, samples, step, subject.manifest.fingerprint, scores)
    if world.is_main:
        _write(result, subject.run)
    return result


def _write(result: Evaluation, run: Run) -> None:
    name = f"evaluation.{result.split}" if result.checkpoint == "best" else f"evaluation.{result.split}.last"
    options = f"--split {result.split} --checkpoint {result.checkpoint} --samples {result.samples}"
    told = {
        "command": f"pairstream evaluate {result.directory} {options}",
        "step": result.step,
        "data": result.fingerprint,
        "metrics": result.metrics,
        "errors": {metric: score.error for metric, score in result.scores.items() if not math.isnan(score.error)},
        "rows": {metric: score.count for metric, score in result.scores.items()},
    }
    write_whole(result.directory / f"{name}.json", json.dumps(told, indent=2) + "\n")
    table = result.directory / f"{name}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "value", "standard error", "rows"])
        writer.writerows((metric, one.value, one.error, one.count) for metric, one in sorted(result.scores.items()))
    if run.tracking.enabled and result.checkpoint == "best":
        try:
            with training_lock(result.directory):
                tracker = Tracker(result.directory, destination(run, result.directory), running=False)
                tracker.metrics(result.step, result.metrics)
                tracker.artifact(table)
                tracker.close()
        except Timeout:
            print(f"{result.directory} is still training: these numbers are in {table}, not in MLflow")
