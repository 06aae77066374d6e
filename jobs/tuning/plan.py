"""Which trials Ray is given: those that were begun, then new ones; and Ray's own searchers and schedulers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from infra.errors import UserError
from jobs.tuning.ledger import Ledger
from jobs.tuning.trial import NAME, TIME, told_in
from pipeline.recipes.sweep import Draw, Sweep


class Plan(Searcher):
    """Hands out the trials of a sweep, each once; what a searcher chooses is written down before anybody sees it."""

    def __init__(self, sweep: Sweep, ledger: Ledger) -> None:
        super().__init__(sweep.metric, sweep.direction)
        self.sweep, self.ledger = sweep, ledger
        replaying = sweep.scheduler != "none" or sweep.search == "bohb"
        self.waiting = [entry for entry in ledger.entries if replaying or not ledger.over(entry)]
        self.chooser = _searcher(sweep, [dict(entry.cell) for entry in self.waiting])
        if self.chooser and not replaying:
            for entry in ledger.entries:
                outcome = ledger.outcome(entry)
                if ledger.over(entry) and outcome and sweep.metric in outcome.metrics:
                    self.chooser.add_evaluated_point(dict(entry.cell), outcome.metrics[sweep.metric])

    @property
    def left(self) -> int:
        """Trials to hand out."""
        return len(self.waiting) + self.sweep.total - len(self.ledger.entries)

    def suggest(self, trial_id: str) -> Any:
        if not self.left:
            return Searcher.FINISHED
        chosen = self.chooser.suggest(trial_id) if self.chooser else None
        if self.chooser and (chosen is None or chosen == Searcher.FINISHED):
            return chosen  # it waits for results
        if self.waiting:
            entry = self.waiting.pop(0)
        else:
            cell = chosen or self.sweep.cell(len(self.ledger.entries))
            entry = self.ledger.begin({key: np.asarray(value).item() for key, value in cell.items()})  # of JSON's kinds
        changed = told_in(self.ledger.directory / entry.name).changed
        return {NAME: entry.name, **(changed or entry.cell)}

    def everything(self) -> dict[str, Any]:
        """All trials at once, as a grid of Ray's own."""
        found = {}
        while self.left:
            settings = self.suggest("")
            found[settings.pop(NAME)] = settings
        space = {key: tune.sample_from(_Looked(found, key)) for key in self.sweep.keys}
        return {NAME: tune.grid_search(list(found)), **space}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.chooser:
            self.chooser.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self.chooser:
            self.chooser.on_trial_complete(trial_id, result, error)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """The ledger is saved already, and nothing of Ray's is read again."""


@dataclass(frozen=True)
class _Looked:
    """A key's value, by the name of the trial."""

    settings: Mapping[str, Mapping[str, Any]]
    key: str

    def __call__(self, spec: Any) -> Any:
        return self.settings[spec["config"][NAME]][self.key]


def _searcher(sweep: Sweep, begun: Sequence[dict[str, Any]]) -> Searcher | None:
    """Ray's integration of Optuna or BOHB, which first chooses again what was begun. Raises UserError without its
    packages."""
    if sweep.search == "random":
        return None
    space = {key: _domain(draw) for key, draw in sweep.sample.items()}
    points = list(begun) or None
    try:
        if sweep.search == "optuna":
            from ray.tune.search.optuna import OptunaSearch

            return OptunaSearch(space, sweep.metric, sweep.direction, points, seed=sweep.run.seed)
        from ray.tune.search.bohb import TuneBOHB

        return TuneBOHB(
            TuneBOHB.convert_search_space(space),
            metric=sweep.metric,
            mode=sweep.direction,
            points_to_evaluate=points,
            seed=sweep.run.seed,
        )
    except (ImportError, AssertionError):
        packages = {"optuna": "optuna", "bohb": "hpbandster and ConfigSpace"}[sweep.search]
        raise UserError(
            f"--search {sweep.search} needs {packages}: pip install 'pairstream[{sweep.search}]', or take --search "
            "random"
        ) from None


def _domain(draw: Draw) -> Any:
    make: dict[str, Callable[..., Any]] = {
        "uniform": tune.uniform, "loguniform": tune.loguniform, "randint": tune.randint,
    }  # fmt: skip
    return tune.choice(list(draw.values)) if draw.kind == "choice" else make[draw.kind](*draw.values)


def scheduler(sweep: Sweep) -> TrialScheduler:
    """Ray's scheduler of that name. Validations are its time, of which it never sees the end: a trial that comes so far
    ends by itself, with its test metrics."""
    train = sweep.run.train
    most = -(-train.steps // (train.validate_every or train.steps)) + 1
    if sweep.scheduler == "asha":
        return ASHAScheduler(time_attr=TIME, max_t=most, grace_period=1, reduction_factor=3)
    if sweep.scheduler == "hyperband":
        kind = HyperBandForBOHB if sweep.search == "bohb" else HyperBandScheduler
        return kind(time_attr=TIME, max_t=most)
    if sweep.scheduler == "pbt":
        ranges = {key: _domain(draw) for key, draw in sweep.sample.items()}
        return PopulationBasedTraining(time_attr=TIME, perturbation_interval=2, hyperparam_mutations=ranges)
    return FIFOScheduler()
