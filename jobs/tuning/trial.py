"""One trial: the training of a plain run, told to Ray after each validation where Ray has begun it, then its test
metrics."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import Timeout

from infra.checkpoint import Checkpoints
from infra.disk import write_whole
from infra.errors import UserError
from infra.journal import JOURNAL, points
from infra.preemption import LOST
from infra.store import sentence
from jobs.tuning.drain import DRAINED, stopping_on_drain
from jobs.tuning.ledger import TRIAL, Outcome, end, outcome_in
from jobs.tuning.stall import WHY, ending_when_stalled
from pipeline import config
from pipeline.config import Run

if TYPE_CHECKING:
    from pipeline.course import Result

NAME = "name"
"""Of a trial, among the keys that Ray knows."""
TIME = "validations"
"""What Ray's schedulers count in."""
DONOR, IDS = "donor.json", "ray-trials"
ATTEMPTS = 5
ORPHAN = 60
"""Seconds for a worker without a driver to end."""


@dataclass(frozen=True)
class Setting:
    """What all trials of a sweep share."""

    run: dict[str, Any]
    directory: str
    identity: str
    """Of the parent run."""
    metric: str
    session: str
    """Of the driver: one that takes over has heard nothing yet."""
    exploits: bool = False
    """Trials take over one another's weights (population-based training)."""
    ranks: int = 1
    """Of each trial."""
    stall: float = 0
    """Minutes without a step after which a trial hangs; 0 is never."""


@dataclass(frozen=True)
class Told:
    """What a trial has told the driver, and the settings that it has by now."""

    session: str = ""
    step: int = -1
    validations: int = 0
    changed: dict[str, Any] | None = None
    """Keys that population-based training has changed."""


def told_in(directory: Path) -> Told:
    """What a trial's directory says of this."""
    file = directory / TRIAL
    return Told(**json.loads(file.read_text())) if file.is_file() else Told()


def name_of_trial(sweep: Path, trial_id: str, settings: Mapping[str, Any]) -> str:
    """The trial that Ray's trial is: the name that it began with. Under population-based training its settings become
    those of another, name included."""
    file = sweep / IDS / trial_id
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_whole(file, settings[NAME])
    return file.read_text()


class Reporter:
    """Tells Ray of validations, those of earlier sessions too, each once; ends the training where Ray says so."""

    def __init__(self, setting: Setting, directory: Path) -> None:
        self.setting, self.directory = setting, directory
        told = told_in(directory)
        self.told = (
            told if told.session == setting.session else replace(told, session=setting.session, step=-1, validations=0)
        )
        self.over = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        from ray import tune

        if step > self.told.step and self.setting.metric in metrics:
            with tempfile.TemporaryDirectory() as place:
                donor = None
                if self.setting.exploits:  # where weights lie, not the weights: those have checkpoints of their own
                    (Path(place) / DONOR).write_text(json.dumps(str(self.directory)))
                    donor = tune.Checkpoint.from_directory(place)
                # no more than is asked of it: the driver keeps statistics of each number of each trial
                told = {
                    self.setting.metric: metrics[self.setting.metric],
                    "step": step,
                    TIME: self.told.validations + 1,
                }
                try:
                    tune.report(told, checkpoint=donor)
                except SystemExit:  # how Ray ends a function: the training saves first
                    self.over = True
            self.told = replace(self.told, step=step, validations=self.told.validations + 1)
            self.save()
        return self.over

    def replay(self) -> None:
        """What was told to a driver that is gone; of population-based training, which would change settings at each
        of these again, the last of it."""
        if (self.directory / JOURNAL).is_file():
            told = [point for point in points(self.directory) if self.setting.metric in point[1]]
            for step, metrics in told[-1:] if self.setting.exploits else told:
                if self(step, metrics):
                    return

    def save(self) -> None:
        write_whole(self.directory / TRIAL, json.dumps(asdict(self.told)) + "\n")


