"""Runs that belong together: the trials of a sweep, and the runs on their own; by which metric they are compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from infra.errors import UserError
from pipeline.review.rows import DIRECTION, METRIC, SWEEP, Row, hint, number, ordered, varying, written

SPLITS = r"^(best/)?((val|test|train)/)?"
SMALLER = {
    "loss", "nll", "error", "mse", "mae", "perplexity", "frechet", "fid", "distance", "kl", "variance", "wait", "norm",
    "seconds", "memory", "corrupt",
}  # fmt: skip
"""Words of metrics of which less is better."""
ALONE = "runs on their own"
USUAL = "val/elbo"


@dataclass(frozen=True)
class Aim:
    """The metric by which runs are compared."""

    metric: str
    direction: str
    """"max" or "min"."""

    def of(self, row: Row) -> float | None:
        """A run's value, or None."""
        return number(row.metrics.get(self.metric))

    def best(self, rows: Sequence[Row]) -> Row | None:
        """The first of the best; None where no run has the metric."""
        known = [row for row in rows if self.of(row) is not None]
        pick = max if self.direction == "max" else min
        return pick(known, key=lambda row: self.of(row) or 0.0, default=None)

    def sorted(self, rows: Sequence[Row]) -> list[Row]:
        """The best first, those without a value last."""
        return ordered(rows, ("-" if self.direction == "max" else "") + self.metric)


def runs_of(rows: Sequence[Row]) -> list[Row]:
    """Those that trained something: all but the sweeps."""
    sweeps = _sweeps(rows)
    return [row for row in rows if row.identity not in sweeps]


def _sweeps(rows: Sequence[Row]) -> dict[str, Row]:
    above = {row.parent for row in rows if row.parent}
    return {row.identity: row for row in rows if row.identity and (row.identity in above or SWEEP in row.tags)}


@dataclass(frozen=True)
class Group:
    """A sweep and those of its trials that are looked at; the runs on their own where there is no sweep."""

    name: str
    """The sweep's, with its id where another one is called the same."""
    parent: Row | None
    rows: Sequence[Row]
    aim: Aim | None
    """None where no run reports a metric."""

    @cached_property
    def swept(self) -> list[str]:
        """The keys of which the runs hold several values."""
        return varying(self.rows)

    @cached_property
    def best(self) -> Row | None:
        return self.aim.best(self.rows) if self.aim else None

    @property
    def sentence(self) -> str:
        """Which run is the best; empty where none is known."""
        if not self.aim or not self.best:
            return ""
        settings = ", ".join(f"{key} {written(key, value)}" for key, value in self.told["settings"].items())
        what, value = "largest" if self.aim.direction == "max" else "smallest", self.aim.of(self.best)
        told = f"best ({what} {self.aim.metric}): {self.best.name}, {written(self.aim.metric, value)}"
        return f"{told}; {settings}" if settings else told

    @property
    def told(self) -> dict[str, Any]:
        """The best run as plain values."""
        best = {"sweep": self.parent.name if self.parent else None}
        if not self.aim or not self.best:
            return best
        settings = {key: self.best.params.get(key) for key in self.swept}
        return best | {
            "metric": self.aim.metric, "direction": self.aim.direction, "value": self.aim.of(self.best),
            "run_id": self.best.run_id, "name": self.best.name, "settings": settings,
        }  # fmt: skip


def aim_of(rows: Sequence[Row], metric: str = "", direction: str = "", sweep: Row | None = None) -> Aim | None:
    """What the runs are compared by. Where no metric is given: their sweep's, or what picked their checkpoints, else
    val/elbo.

    The direction is that of train.best_is where it applies; errors, distances and the like are better small.
    """
    chosen = Counter((row.params.get("train.best", USUAL), row.params.get("train.best_is", "max")) for row in rows)
    ((picked, is_better), _), *_ = chosen.most_common(1) or [((USUAL, "max"), 0)]
    if sweep and METRIC in sweep.tags:
        picked, is_better = sweep.tags[METRIC], sweep.tags.get(DIRECTION, "max")
    if not metric:
        reported = Counter(key for row in rows for key in row.metrics)
        candidates = [f"best/{picked.removeprefix('val/')}", picked, USUAL]
        metric = max(candidates, key=lambda key: reported[key])  # the first of those that most runs report
        if not reported[metric]:
            return None
    if not direction:
        same = re.sub(SPLITS, "", metric) == re.sub(SPLITS, "", picked)
        words = set(re.split(r"[^a-z]+", metric.lower()))
        direction = is_better if same else "min" if words & SMALLER else "max"
    return Aim(metric, direction)


def check_metric(rows: Sequence[Row], metric: str) -> None:
    """Raise UserError where no run reports a metric."""
    if metric and rows and not any(metric in row.metrics for row in rows):
        known = sorted({key for row in rows for key in row.metrics})
        raise UserError(f"--metric: no run reports {metric!r}" + hint(metric, known))


def grouped(
    rows: Sequence[Row], wanted: Sequence[Row], sort: str = "", metric: str = "", direction: str = ""
) -> list[Group]:
    """The wanted runs: sweeps with their trials, the newest first, then the runs on their own.

    `rows` are all that there are, among them the sweeps of wanted trials. Without `sort` a sweep's best trial, and
    the newest run on its own, come first.
    """
    sweeps = _sweeps(rows)
    above = {row.parent for row in rows}
    trials: dict[str, list[Row]] = {
        row.identity: [] for row in wanted if row.identity in sweeps and row.identity and row.identity not in above
    }
    alone = []
    for row in wanted:
        if row.parent and row.parent in sweeps:
            trials.setdefault(row.parent, []).append(row)
        elif row.identity not in sweeps:
            alone.append(row)

    names = Counter(sweeps[identity].name for identity in trials)

    def group(parent: Row | None, members: list[Row]) -> Group:
        aim = aim_of(members, metric, direction, parent)
        if sort:
            members = ordered(members, sort)
        else:
            members = aim.sorted(members) if parent and aim else ordered(members, "-start")
        if not parent:
            return Group(ALONE, None, members, aim)
        named = f"{parent.name} ({parent.run_id[:8]})" if names[parent.name] > 1 else parent.name
        return Group(named, parent, members, aim)

    found = [group(sweeps[identity], members) for identity, members in trials.items()]
    found.sort(key=lambda one: one.parent.start if one.parent else 0, reverse=True)
    return found + ([group(None, alone)] if alone else [])


def first(groups: Sequence[Group], limit: int) -> list[Sequence[Row]]:
    """Of each group the runs that are among the first so many of all; 0 is all."""
    left, shown = limit, []
    for group in groups:
        shown.append(group.rows[:left] if limit else group.rows)
        left -= len(shown[-1])
    return shown


def told_runs(groups: Sequence[Group], shown: Sequence[Sequence[Row]]) -> list[Row]:
    """Sweeps, each before those of its trials that are shown, and the other runs, in order."""
    pairs = zip(groups, shown, strict=True)
    return [row for group, rows in pairs for row in ([group.parent] if group.parent else []) + list(rows)]
