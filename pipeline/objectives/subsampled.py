"""The sub-sampled ELBO of MVAE (Wu & Goodman 2018, eq. 5): joint + every single modality + k random subsets.

Shape legend: T terms, B rows, M modalities.
"""

from __future__ import annotations

import numpy as np

from pipeline.config import Objective
from pipeline.objectives.terms import Plan
from pipeline.order import seed_of


def random_subsets(count: int, modalities: int, seed: int, step: int) -> np.ndarray:
    """(count, modalities) boolean: subsets drawn uniformly from the non-empty ones, the same on every rank."""
    generator = np.random.default_rng(seed_of(seed, "subsets", step))
    subsets = np.zeros((count, modalities), bool)
    for subset in subsets:  # O(modalities) each: never a pool of 2^M
        while not subset.any():
            subset[:] = generator.integers(0, 2, modalities, dtype=np.int8)
    return subsets


def plan(present_BM: np.ndarray, objective: Objective, seed: int, step: int) -> Plan:
    """The terms of eq. 5 on partially present rows.

    Each subset is cut down to what a row has; where nothing is left the term weighs 0. The single term of a row with
    one modality is its joint term and counts once; random subsets that repeat another count again, as in the paper's
    sum. With `cross` > 0 a term also reconstructs, with that weight, the present modalities that it did not see.
    """
    modalities = present_BM.shape[1]
    subsets = np.concatenate(
        [
            np.ones((1, modalities), bool),
            np.eye(modalities, dtype=bool),
            random_subsets(objective.k, modalities, seed, step),
        ]
    )
    seen: np.ndarray = subsets[:, None, :] & present_BM[None]
    weight: np.ndarray = np.asarray(seen.any(2), np.float32)
    weight[1 : 1 + modalities, present_BM.sum(1) == 1] = 0.0
    target = np.where(seen, 1.0, present_BM[None] * objective.cross).astype(np.float32)
    return Plan(seen, target, weight)


def joint_plan(present_BM: np.ndarray) -> Plan:
    """The joint term alone: for evaluation."""
    weight = np.asarray(present_BM.any(1), np.float32)
    return Plan(present_BM[None], present_BM[None].astype(np.float32), weight[None])


def beta_at(objective: Objective, step: int, steps: int) -> float:
    """β of a step: linear from 0 over the share `anneal` of the `steps` of training, then constant."""
    if objective.anneal == 0:
        return objective.beta
    return objective.beta * min(1.0, step / (objective.anneal * steps))
