"""Canonical correlations against scikit-learn, an eigenvalue problem and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA

from infra.errors import UserError
from pipeline.evaluate.correlation import Cca


def related(count: int, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Two views (count, 5) and (count, 4) of three shared numbers, neither centred nor of one scale."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    shared = rng.normal(size=(count, 3))
    views = (shared @ fixed.normal(size=(3, width)) + noise * rng.normal(size=(count, width)) for width in (5, 4))
    x, y = views
    return x * [1, 2, 3, 10, 0.1] + 7, y * [5, 1, 1, 0.2] - 3


def test_canonical_correlations_are_those_of_an_eigenvalue_problem_and_of_scikit_learn() -> None:
    x, y = related(400)
    cca = Cca.fit(x, y, 3, ridge=0.0)
    both = np.cov(x.T, y.T)
    within = both.copy()
    within[:5, 5:] = within[5:, :5] = 0
    values = eigh(both - within, within, eigvals_only=True)[::-1]  # [0 Sxy; Syx 0] w = ρ [Sxx 0; 0 Syy] w
    assert cca.canonical_K == pytest.approx(values[:3], abs=1e-10)
    theirs = CCA(n_components=3, max_iter=5000, tol=1e-12).fit(x, y).transform(x, y)
    ours = (x - cca.mean_N) @ cca.weight_NK, (y - cca.mean_M) @ cca.weight_MK
    for mine, other in zip(ours, theirs, strict=True):
        for k in range(3):
            assert abs(np.corrcoef(mine[:, k], other[:, k])[0, 1]) == pytest.approx(1, abs=1e-6)


def test_projected_training_pairs_are_white_and_correlate_coordinate_by_coordinate() -> None:
    x, y = related(300, seed=1)
    cca = Cca.fit(x, y, 4, ridge=0.0)
    one, other = (x - cca.mean_N) @ cca.weight_NK, (y - cca.mean_M) @ cca.weight_MK
    found = np.cov(one.T, other.T)
    assert found[:4, :4] == pytest.approx(np.eye(4), abs=1e-9)
    assert found[4:, 4:] == pytest.approx(np.eye(4), abs=1e-9)
    assert found[:4, 4:] == pytest.approx(np.diag(cca.canonical_K), abs=1e-9)
    assert (np.diff(cca.canonical_K) <= 0).all()


def test_the_ridge_is_in_units_of_the_average_variance_of_either_side() -> None:
    x, y = related(300, seed=2)
    ridge = 0.3
    cca = Cca.fit(x, y, 2, ridge)
    for side, weight in ((x, cca.weight_NK), (y, cca.weight_MK)):
        covariance = np.cov(side.T)
        regularised = covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        assert weight.T @ regularised @ weight == pytest.approx(np.eye(2), abs=1e-9)
    scaled = Cca.fit(1000 * x, y / 7, 2, ridge)
    assert scaled.correlation(1000 * x, y / 7) == pytest.approx(cca.correlation(x, y), abs=1e-9)
    assert cca.canonical_K[0] < Cca.fit(x, y, 2, 0.0).canonical_K[0]


def test_with_a_ridge_few_pairs_are_overfitted_less() -> None:
    rng = np.random.default_rng(3)

    def views(count: int) -> tuple[np.ndarray, np.ndarray]:
        """Two shared numbers, and beside them 60 and 30 that are noise."""
        shared = 3 * rng.normal(size=(count, 2))
        x, y = (np.hstack([shared, np.zeros((count, width))]) for width in (60, 30))
        return x + rng.normal(size=x.shape), y + rng.normal(size=y.shape)

    known, new = views(100), views(500)
    weak, strong = (Cca.fit(*known, 2, ridge) for ridge in (1e-6, 1.0))
    assert weak.correlation(*known).mean() > 0.97
    assert weak.correlation(*new).mean() < 0.4
    assert strong.correlation(*new).mean() > 0.7


def test_views_of_the_same_correlate_fully_and_independent_ones_not_at_all() -> None:
    rng = np.random.default_rng(4)
    x, turn = rng.normal(size=(2000, 4)), rng.normal(size=(4, 4))
    same = Cca.fit(x, x @ turn + 2, 4, ridge=0.0)
    assert same.canonical_K == pytest.approx(np.ones(4))
    new = rng.normal(size=(50, 4))
    assert same.correlation(new, new @ turn + 2) == pytest.approx(np.ones(50))
    assert same.correlation(2 * same.mean_N - new, new @ turn + 2) == pytest.approx(-np.ones(50))
    apart = Cca.fit(x, rng.normal(size=(2000, 4)), 4, ridge=0.0)
    assert abs(apart.correlation(rng.normal(size=(2000, 4)), rng.normal(size=(2000, 4))).mean()) < 0.04


def test_equation_4_by_hand_with_the_averages_of_the_training_pairs() -> None:
    """Not those of the pairs that are scored: a pair's correlation does not hang on which others are scored."""
    x, y = related(200, seed=5)
    cca = Cca.fit(x, y, 3, ridge=0.1)
    new_x, new_y = related(6, seed=6)
    new_x, new_y = new_x + 4, new_y - 1
    expected = []
    for one, other in zip(new_x, new_y, strict=True):
        phi = cca.weight_NK.T @ one - (x @ cca.weight_NK).mean(0)
        psi = cca.weight_MK.T @ other - (y @ cca.weight_MK).mean(0)
        expected.append(phi @ psi / np.linalg.norm(phi) / np.linalg.norm(psi))
    assert cca.correlation(new_x, new_y) == pytest.approx(expected, abs=1e-9)
    assert cca.correlation(new_x[2:3], new_y[2:3]) == pytest.approx(expected[2:3], abs=1e-9)


def test_what_lies_on_the_average_correlates_with_nothing() -> None:
    x, y = related(50, seed=7)
    cca = Cca.fit(x, y, 2, ridge=0.1)
    assert cca.correlation(cca.mean_N[None], y[:1]).tolist() == [0.0]


def test_numbers_in_float32_are_not_summed_in_float32() -> None:
    """A mean far from 0 would take the digits."""
    x, y = related(500, seed=8)
    rounded = (x + 3000).astype(np.float32), (y + 3000).astype(np.float32)
    exact = Cca.fit(rounded[0].astype(float), rounded[1].astype(float), 3, 0.01)
    assert Cca.fit(*rounded, 3, 0.01).correlation(*rounded) == pytest.approx(exact.correlation(*rounded), abs=1e-9)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = related(50)
    for dimensions in (0, 5):
        with pytest.raises(ValueError, match=f"{dimensions} dimensions: choose 1 to 4"):
            Cca.fit(x, y, dimensions, 0.1)
    with pytest.raises(UserError, match="singular"):
        Cca.fit(np.ones((50, 3)), y, 2, 0.1)
