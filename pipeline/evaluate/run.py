"""Evaluate a run's best checkpoint: the same numbers on any number of ranks, written down and sent to MLflow."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from infra import distributed
from infra.checkpoint import Checkpoint, Checkpoints
from infra.errors import UserError
from infra.tracking import Tracker
from pipeline import config
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate import evaluate
from pipeline.record import destination, training_lock
from pipeline.train import build, load_weights


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one checkpoint on one split."""

    directory: Path
    split: str
    samples: int
    """Importance samples of each row's log-likelihoods; 0 where they were not estimated."""
    step: int
    fingerprint: str
    metrics: dict[str, float]


def best_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint that evaluation takes. Raises UserError where the run has none yet."""
    best = Checkpoints(directory / "checkpoints").best()
    if best is None:
        raise UserError(f"{directory} has no checkpoint yet: train it first (pairstream train … --out {directory})")
    return best


def evaluate_run(directory: Path, split: str = "test", run: Run | None = None, samples: int = 0) -> Evaluation:
    """All metrics of a run's best checkpoint on a split; log-likelihoods where `samples` are asked for. Collective.

    Leaves evaluation.SPLIT.json and .csv in the run's directory and in its MLflow run. Raises UserError where the data
    is not the data that the run was trained on.
    """
    run = run or config.load(directory / "run.json")
    checkpoint = best_checkpoint(directory)
    manifest = check_data(run)
    if checkpoint.meta["fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"{directory} was trained on data {checkpoint.meta['fingerprint']}, {run.data} is {manifest.fingerprint}: "
            "its splits may differ, so its numbers would mean nothing"
        )
    world = distributed.start(run.engine.device, run.engine.threads)
    model = build(run).to(world.device)
    load_weights(model, checkpoint)
    metrics = evaluate(model, model, run, manifest, split, world, samples)
    result = Evaluation(directory, split, samples, checkpoint.step, manifest.fingerprint, metrics)
    if world.is_main:
        _write(result, run)
    return result


def _write(result: Evaluation, run: Run) -> None:
    (result.directory / f"evaluation.{result.split}.json").write_text(
        json.dumps(
            {
                "command": f"pairstream evaluate {result.directory} --split {result.split} --samples {result.samples}",
                "step": result.step,
                "data": result.fingerprint,
                "metrics": result.metrics,
            },
            indent=2,
        )
        + "\n"
    )
    table = result.directory / f"evaluation.{result.split}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "value"])
        writer.writerows(sorted(result.metrics.items()))
    if run.tracking.enabled:
        try:
            with training_lock(result.directory):
                tracker = Tracker(result.directory, destination(run, result.directory), running=False)
                tracker.metrics(result.step, result.metrics)
                tracker.artifact(table)
                tracker.close()
        except Timeout:
            print(f"{result.directory} is still training: these numbers are in {table}, not in MLflow")
