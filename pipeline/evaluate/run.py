"""Evaluate a run's checkpoint: the same numbers on any number of ranks, written down and sent to MLflow."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout
from torch import Tensor, nn

from infra import distributed
from infra.checkpoint import Checkpoint, Checkpoints
from infra.disk import write_whole
from infra.errors import NotInstalled, UserError
from infra.tracking import Tracker, destination_in
from pipeline import config
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate import OFTEN, Measure, evaluate
from pipeline.evaluate.attributes import attribute_accuracy
from pipeline.evaluate.captions import captions
from pipeline.evaluate.classification import sampled_accuracy
from pipeline.evaluate.coherence import coherence, oracles
from pipeline.evaluate.frechet import prior_samples
from pipeline.evaluate.importance import importance_sampled
from pipeline.evaluate.latents import latents, per_dimension
from pipeline.evaluate.probes import probes
from pipeline.evaluate.quality import picture_quality
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.texts import digit_accuracy, perplexity, translation
from pipeline.model import MultimodalVAE
from pipeline.record import destination, training_lock
from pipeline.train import build, load_weights

Which = Literal["best", "last"]
Study = Callable[[Subject], dict[str, Scored]]
"""Metrics of a model that are no means over the rows of batches: by name, {} where the run does not define them."""


def judged(subject: Subject) -> dict[str, Scored]:
    """Coherence and synergy, by oracles that are trained on these data where the cache has none."""
    return coherence(subject, oracles(subject))


STUDIES: tuple[Study, ...] = (
    attribute_accuracy, probes, latents, judged, picture_quality, prior_samples, digit_accuracy, perplexity,
    translation, captions,
)  # fmt: skip
"""All that there are."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one checkpoint on one split."""

    directory: Path
    split: str
    checkpoint: Which
    samples: int
    """Importance samples of each row's log-likelihoods; 0 where they were not estimated."""
    few: int
    """Evenly spaced rows that were looked at; 0 is all of them."""
    step: int
    trained: int
    """Steps of the training when it was evaluated."""
    fingerprint: str
    validation: float | None
    """The run's own validation metric (train.best) at this checkpoint."""
    scores: dict[str, Scored]
    """By metric, each with its standard error over the rows."""
    dimensions: dict[str, list[float | None]]
    """Of each latent dimension, as `per_dimension` names it."""

    @property
    def metrics(self) -> dict[str, float]:
        """The values alone."""
        return {name: score.value for name, score in self.scores.items()}


def checkpoint_of(directory: Path, which: Which = "best") -> Checkpoint:
    """The checkpoint that evaluation takes; says on stderr where damaged ones had to be passed over for it.

    Raises UserError where the run has none yet, or none that is whole.
    """
    checkpoints = Checkpoints(directory / "checkpoints")
    newest, notes = checkpoints.latest()
    if newest is None:
        train = f"(pairstream train RECIPE --resume --out {directory})"
        if notes:
            raise UserError(f"{directory} has no checkpoint that is whole; train it again {train}: {notes[0]}")
        raise UserError(f"{directory} has no checkpoint yet: train it first {train}")
    for note in notes:
        print(f"pairstream: {note}", file=sys.stderr, flush=True)
    return checkpoints.best_of(newest) if which == "best" else newest


