"""The sub-sampled ELBO of MVAE (Wu & Goodman 2018, eq. 5): joint + every single modality + k random subsets.

Shape legend: T terms, B rows, M modalities.
"""

from __future__ import annotations

import numpy as np

from pipeline.objectives.plan import Plan
from pipeline.order import seed_of
from pipeline.posteriors import Posterior
from pipeline.settings import Objective


def random_subsets(count: int, modalities: int, seed: int, step: int) -> np.ndarray:
    """(count, modalities) boolean: subsets drawn uniformly from the non-empty ones, the same on every rank."""
    subsets = np.zeros((count, modalities), bool)
    if not count:
        return subsets
    generator = np.random.default_rng(seed_of(seed, "subsets", step))
    for subset in subsets:  # O(modalities) each: never a pool of 2^M
        while not subset.any():
            subset[:] = generator.integers(0, 2, modalities, dtype=np.int8)
    return subsets


def drawn_subsets(modalities: int, objective: Objective, seed: int, step: int) -> np.ndarray:
    """(1 + M + k, M): all modalities, every single one, k random subsets."""
    drawn = random_subsets(objective.k, modalities, seed, step)
    return np.concatenate([np.ones((1, modalities), bool), np.eye(modalities, dtype=bool), drawn])


def subsampled(present_BM: np.ndarray, objective: Objective, posterior: Posterior, seed: int, step: int) -> Plan:
    """The terms of eq. 5 on partially present rows.

    Each subset is cut down to what a row has; where nothing is left the term weighs 0. The single term of a row with
    one modality is its joint term and counts once; random subsets that repeat another count again, as in the paper's
    sum. With `cross` > 0 a term also reconstructs, with that weight, the present modalities that it did not see.
    """
    seen, weight = cut(drawn_subsets(present_BM.shape[1], objective, seed, step), present_BM)
    return Plan(seen, posterior.of(seen), targets(seen, present_BM, objective), weight)


def cut(subsets: np.ndarray, present_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each subset cut down to what each row has, and its weight; `subsets` are all, every single one, any others."""
    modalities = present_BM.shape[1]
    seen: np.ndarray = subsets[:, None, :] & present_BM[None]
    weight: np.ndarray = np.asarray(seen.any(2), np.float32)
    weight[1 : 1 + modalities, present_BM.sum(1) == 1] = 0.0
    return seen, weight


def targets(seen_TBM: np.ndarray, present_BM: np.ndarray, objective: Objective) -> np.ndarray:
    """Weights of reconstruction: 1 for what a term sees, `cross` for the other present modalities."""
    weights: np.ndarray = np.where(seen_TBM, 1.0, present_BM[None] * objective.cross).astype(np.float32)
    return weights
