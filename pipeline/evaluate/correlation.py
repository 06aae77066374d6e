"""Canonical correlation analysis, and the correlation of a pair of observations by it (MMVAE section 4.3, eq. 4).

Shape legend: R pairs, N and M numbers in an observation of either side, K dimensions of the projections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular  # type: ignore[import-untyped]

from infra.errors import UserError


@dataclass(frozen=True)
class Cca:
    """Projections of two sides that make them correlate most (Hotelling 1936), and where the sides' middles are.

    Projected, the pairs of the fit have uncorrelated coordinates of variance 1 (a little less with a ridge), and those
    of one coordinate correlate as `canonical_K` says. These correlations weigh nothing in eq. 4.
    """

    mean_N: np.ndarray
    mean_M: np.ndarray
    weight_NK: np.ndarray
    """W_1."""
    weight_MK: np.ndarray
    """W_2."""
    canonical_K: np.ndarray
    """The largest first."""

    @classmethod
    def fit(cls, x_RN: np.ndarray, y_RM: np.ndarray, dimensions: int, ridge: float) -> Cca:
        """Of training pairs: both sides are whitened, then W are the singular vectors of what they share.

        `ridge` is added to each side's variances, in units of its average variance: without it few pairs of many
        numbers are overfitted. Raises ValueError for more dimensions than either side has, and UserError where a side's
        covariance is singular for all its ridge.
        """
        most = min(x_RN.shape[1], y_RM.shape[1])
        if not 1 <= dimensions <= most:
            raise ValueError(f"{dimensions} dimensions: choose 1 to {most}")
        mean_N, mean_M = (side.mean(0, dtype=np.float64) for side in (x_RN, y_RM))
        x, y = x_RN - mean_N, y_RM - mean_M
        root_NN, root_MM = _root(x, ridge), _root(y, ridge)
        whitened_NM = solve_triangular(root_NN, x.T @ y / (len(x) - 1), lower=True)
        shared_NM = solve_triangular(root_MM, whitened_NM.T, lower=True).T
        left_NK, canonical, right_KM = np.linalg.svd(shared_NM, full_matrices=False)
        return cls(
            mean_N,
            mean_M,
            solve_triangular(root_NN, left_NK[:, :dimensions], lower=True, trans="T"),
            solve_triangular(root_MM, right_KM[:dimensions].T, lower=True, trans="T"),
            canonical[:dimensions],
        )

    def correlation(self, x_RN: np.ndarray, y_RM: np.ndarray) -> np.ndarray:
        """Eq. 4 of each pair, (R,): the cosine of W_1ᵀ x - avg(W_1ᵀ x_1) and W_2ᵀ y - avg(W_2ᵀ x_2).

        The averages are those of the pairs that W were fitted on, x_1 and x_2 in the paper, where x̃ are new ones. 0
        where a side lies right on its average, which points nowhere.
        """
        one_RK, other_RK = (x_RN - self.mean_N) @ self.weight_NK, (y_RM - self.mean_M) @ self.weight_MK
        lengths_R = np.linalg.norm(one_RK, axis=1) * np.linalg.norm(other_RK, axis=1)
        return np.divide((one_RK * other_RK).sum(1), lengths_R, out=np.zeros(len(lengths_R)), where=lengths_R > 0)


def _root(centred_RN: np.ndarray, ridge: float) -> np.ndarray:
    """The Cholesky factor L of the regularised covariance L Lᵀ: L⁻¹ x is white."""
    covariance_NN = centred_RN.T @ centred_RN / (len(centred_RN) - 1)
    variance = np.diagonal(covariance_NN).mean()
    try:
        return np.linalg.cholesky(covariance_NN + ridge * variance * np.eye(len(covariance_NN)))
    except np.linalg.LinAlgError:
        raise UserError(
            "the covariance of one side of the training pairs is singular, so they have no canonical correlations: its "
            "values do not vary, or vary together and need a ridge"
        ) from None
