"""Values with their errors, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import sem

from pipeline.evaluate.scored import bootstrap, mean_of, of_sums

ROWS = np.random.default_rng(0).normal(3, 2, 500)


def test_a_mean_and_its_standard_error() -> None:
    score = mean_of(np.append(ROWS, [math.nan, math.nan]))
    assert (score.value, score.error, score.count) == (pytest.approx(ROWS.mean()), pytest.approx(sem(ROWS)), 500)
    apart = [of_sums(*(float(np.sum(part**power)) for power in (1, 2)), len(part)) for part in (ROWS[:7], ROWS[7:])]
    assert sum(one.value * one.count for one in apart) / 500 == pytest.approx(score.value)


def test_what_has_no_error_or_no_value() -> None:
    assert mean_of(np.array([2.0])).value == 2
    assert math.isnan(mean_of(np.array([2.0])).error)
    assert mean_of(np.full(9, 0.1)).error == pytest.approx(0, abs=1e-9)
    for nothing in (mean_of(np.array([math.nan])), bootstrap(lambda rows: 1 / 0, 0)):
        assert math.isnan(nothing.value)
        assert nothing.count == 0


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    score = bootstrap(lambda rows: float(ROWS[rows].mean()), 500)
    assert score.value == pytest.approx(ROWS.mean())
    assert score.error == pytest.approx(sem(ROWS), rel=0.1)  # of 1,000 draws: 2 % off by chance
    assert score == bootstrap(lambda rows: float(ROWS[rows].mean()), 500)
    assert bootstrap(lambda rows: float(ROWS[rows].mean()), 500, seed=1).error != score.error
