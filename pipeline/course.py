"""The course of a run between its steps, whoever takes them: points, validations, checkpoints, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from infra.checkpoint import Checkpoint, Checkpoints
from infra.distributed import World
from infra.errors import UserError
from pipeline import config
from pipeline.config import Run
from pipeline.manifest import Manifest
from pipeline.objectives.systems import switch_step
from pipeline.progress import Progress
from pipeline.record import Record
from pipeline.stream import Stream

Report = Callable[[int, dict[str, float]], bool]
"""Called on rank 0 with (step, metrics) after each validation; returns whether to stop."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    directory: Path
    status: str
    """finished, stopped early, or preempted (told to stop; it can be resumed)."""
    step: int
    """Optimizer steps in all, over every resume."""
    loss: float
    """Negative objective of the last step per row of the global batch (λ- and β-weighted, nats)."""
    metrics: dict[str, float]
    """The last validation."""
    best: dict[str, Any] | None
    """{"step", "metric", "value"} of the checkpoint that evaluation takes."""
    rows: dict[str, int]
    """Rows of each kind in the supervision view."""
    seconds: float
    """Wall time of this call."""
    wait: float
    """Share of the training loop's time in which it waited for data (on this rank)."""


class Trained(Protocol):
    """What holds the weights and the optimizer."""

    @property
    def module(self) -> nn.Module:
        """Called like the model."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """`model.NAME`, and the optimizer's state after a first step, tensor by tensor. Collective."""


@dataclass
class Course:
    """A run on its way."""

    run: Run
    directory: Path
    manifest: Manifest
    stream: Stream
    world: World
    trained: Trained
    record: Record
    checkpoints: Checkpoints
    progress: Progress
    validate: Callable[[nn.Module], dict[str, float]]
    report: Report | None = None
    on_step: Callable[[int, float], None] | None = None
    started: float = 0.0
    """time.monotonic() of the beginning."""

    def __post_init__(self) -> None:
        self.status = "stopped early" if self.progress.out_of_patience(self.run.train) else "finished"
        self.told = False  # to stop, by whom it reports to: a scheduler, which may let it go on later

    def settle(self) -> bool:
        """Count the last step's vote; returns whether the run was told to stop. Collective."""
        stopping = self.progress.settle(self.on_step)
        if stopping:
            self.status = "preempted"
        return stopping

    @property
    def due(self) -> bool:
        """Whether something is to be done after the step that was just taken."""
        training = self.run.train
        return any(map(self._due, (training.log_every, training.checkpoint_every, training.validate_every)))

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.run.train.steps or (every > 0 and step % every == 0)

    def pause(self, gauges: Callable[[], dict[str, float]]) -> bool:
        """What is due after a step: a point with `gauges`, a validation, a checkpoint. Returns whether to stop.
        Collective."""
        if not self.due:
            return False
        training, progress = self.run.train, self.progress
        stopping = progress.settle(self.on_step)
        if progress.step % training.log_every == 0:
            self.record.metrics(progress.step, progress.window.point(self.world) | gauges())
        save = self._due(training.checkpoint_every)
        if self._due(training.validate_every):
            metrics = self.validate(self.trained.module)
            self.record.metrics(progress.step, metrics)
            save |= progress.validated(training, metrics, switch_step(self.run))
            asked = self.report is not None and self.world.is_main and self.report(progress.step, metrics)
            self.told = self.world.sum([float(asked)])[0] > 0
            if self.told or progress.out_of_patience(training):
                self.status, save = "stopped early", True
        if save:
            self.save()
        if stopping and self.status == "finished" and progress.step < training.steps:
            self.status = "preempted"
        return self.status != "finished"

    def save(self) -> None:
        """Write a checkpoint, once per step. Collective; rank 0 writes, and a failure there stops all ranks."""
        progress, world, manifests = self.progress, self.world, self.stream.manifests
        if progress.saved == progress.step:
            return
        meta = {
            **progress.meta(world),
            "run": config.to_dict(self.run),
            "fingerprint": manifests[0].fingerprint,
            "mix": [manifest.fingerprint for manifest in manifests[1:]],
            "world_size": world.size,
            "versions": {name: version(name) for name in ("torch", "deepspeed", "accelerate")},
        }
        write(self.checkpoints, progress.step, self.trained, meta, world)
        progress.saved = progress.step

    def end(self) -> None:
        """The last checkpoint of a run that was told to stop; pictures and model of one that has ended. Collective."""
        if self.status == "preempted":
            self.save()
        self.record.finish(self.status)
        if self.status != "preempted" and not self.told and self.world.is_main:
            from pipeline.pictures import illustrate

            for picture in illustrate(self.run, self.directory, self.manifest):
                self.record.artifact(picture, "pictures")
            self._package()

    def _package(self) -> None:
        """The best checkpoint as MLflow's model, where it is wanted."""
        tracking = self.run.tracking
        if not (tracking.enabled and tracking.model) or self.record.parent is not None:  # a sweep has hundreds
            return
        from pipeline import serving  # it imports mlflow

        if folder := serving.save_or_say(self.run, self.directory, self.manifest):
            self.record.artifact(folder)

    def result(self, wait: float) -> Result:
        """How it ended, after `end`; `wait` is the share of time in which it waited for data."""
        progress, seconds = self.progress, time.monotonic() - self.started
        return Result(
            self.directory, self.status, progress.step, progress.loss, progress.metrics, progress.best,
            self.stream.describe(), seconds, wait,
        )  # fmt: skip


def write(checkpoints: Checkpoints, step: int, trained: Trained, meta: Mapping[str, Any], world: World) -> None:
    """Write a checkpoint. Collective; rank 0 writes, and a UserError there is raised on all ranks."""
    failure, state = None, trained.state()
    if world.is_main:
        try:
            checkpoints.save(step, state, meta)
        except UserError as error:
            failure = str(error)
    for _ in state:  # every rank has to take part in putting tensors together, also where writing has failed
        pass
    world.raise_together(failure)


def last_checkpoint(checkpoints: Checkpoints, stream: Stream, world: World) -> Checkpoint | None:
    """The newest whole checkpoint. Raises UserError where it was trained on other data."""
    last, notes = checkpoints.latest()
    for note in notes if world.is_main else []:
        print(note, flush=True)
    if last:
        began = [last.meta["fingerprint"], *last.meta.get("mix", [])]
        for theirs, manifest in zip_longest(began, stream.manifests):
            ours = manifest.fingerprint if manifest else "nothing"
            if theirs != ours:
                raise UserError(
                    f"{last.path} was trained on data with fingerprint {theirs or 'nothing (no such mix)'}, "
                    f"{manifest.directory if manifest else 'this run'} has {ours}: resume with the data it began with, "
                    "or start another run with --from"
                )
    return last
