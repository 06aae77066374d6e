"""A metric's value with its uncertainty and the number of rows behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
"""Resamples of a bootstrap."""


@dataclass(frozen=True)
class Scored:
    """A metric on a split."""

    value: float
    error: float
    """Its standard error over rows, NaN where it cannot be told (one row, or a number that rows do not make up)."""
    count: int
    """Rows that it is made of."""


def mean_of(values: np.ndarray) -> Scored:
    """Mean of one number a row, with the standard error of a mean; rows that are NaN do not count."""
    counted = np.asarray(values, np.float64)
    counted = counted[~np.isnan(counted)]
    return of_sums(float(counted.sum()), float(np.square(counted).sum()), len(counted))


def of_sums(total: float, squares: float, count: float) -> Scored:
    """The same from the sum of the values, the sum of their squares and their number, which ranks can add up."""
    if not count:
        return Scored(math.nan, math.nan, 0)
    mean = total / count
    spread = max(squares / count - mean * mean, 0.0)
    return Scored(mean, math.sqrt(spread / (count - 1)) if count > 1 else math.nan, int(count))


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, draws: int = DRAWS, seed: int = 0) -> Scored:
    """A statistic of rows, given as their numbers (R,), with its standard deviation over resamples of the rows.

    For what is no mean: BLEU, a correlation, a distance of distributions (Efron 1979). The same seed, the same error.
    """
    if not count:
        return Scored(math.nan, math.nan, 0)
    value = float(statistic(np.arange(count)))
    if count == 1:
        return Scored(value, math.nan, 1)
    generator = np.random.default_rng(seed)
    resampled = [statistic(generator.integers(0, count, count)) for _ in range(draws)]
    return Scored(value, float(np.std(resampled, ddof=1)), count)
