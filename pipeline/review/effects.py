"""What each swept key does to the metric, over all settings of the other keys.

A mean at a value is over whatever the other keys were; in a whole grid these are the same at every value, in a random
search only about the same. The standard error is that of this mean, so it holds what the other keys do, and the noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from pipeline.review.groups import Aim, Group
from pipeline.review.rows import Row, number

FEW = 8
"""Values of a key that are shown one by one; of more numbers, quarters."""
QUARTERS = 4


@dataclass(frozen=True)
class Level:
    """The runs at one value of a key, or at a quarter of its values."""

    value: str
    count: int
    mean: float
    error: float
    """Standard error of the mean; NaN of a single run."""


@dataclass(frozen=True)
class Effect:
    """Of one key."""

    key: str
    levels: tuple[Level, ...]
    explained: float
    """Share of the metric's variance that lies between the levels, 0 to 1; NaN where the metric does not vary."""
    rank_correlation: float
    """Spearman's, of a key of at least three numbers and the metric; NaN of any other."""
    p_value: float
    """Of no rank correlation, two-sided."""


@dataclass(frozen=True)
class Effects:
    """Of a sweep, the strongest first."""

    metric: str
    direction: str
    effects: tuple[Effect, ...]
    used: int
    failed: int
    """Left out: they failed."""
    silent: int
    """Left out: they report no finite value of the metric."""

    @property
    def balanced(self) -> bool:
        """Whether every value of every key has as many runs as the key's others."""
        return all(len({level.count for level in effect.levels}) == 1 for effect in self.effects)


def can_tell(group: Group) -> bool:
    """Whether something was swept and at least two runs that did not fail report the metric."""
    return bool(group.swept) and len(comparable(group)) >= 2


def comparable(group: Group) -> list[Row]:
    """The runs that did not fail and report a finite value of the metric."""
    return [row for row in group.rows if group.aim and group.aim.of(row) is not None and row.status != "FAILED"]


def effects_of(group: Group) -> Effects:
    """Raises UserError where no key was swept, or fewer than two runs report the metric."""
    aim, known = group.aim, comparable(group)
    if not group.swept:
        raise UserError(
            f"--effects: nothing was swept in {group.name}: the configurations of its {len(group.rows)} runs are the "
            "same; choose a sweep with --filter NAME"
        )
    if aim is None or len(known) < 2:
        what = aim.metric if aim else "any metric"
        raise UserError(f"--effects: {len(known)} runs of {group.name} report {what}, and two are the least")
    found = [_effect(key, known, aim) for key in group.swept]
    found.sort(key=lambda effect: -effect.explained if math.isfinite(effect.explained) else 1.0)
    failed = sum(row.status == "FAILED" for row in group.rows)
    silent = len(group.rows) - failed - len(known)
    return Effects(aim.metric, aim.direction, tuple(found), len(known), failed, silent)


def _effect(key: str, rows: Sequence[Row], aim: Aim) -> Effect:
    rows = [row for row in rows if key in row.params]
    scores = np.array([aim.of(row) for row in rows], float)
    levels = levels_of(key, rows)
    groups = {name: scores[places] for name, places in levels.items()}
    total = float(np.square(scores - scores.mean()).sum())
    between = sum(len(part) * float(part.mean() - scores.mean()) ** 2 for part in groups.values())
    numbers = [number(row.params[key]) for row in rows]
    rho, p_value = math.nan, math.nan
    if None not in numbers and len(set(numbers)) > 2 and total:
        from scipy.stats import spearmanr  # type: ignore[import-untyped]

        with warnings.catch_warnings():  # of too few runs for a p-value
            warnings.simplefilter("ignore", RuntimeWarning)
            rho, p_value = map(float, spearmanr(numbers, scores))
    return Effect(
        key,
        tuple(Level(name, len(part), float(part.mean()), standard_error(part)) for name, part in groups.items()),
        between / total if total else math.nan,
        rho,
        p_value,
    )


def standard_error(values: np.ndarray) -> float:
    """Of the mean of a sample; NaN of one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def levels_of(key: str, rows: Sequence[Row]) -> dict[str, list[int]]:
    """By value of the key, in order: the places of its rows. Many numbers are divided into quarters of the rows."""
    values = [row.params[key] for row in rows]
    numbers = [number(value) for value in values]
    if None in numbers or len(set(numbers)) <= FEW:
        names = sorted(set(values), key=lambda value: (number(value) is None, number(value) or 0.0, value))
        return {name: [place for place, value in enumerate(values) if value == name] for name in names}
    told = np.array(numbers, float)
    edges = np.quantile(told, np.linspace(0, 1, QUARTERS + 1)[1:-1])
    quarter = np.searchsorted(edges, told, side="left")
    parts = [np.flatnonzero(quarter == place) for place in range(QUARTERS)]
    return {f"{told[part].min():.3g} to {told[part].max():.3g}": part.tolist() for part in parts if len(part)}
