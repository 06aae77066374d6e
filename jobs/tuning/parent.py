"""A sweep's own run: what is checked and written before its first trial, and what is made of all of them at the end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UserError, nearest
from infra.preemption import REQUEUE
from jobs.tuning.ledger import Ledger, best_so_far
from jobs.tuning.written import save
from pipeline import config
from pipeline.recipes.sweep import Sweep
from pipeline.settings import check
from pipeline.sweep_table import Baseline, Trial, best_trials, draw, show, write_csv

if TYPE_CHECKING:
    from infra.tracking import Tracker

UNFINISHED = "not finished"
AT_WORK = "sweep.lock"
"""In a sweep's directory: held by the one driver of its trials, or by all processes that have joined."""


@dataclass
class Parent:
    """A sweep that has begun, and whose record this process writes."""

    plan: Sweep
    directory: Path
    manifest: Any
    identity: str
    """To MLflow."""
    tracker: Tracker | None
    status: str | None = "FAILED"
    """How the sweep has ended, once this process lets go of its record; None while others are at work."""


@dataclass(frozen=True)
class Ended:
    """What came of a sweep."""

    plan: Sweep
    """With its columns and its store."""
    trials: list[Trial]
    baselines: list[Baseline]
    best: list[Trial]
    """Of each supervision fraction."""
    failed: list[Trial]
    cut: bool
    """Whether trials are left."""
    files: list[Path]

    @property
    def code(self) -> int:
        """With which the job ends."""
        return 1 if self.failed else REQUEUE if self.cut else 0


def is_fresh(directory: Path) -> bool:
    """Whether nothing is there but what processes lock, which have written nothing yet."""
    return not directory.exists() or (
        directory.is_dir() and all(file.name in (AT_WORK, "training.lock") for file in directory.iterdir())
    )


