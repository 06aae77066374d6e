"""What the numbers of a table are made of, each done once and kept: a training with its evaluation, or a baseline.

Work lies in a directory named by what its result depends on, so that tables share it and a cut one goes on.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from infra.checkpoint import Checkpoints
from infra.disk import write_whole
from infra.distributed import is_worker
from infra.errors import UserError
from infra.journal import JOURNAL, points
from infra.preemption import REQUEUE, StopRequest
from pipeline import config
from pipeline.baselines.fitting import Fitting, Show, unseen
from pipeline.config import Run
from pipeline.evaluate.run import STUDIES, Study, Which, checkpoint_of, chosen_by, evaluate_run, evaluation_file
from pipeline.evaluate.scored import Scored
from pipeline.manifest import open_manifest
from pipeline.record import is_finished
from pipeline.reproduce.archive import archived, directory_of
from pipeline.settings import Precision

AT_WORK = "work.lock"
"""In the directory of a piece of work: held by the process that does it."""
FIT = "fit"
"""In the directory of what is fitted: its checkpoints, until it is done."""


class Stopped(Exception):
    """Told to stop (a signal): what there is has been saved, and the same command goes on from there."""

    code = REQUEUE


@dataclass(frozen=True)
class Result:
    """What came of a piece of work, and what one has to know to believe it."""

    scores: Mapping[str, Scored]
    """By metric, of test data."""
    validation: float
    """The validation metric by which settings are chosen; NaN where there is none."""
    epochs: float
    """Passes over as many rows as the training data have."""
    seed: int
    data: str
    """Fingerprint."""
    where: str
    """Directory, or MLflow run."""


@dataclass(frozen=True)
class Work(ABC):
    """A piece of work."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Name of its directory: what it is, and a hash of what its result depends on."""

    @property
    @abstractmethod
    def run(self) -> Run:
        """The configuration that it takes its data from."""

    @abstractmethod
    def done(self, root: Path) -> Result | None:
        """Its result where there is one. Raises UserError where that was made of other data."""

    def directory(self, root: Path) -> Path:
        """Where it is, or will be."""
        return root / self.key

    def do(self, root: Path, show: Show = unseen) -> None:
        """Do what is left of it, which of several processes one does. Raises Stopped where a signal came, and
        UserError."""
        with self._alone(self.directory(root)):
            if not self.done(root):  # by whoever was at it
                self._do(root, show)

    @abstractmethod
    def _do(self, root: Path, show: Show) -> None:
        """The same, of work that nobody else is at."""

    def in_precision(self, precision: Precision) -> Work:
        """The same, with networks of that precision in what is trained by the engine."""
        return self

    @property
    def steps(self) -> int:
        """Of its training, about; 0 where it takes none."""
        return self.run.train.steps

    def share(self, root: Path) -> float:
        """How much of it is done, 0 to 1."""
        return float(self.done(root) is not None)

    def fingerprint(self) -> str:
        """Of the data at hand."""
        return open_manifest(self.run.data).fingerprint

    def _fitting(self, root: Path, epochs: float, data: str, show: Show = unseen) -> Fitting:
        """A fit to data of this fingerprint, kept beside the scores; by ranks, which all do the same, nowhere."""
        kept = None if is_worker() else self.directory(root) / FIT / data
        return Fitting(max(1, round(epochs)), kept, show)

    def _keep(self, directory: Path, found: Sequence[Mapping[str, Scored]], *spent: Path) -> None:
        """Scores that no evaluation of a run has, of each of several runs; what they took is not needed any more."""
        scores = [{name: [one.value, one.error, one.count] for name, one in told.items()} for told in found]
        directory.mkdir(parents=True, exist_ok=True)
        with StopRequest():
            write_whole(directory / "scores.json", json.dumps({"data": self.fingerprint(), "scores": scores}) + "\n")
            for one in spent:
                shutil.rmtree(one, ignore_errors=True)

    def _kept(self, directory: Path, place: int, epochs: float) -> Result | None:
        """What `_keep` left of a run."""
        file = directory / "scores.json"
        if not file.is_file():
            return None
        try:
            told = json.loads(file.read_text())
            scores = {name: Scored(*score) for name, score in told["scores"][place].items()}
            data = str(told["data"])
        except (ValueError, LookupError, TypeError, AttributeError):  # damaged: it is made again
            return None
        self._check(data, directory)
        return Result(scores, math.nan, epochs, self.run.seed, data, str(directory))

    @contextmanager
    def _alone(self, directory: Path) -> Iterator[None]:
        """In a directory that other processes may work in too, as soon as none does; ranks do not wait for others.

        Raises UserError where it cannot be written.
        """
        lock = FileLock(directory / AT_WORK, timeout=0)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not is_worker():
                lock.acquire()
        except Timeout:
            print(f"{self.key}: another process is at work on it; waiting until it ends", file=sys.stderr, flush=True)
            lock.acquire(timeout=-1)
        except OSError as error:
            raise UserError(f"{directory} cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            lock.release()

    def _check(self, made_of: str, where: Path) -> None:
        if made_of != self.fingerprint():
            raise UserError(
                f"{where} was made of data {made_of}, {self.run.data} is {self.fingerprint()}: remove that directory, "
                "or reproduce with the same data"
            )


@dataclass(frozen=True)
class Trained(Work):
    """A training run, and the evaluation of one of its checkpoints on test data."""

    configuration: Run
    metrics: tuple[str, ...]
    """Metrics that its evaluation has to have, without the split."""
    checkpoint: Which = "best"
    samples: int = 0
    """Importance samples."""
    few: int = 0
    """Test rows, evenly spaced; 0 is all."""
    studies: tuple[Study, ...] = STUDIES

    @property
    def run(self) -> Run:
        return self.configuration

    @property
    def key(self) -> str:
        return f"{self.run.recipe}-{config.identity(self.run)}"

    def in_precision(self, precision: Precision) -> Trained:
        return replace(self, configuration=config.override(self.run, {"engine.precision": precision}))

    def directory(self, root: Path) -> Path:
        """Where it is, or will be: its own, or that of a finished run which MLflow knows."""
        own = root / self.key
        known = None if own.exists() else archived(config.identity(self.run), self.fingerprint())
        return (directory_of(known) if known else None) or own

    def share(self, root: Path) -> float:
        """Steps done."""
        return Checkpoints(self.directory(root) / "checkpoints").reached() / self.run.train.steps

    def done(self, root: Path) -> Result | None:
        directory = self.directory(root)
        file = directory / evaluation_file("test", self.checkpoint, self.few)
        if not file.is_file():
            return self._recorded(root)
        told = _told(file)
        if told.get("trained", -1) < self.run.train.steps or (self.samples and told["samples"] != self.samples):
            return None  # made before the training was at its end, or with other samples
        if not all(f"test/{metric}" in told["metrics"] for metric in self.metrics):
            return None
        self._check(told["data"], directory)
        scores = {
            name.removeprefix("test/"): Scored(value, told["errors"].get(name, math.nan), told["rows"][name])
            for name, value in told["metrics"].items()
        }
        return Result(scores, told["validation"], self._epochs(), self.run.seed, told["data"], str(directory))

    def _recorded(self, root: Path) -> Result | None:
        """What MLflow has of it, where the run itself is on another machine; without errors over rows."""
        known = archived(config.identity(self.run), self.fingerprint())
        if not known or self.directory(root).exists() or self.samples or self.few or self.checkpoint != "best":
            return None
        found = {name: value for name, value in known["metrics"].items() if name.startswith("test/")}
        validation = known["metrics"].get(chosen_by(self.run))
        if int(known["tags"].get("evaluation.test.trained", -1)) < self.run.train.steps:
            return None  # made before the training was at its end, or of rows that nobody wrote down
        if validation is None or not all(f"test/{metric}" in found for metric in self.metrics):
            return None
        rows = len(open_manifest(self.run.data).split("test"))
        scores = {name.removeprefix("test/"): Scored(value, math.nan, rows) for name, value in found.items()}
        return Result(
            scores, validation, self._epochs(), self.run.seed, self.fingerprint(), f"MLflow {known['run_id']}"
        )

    def _epochs(self) -> float:
        return self.run.train.steps * self.run.train.batch / len(open_manifest(self.run.data).split("train"))

    def _do(self, root: Path, show: Show) -> None:
        from pipeline.train import train

        directory = self.directory(root)
        if self.share(root) < 1 or not is_finished(directory):
            with StopRequest() as stop, show(self.run.train.steps, self.key) as on_step:
                result = train(self.run, directory, resume=True, identity=f"reproduce/{self.key}", on_step=on_step)
            if result.status == "preempted" or stop.asked:  # it may come when the last step is done
                raise Stopped
        self._judge(directory)

    def _judge(self, directory: Path) -> None:
        found = evaluate_run(directory, "test", self.run, self.samples, self.checkpoint, self.few, self.studies)
        lacking = [metric for metric in self.metrics if f"test/{metric}" not in found.metrics]
        if lacking:
            raise UserError(
                f"{directory}: no test row of {self.run.data} has what {', '.join(lacking)} "
                f"{'needs' if len(lacking) == 1 else 'need'}, or the rows that it is learnt from are all of one class: "
                "the table cannot be made of these data"
            )


@dataclass(frozen=True)
class Watched(Trained):
    """A training run, and what validation data said in its course: metrics are named `val/NAME@0.25`, the last value
    by a quarter of the training."""

    def done(self, root: Path) -> Result | None:
        directory = self.directory(root)
        file = directory / JOURNAL
        if self.share(root) < 1 or not file.is_file():
            return None
        self._check(checkpoint_of(directory, "last").meta["fingerprint"], directory)
        rows = len(open_manifest(self.run.data).split("val"))
        scores = {}
        for asked in self.metrics:
            name, _, share = asked.partition("@")
            values = [value for step, value in _course(directory, name) if step <= float(share) * self.run.train.steps]
            if not values:
                raise UserError(f"{file} has no {name} by {float(share):.0%} of the training: remove {directory}")
            scores[asked] = Scored(values[-1], math.nan, rows)
        return Result(scores, math.nan, self._epochs(), self.run.seed, self.fingerprint(), str(directory))

    def _judge(self, directory: Path) -> None:
        """Validation has said all."""


def _told(file: Path) -> dict[str, Any]:
    """What an evaluation left; nothing where it was cut off."""
    try:
        told: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        return {}
    return told if {"trained", "metrics", "errors", "rows", "data", "samples", "validation"} <= set(told) else {}


def _course(directory: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in order of steps."""
    return sorted((step, values[name]) for step, values in points(directory) if name in values)


Baseline = Callable[[list[Run], Fitting], list[dict[str, Scored]]]
"""Scores on test data of a baseline that is given the pairs of each of these runs, which differ in pairing only."""


@dataclass(frozen=True)
class Fitted(Work):
    """A baseline, fitted on the pairs of several runs that differ in these only: what needs no pairs is done once.

    The work is one whichever of the runs is asked for.
    """

    name: str
    baseline: Baseline = field(repr=False, compare=False)
    runs: tuple[Run, ...]
    place: int
    """Of the run whose scores these are."""
    epochs: float
    """0 where it takes none."""
    settings: str = ""
    """Whatever else its result depends on, in words."""

    @property
    def run(self) -> Run:
        return self.runs[self.place]

    @property
    def key(self) -> str:
        told = json.dumps([self.name, self.epochs, self.settings, [config.identity(run) for run in self.runs]])
        return f"{self.run.recipe}-{self.name}-{xxhash.xxh3_64_hexdigest(told.encode())}"

    @property
    def steps(self) -> int:
        return self.run.train.steps if self.epochs else 0

    def done(self, root: Path) -> Result | None:
        return self._kept(root / self.key, self.place, self.epochs)

    def _do(self, root: Path, show: Show) -> None:
        directory = self.directory(root)
        fitting = self._fitting(root, self.epochs, self.fingerprint(), show)
        self._keep(directory, self.baseline(list(self.runs), fitting), directory / FIT)

    def share(self, root: Path) -> float:
        return 1.0 if self.done(root) else self._fitting(root, self.epochs, self.fingerprint()).share(self.runs[0])
