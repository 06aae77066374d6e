"""Runs the trials of a sweep through Ray Tune. Only what jobs/tuning/ holds knows Ray."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.progress import Progress

from infra.distributed import cores
from infra.errors import UserError
from jobs.tuning.ledger import Ledger, Outcome, end, outcome_in
from jobs.tuning.plan import Plan, scheduler
from jobs.tuning.pulse import watched
from jobs.tuning.ranks import bundles
from jobs.tuning.stall import WHY
from jobs.tuning.trial import Setting, name_of_trial, trial
from pipeline import config
from pipeline.recipes.sweep import Sweep

ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
}  # fmt: skip
"""The last: seconds that a trial has to save after its scheduler has stopped it."""


@dataclass(frozen=True)
class Resources:
    """What the sweep may use."""

    cpus: float = 1
    """Of each rank."""
    gpus: float = 0
    """Of each rank."""
    ranks: int = 1
    """Of each trial."""
    hours: float = 0
    """Of the whole sweep; 0 is as long as it takes."""
    retries: int = 2
    """How often a trial is begun anew from its checkpoint where its worker or machine was lost."""
    stall: float = 0
    """Minutes without a step after which a trial hangs; 0 is never."""
    address: str = ""
    """Of a Ray cluster that runs already; empty starts Ray on this machine."""


def run_trials(sweep: Sweep, directory: Path, identity: str, resources: Resources, lost: Callable[[], None]) -> None:
    """All trials that have not ended, each in a directory of its own; what became of them is in the ledger. Where the
    cluster's head is lost, `lost` is called in another thread, and nothing of Ray's returns: it has to end the process.

    Raises UserError where no Ray answers at the address, or has not what one trial needs.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ledger = Ledger(directory)
    if len(ledger.entries) >= sweep.total and all(map(ledger.over, ledger.entries)):
        return
    plan = Plan(sweep, ledger)
    setting = Setting(
        config.to_dict(sweep.run),
        str(directory),
        identity,
        sweep.metric,
        uuid.uuid4().hex,
        sweep.scheduler == "pbt",
        resources.ranks,
        resources.stall,
    )
    _connect(resources)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what befalls a trial is told in a sentence
    try:
        with Progress(console=Console(stderr=True)) as bar:
            left = plan.left
            given: dict[str, Any] = {"search_alg": plan, "num_samples": left}
            space: dict[str, Any] = {}
            if sweep.scheduler == "pbt":  # takes no searcher beside itself
                given, space = {}, plan.everything()
            watch = _Watch(bar, bar.add_task(f"{sweep.total} trials", total=left), directory, resources.hours)
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(trial, setting=setting), _asked(resources)
                ),
                param_space=space,
                tune_config=tune.TuneConfig(
                    **given, metric=sweep.metric, mode=sweep.direction, scheduler=scheduler(sweep), reuse_actors=True,
                    time_budget_s=3600 * resources.hours or None,
                ),
                run_config=tune.RunConfig(
                    name="ray", storage_path=str(directory), verbose=0, callbacks=[watch],
                    failure_config=tune.FailureConfig(max_failures=resources.retries),
                ),
            )  # fmt: skip
            with _ending_as_interrupted(), watched(ray.get_runtime_context().gcs_address, lost):
                tuner.fit()
    finally:
        ray.shutdown()


@contextmanager
def _ending_as_interrupted() -> Iterator[None]:
    """TERM, USR1 and USR2 do what Ray does on INT: it ends its trials, and the sweep can go on later."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _asked(resources: Resources) -> Any:
    if resources.ranks == 1:
        return {"cpu": resources.cpus, "gpu": resources.gpus}
    return bundles(resources.ranks, resources.cpus, resources.gpus)


def _connect(resources: Resources) -> None:
    if resources.address:
        try:
            ray.init(
                resources.address, log_to_driver=False, logging_level=logging.ERROR,
                runtime_env={"env_vars": ENVIRONMENT},
            )  # fmt: skip
        except (ConnectionError, ValueError) as error:
            reason, *_ = str(error.__cause__ or error).splitlines()  # the cause tells of a token that is asked for
            raise UserError(
                f"no Ray cluster answers at {resources.address} ({reason}): start one, or leave --ray away"
            ) from None
    else:
        ray.init("local", num_cpus=cores(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    there = ray.cluster_resources()
    for name, wanted in (("CPU", resources.cpus * resources.ranks), ("GPU", resources.gpus * resources.ranks)):
        if wanted > there.get(name, 0):
            ray.shutdown()
            raise UserError(f"a trial asks for {wanted:g} {name}s, there are {there.get(name, 0):g}")


class _Watch(tune.Callback):
    """Moves the progress bar, and writes down which trials a scheduler has stopped."""

    def __init__(self, bar: Progress, task: Any, directory: Path, hours: float) -> None:
        self.bar, self.task, self.directory, self.over = bar, task, directory, 0
        self.deadline = time.monotonic() + 3600 * hours if hours else float("inf")

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.Callback, ()  # Ray saves its callbacks; a bar on this terminal is nothing to save

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        directory = self._place(trial)
        if time.monotonic() >= self.deadline and outcome_in(directory) is None:
            return  # the sweep's time is over, not the trial's: --resume goes on with it
        if outcome_in(directory) is None:
            end(directory, Outcome("stopped", int((trial.last_result or {}).get("step", 0))))
        for statistics in (trial.run_metadata.metric_n_steps, trial.run_metadata.metric_analysis):
            statistics.clear()  # most of what the driver keeps of a trial, and nobody asks for it
        self._say(trial, "done")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = self._why(trial) or "has lost its worker"
        print(f"trial {self._place(trial).name}: {reason}: it goes on in another process", file=sys.stderr, flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = self._why(trial) or str(trial.get_error() or "lost")
        reason = reason.strip().splitlines()[-1]
        end(self._place(trial), Outcome("failed", 0, error=reason))
        self._say(trial, "failed")

    def _why(self, trial: Any) -> str:
        """What the trial has left to say of its end; empty where it could not."""
        file = self._place(trial) / WHY
        return file.read_text().strip() if file.is_file() else ""

    def _place(self, trial: Any) -> Path:
        return self.directory / name_of_trial(self.directory, trial.trial_id, trial.config)

    def _say(self, trial: Any, how: str) -> None:
        self.over += 1
        self.bar.advance(self.task)
        if not sys.stderr.isatty():
            print(f"trial {self._place(trial).name} {how} ({self.over})", file=sys.stderr, flush=True)