@contextmanager
def at_work(directory: Path, joined: bool) -> Iterator[None]:
    """Keep a driver from trials that others train, and those that join from what a driver trains.

    Raises UserError where that is so, or the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / AT_WORK).open("a+")  # over NFS a shared lock has to be readable, an exclusive one writable
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}); choose another --out") from None
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if joined else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory}: other processes are at work on this sweep; "
                + ("they do not share it: wait until they end" if joined else "share it with --join, or wait")
            ) from None
        except OSError as error:
            check(
                not joined,
                f"{directory}: its file system has no locks ({error.strerror}), by which processes share a sweep; "
                "choose another --out, or leave --join away",
            )
        yield


@contextmanager
def parent_run(plan: Sweep, directory: Path) -> Iterator[Parent]:
    """Check a sweep, write it down, and keep its MLflow run, the same one in a directory that is a sweep's already.

    Raises UserError where the sweep cannot work.
    """
    from infra.store import prepare_store
    from infra.tracking import Tracker
    from pipeline.data import check_data
    from pipeline.record import destination

    manifest = check_data(plan.run)
    plan = _whole(plan)
    save(plan, directory)
    where = destination(plan.run, directory)  # a sweep that is resumed keeps its identity, a new one gets its own
    tracker = None
    if plan.run.tracking.enabled:  # the store is made, and the parent run named, before any trial asks for them
        prepare_store(where.uri, where.experiment, None)
        tracker = Tracker(directory, where)
        tracker.params({f"grid.{key}": list(values) for key, values in plan.grid.items()})
        tracker.params({f"sample.{key}": str(draw) for key, draw in plan.sample.items()})
        base = config.flatten(config.to_dict(plan.run))
        tracker.params({key: value for key, value in base.items() if key not in plan.keys})
        tracker.tags(
            {
                "mlflow.source.name": f"pairstream sweep {plan.run.recipe}", "mlflow.source.type": "LOCAL",
                "pairstream.sweep": plan.run.recipe, "pairstream.data": manifest.fingerprint,
                "pairstream.directory": str(directory), "pairstream.metric": plan.metric,
                "pairstream.direction": plan.direction,
            }
        )  # fmt: skip
    parent = Parent(plan, directory, manifest, where.identity, tracker)
    try:
        yield parent
    except SystemExit:  # told to stop
        parent.status = "KILLED"
        raise
    finally:
        if tracker:
            tracker.close(parent.status)


def conclude(parent: Parent, command: str) -> Ended:
    """The table, the CSV file and the picture of all trials so far; the models of the best ones go to MLflow."""
    from pipeline.record import settle

    plan, directory, tracker = parent.plan, parent.directory, parent.tracker
    trials, baselines = _trials(plan, directory), _baselines(plan, parent.manifest)
    for trial in trials:  # what was ended in the midst of its last words
        if trial.error != UNFINISHED:
            settle(trial.directory, "FAILED" if trial.error else "FINISHED")
    files = [write_csv(plan, trials, baselines, command, directory / "table.csv")]
    picture = draw(plan, trials, baselines, directory / "supervision.png")
    files += [picture] if picture else []
    show(plan, trials, baselines)
    best = [trials[number] for number in best_trials(plan, trials)]
    failed = [trial for trial in trials if trial.error and trial.error != UNFINISHED]
    cut = len(trials) < plan.total or any(trial.error == UNFINISHED for trial in trials)
    parent.status = "FAILED" if failed else "KILLED" if cut else "FINISHED"
    if tracker:
        for file in files:
            tracker.artifact(file)
        shown = max(best, key=lambda trial: trial.pairs, default=Trial({}, directory, {}, 0))
        asked = (plan.metric, *plan.columns)
        tracker.metrics(len(trials), {name: value for name, value in shown.metrics.items() if name in asked})
        if plan.run.tracking.model:
            from pipeline.serving import log_model

            for trial in best:
                if not trial.error:
                    log_model(trial.directory)
    return Ended(plan, trials, baselines, best, failed, cut, files)


def look_further(directory: Path, ended: Ended) -> None:
    """The exact commands and files that say more."""
    plan = ended.plan
    for file in ended.files:
        print(f"written: {os.path.relpath(file)}")
    print("look further:")
    for trial in ended.best:
        if trial.stopped:
            continue  # it has none
        cell = ", ".join(f"{key} {value}" for key, value in trial.cell.items())
        print(f"  {os.path.relpath(trial.directory / 'pictures')}/    curves and cross-generations ({cell})")
    if ended.best:
        place = os.path.relpath(ended.best[-1].directory)
        train = f"train {plan.run.recipe} --from"
        for job, rest in (("evaluate", " --split val"), ("generate", ""), (train, " --seeds 3")):
            print(f"  pairstream {job} {place}{rest}")
    if plan.run.tracking.enabled:
        uri = plan.run.tracking.uri or ""
        print(f"  pairstream review --filter {directory.name}")
        print(f"  mlflow ui --backend-store-uri {uri}" if not uri.startswith("http") else f"  {uri}")


def _whole(plan: Sweep) -> Sweep:
    """The sweep with its columns and its store. Raises UserError where its trials could not be compared."""
    from infra.store import default_uri
    from pipeline.evaluate.classification import metric_name, questions
    from pipeline.evaluate.validation import validation_names
    from pipeline.objectives.systems import unused

    known = validation_names(plan.run)
    if plan.metric not in known:
        raise UserError(f"the sweep's metric: no validation metric {plan.metric!r}" + nearest(plan.metric, known))
    same = [key for key in unused(plan.run) if key in plan.keys and "model.system" not in plan.keys]
    if same:
        raise UserError(
            f"the sweep varies {', '.join(same)}, which model.system = {plan.run.model.system} makes no use of: its "
            "trials would be the same runs; leave it out, or choose another system"
        )
    accuracies = (f"test/{metric_name(label, given)}" for label, given in questions(plan.run))
    run = config.override(plan.run, {"tracking.uri": plan.run.tracking.uri or default_uri()})
    return replace(plan, run=run, columns=plan.columns or (*accuracies, "test/elbo"))


def _trials(plan: Sweep, directory: Path) -> list[Trial]:
    """What became of every trial that was begun."""
    ledger, found = Ledger(directory), []
    for entry in ledger.entries:
        place, outcome = directory / entry.name, ledger.outcome(entry)
        metrics = outcome.metrics if outcome and outcome.metrics else best_so_far(place, plan.metric, plan.direction)
        error = UNFINISHED if outcome is None else outcome.error
        stopped = outcome is not None and outcome.ending == "stopped"
        found.append(Trial(entry.cell, place, metrics, outcome.pairs if outcome else 0, error, stopped))
    return found


def _baselines(plan: Sweep, manifest: Any) -> list[Baseline]:
    """Logistic regression on the pairs of each view that was swept, for the accuracies among the table's columns."""
    from pipeline.baselines import complete_samples, logistic_regression
    from pipeline.evaluate.classification import metric_name, questions

    keys = [key for key in plan.grid if key == "seed" or key.startswith("pairing.")]
    found = []
    for values in product(*(plan.grid[key] for key in keys)):
        cell = dict(zip(keys, values, strict=True))
        run = config.override(plan.run, cell)
        scores = {}
        for label, given in questions(run):
            column = f"test/{metric_name(label, given)}"
            if column in plan.columns:
                scores[column] = logistic_regression(manifest, run, label, given)
        found.append(Baseline(cell, len(complete_samples(manifest, run, "train", run.pairing)), scores))
    return found