def subject_of(directory: Path, split: str, run: Run | None, checkpoint: Checkpoint) -> Subject:
    """A run's trained model on a split of its data. Collective.

    Raises UserError where the checkpoint is of another system, or the data are not those that the run was trained on.
    """
    run = run or config.load(directory / "run.json")
    system = checkpoint.meta["run"]["model"]["system"]
    if system != run.model.system:
        raise UserError(
            f"{checkpoint.path} is of a model of the system {system}, and {directory / 'run.json'} says "
            f"{run.model.system}: its weights mean something else there; give the run its own checkpoints back"
        )
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
    few: int = 0,
    studies: Sequence[Study] = STUDIES,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """All metrics of a run's checkpoint on a split, or on `few` evenly spaced rows; log-likelihoods where `samples`
    are asked for. Collective.

    What no row can answer is left out. Leaves evaluation.SPLIT.json and .csv in the run's directory and in its MLflow
    run; a later evaluation of the same step takes the place of an earlier one (in MLflow not of validation data, which
    training has seen at that step), but those of `few` rows are named after their number (evaluation.test.20.json,
    `test.20/elbo`). `progress` hears how many rows of all have their log-likelihoods. Raises
    UserError where the data is not the data that the run was trained on.
    """
    trained = Checkpoints(directory / "checkpoints").reached()
    checkpoint = checkpoint_of(directory, which)
    subject = replace(subject_of(directory, split, run, checkpoint), few=few)
    measures: list[Measure] = [*OFTEN, sampled_accuracy]
    if samples:
        measures.append(partial(importance_sampled, samples=samples))
    model, world = subject.model, subject.world
    if progress and world.is_main:
        rows = len(subject.manifest.split(split))
        measures.append(_counting(progress, min(few or rows, rows), world.size))
    scores = evaluate(model, model, subject.run, subject.manifest, split, world, measures, few)
    for study in studies:
        try:
            told = study(subject).items()
            scores |= {f"{split}/{name}": score for name, score in told if not math.isnan(score.value)}
        except NotInstalled as lack:
            if studies is not STUDIES:
                raise
            if world.is_main:
                print(f"left out: {lack}", file=sys.stderr)
    told_apart = per_dimension(subject) if latents in studies else {}
    dimensions = {name: [None if math.isnan(one) else one for one in row.tolist()] for name, row in told_apart.items()}
    metric = subject.run.train.best
    best, at_last = checkpoint.meta["best"], checkpoint.meta["progress"]["metrics"].get(metric)
    validation = best["value"] if which == "best" and best else at_last
    fingerprint = subject.manifest.fingerprint
    result = Evaluation(
        directory, split, which, samples, few, checkpoint.step, trained, fingerprint, validation, scores, dimensions
    )
    if world.is_main:
        _write(result, subject.run)
    return result


def _counting(progress: Callable[[int, int], None], rows: int, ranks: int) -> Measure:
    """No metric: it only hears of every batch, after the others."""
    seen = 0

    def count(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
        nonlocal seen
        seen = min(seen + len(batch) * ranks, rows)
        progress(seen, rows)
        return {}

    return count


def evaluation_file(split: str, which: Which = "best", few: int = 0) -> str:
    """The file in a run's directory with what `evaluate_run` found: those of `few` rows take no other's place."""
    return ".".join(["evaluation", _seen(split, few), *([] if which == "best" else [which]), "json"])


def _seen(split: str, few: int) -> str:
    return f"{split}.{few}" if few else split


def chosen_by(run: Run) -> str:
    """What MLflow calls the value of train.best at the best checkpoint."""
    return f"best/{run.train.best.removeprefix('val/')}"


def _write(result: Evaluation, run: Run) -> None:
    file = result.directory / evaluation_file(result.split, result.checkpoint, result.few)
    options = f"--split {result.split} --checkpoint {result.checkpoint} --samples {result.samples} --few {result.few}"
    told: dict[str, Any] = {
        "command": f"pairstream evaluate {result.directory} {options}",
        "step": result.step,
        "trained": result.trained,
        "data": result.fingerprint,
        "samples": result.samples,
        "few": result.few,
        "validation": result.validation,
        "metrics": result.metrics,
        "errors": {metric: score.error for metric, score in result.scores.items() if not math.isnan(score.error)},
        "rows": {metric: score.count for metric, score in result.scores.items()},
        "dimensions": result.dimensions,
    }
    table, lines = file.with_suffix(".csv"), io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["metric", "value", "standard error", "rows", "step", "data", "command"])
    source = (result.step, result.fingerprint, told["command"])
    writer.writerows((name, one.value, one.error, one.count, *source) for name, one in sorted(result.scores.items()))
    write_whole(table, lines.getvalue())
    _track(result, run, table, told["command"])
    write_whole(file, json.dumps(told, indent=2) + "\n")  # the last: by it the evaluation counts as done


def _track(result: Evaluation, run: Run, table: Path, command: str) -> None:
    if run.tracking.enabled and result.checkpoint == "best":
        try:
            with training_lock(result.directory):
                where = destination_in(result.directory) or destination(run, result.directory)  # where its record is
                tracker = Tracker(result.directory, where, running=False)
                chosen = {} if result.validation is None else {chosen_by(run): result.validation}
                seen = _seen(result.split, result.few)
                named = {name.replace(result.split, seen, 1): value for name, value in result.metrics.items()}
                # training has points of validation data at the same steps, which stay
                tracker.metrics(result.step, named | chosen, again=result.split != "val")
                tracker.tags({f"evaluation.{seen}": command, f"evaluation.{seen}.trained": str(result.trained)})
                tracker.artifact(table)
                if (left := tracker.close()).pending:
                    why = left.error or "no time left"
                    print(f"MLflow has not got these numbers ({why}); pairstream review --sync delivers them",
                          file=sys.stderr)  # fmt: skip
        except Timeout:
            print(f"{result.directory} is still training: these numbers are in {table}, not in MLflow")