def trial(settings: Mapping[str, Any], setting: Setting) -> None:
    """What Ray calls, again where a worker or its machine was lost."""
    from ray import tune
    from ray.exceptions import RayActorError

    from jobs.tuning.ranks import on_ranks
    from pipeline.record import training_lock

    cell = {key: value for key, value in settings.items() if key != NAME}
    directory = Path(setting.directory) / name_of_trial(
        Path(setting.directory), tune.get_context().get_trial_id(), settings
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / WHY).unlink(missing_ok=True)  # of the attempt before
    reporter = Reporter(setting, directory)
    ended = outcome_in(directory)
    if setting.exploits and not ended:
        _take_over(reporter, cell)
    reporter.replay()
    if not (reporter.over or (ended and ended.ending != "failed")):
        run = config.override(config.from_dict(setting.run), cell)
        with contextlib.suppress(Timeout), training_lock(directory).acquire(timeout=ORPHAN):
            pass  # a worker that has lost its driver ends within seconds, and lets go
        try:
            if setting.ranks == 1:
                with stopping_on_drain(directory):
                    outcome = work(run, directory, setting, reporter)
            else:
                outcome = on_ranks(run, directory, setting, reporter)
        except UserError as error:
            if error.code == LOST:  # a rank: Ray begins the trial anew
                raise
            outcome = Outcome("failed", 0, error=str(error))
        except Exception as error:
            write_whole(directory / WHY, sentence(error) + "\n")  # Ray does not always know it
            raise
        if outcome:
            end(directory, outcome)
        elif not reporter.over:  # it has saved; so Ray begins it anew, and counts no failure
            raise RayActorError(error_msg=DRAINED, preempted=True)
    if reporter.over:
        sys.exit(0)  # as Ray has asked; what returns is told to Ray once more, and Ray does not listen any longer


class Report(Protocol):
    """Called after each validation; returns whether to stop, and knows afterwards whether it has said so."""

    over: bool

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool: ...


def work(run: Run, directory: Path, setting: Setting, report: Report | None = None) -> Outcome | None:
    """How the training ended; None where it was told to stop (by a scheduler, which may only mean a pause, or by a
    signal). Collective."""
    from pipeline.train import train

    identity = f"{setting.identity}/{directory.name}"
    with ending_when_stalled(directory, setting.stall) as on_step:
        result = train(
            run, directory, resume=True, report=report, identity=identity, parent=setting.identity, on_step=on_step
        )
    if (report and report.over) or result.status == "preempted":
        return None
    return finished(run, result)


def finished(run: Run, result: Result) -> Outcome:
    """What came of a training that has ended by itself: its test data are read here, once. Collective."""
    from pipeline.evaluate.run import evaluate_run

    best = result.best or {}
    evaluation = evaluate_run(result.directory, "test", run, studies=())
    metrics = {**result.metrics, **evaluation.metrics, best["metric"]: best["value"]}
    return Outcome("finished", result.step, metrics, result.rows.get("complete", result.rows.get("declared", 0)))


def _take_over(reporter: Reporter, cell: Mapping[str, Any]) -> None:
    """Under population-based training: the weights of the trial that Ray names, and settings near its own."""
    from ray import tune

    given = tune.get_checkpoint()
    if given is None:
        return
    directory = reporter.directory
    with given.as_directory() as place:
        donor = Path(json.loads((Path(place) / DONOR).read_text()))
    if donor == directory or reporter.told.changed == cell:
        return
    mine, fresh = directory / "checkpoints", directory / "checkpoints.tmp"
    for _ in range(ATTEMPTS):
        theirs = Checkpoints(donor / "checkpoints")
        try:
            wanted = {found.path for found in (theirs.latest()[0], theirs.best()) if found}
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            for path in wanted:
                shutil.copytree(path, fresh / path.name)
            break
        except (OSError, UserError):  # it trains on, and removes what is old
            time.sleep(1)
    else:
        return
    gone = directory / "checkpoints.gone"
    shutil.rmtree(gone, ignore_errors=True)
    if mine.exists():
        mine.rename(gone)
    fresh.rename(mine)
    shutil.rmtree(gone, ignore_errors=True)
    reporter.told = replace(reporter.told, changed=dict(cell))
    reporter.save()
