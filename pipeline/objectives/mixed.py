"""Objectives over mixtures in closed form: one sample of each component, and the mean of the components' KLs.

E over a mixture is the mean over its components, and KL(mixture || p), which has no closed form, is replaced by the
mean of theirs (convexity: the objective stays a lower bound).

Shape legend: S subsets, T components, B rows, M modalities.
"""

from __future__ import annotations

import numpy as np

from pipeline.objectives.plan import Plan, mixture_plan
from pipeline.objectives.subsampled import cut, drawn_subsets, targets
from pipeline.posteriors import Posterior
from pipeline.settings import Objective


def mixtures(present_BM: np.ndarray, objective: Objective, posterior: Posterior, seed: int, step: int) -> Plan:
    """MVAE's terms with a mixture of the experts as posterior, 1/|A| each (MMVAE appendix E, "MVAE-MoE").

    All terms that an expert is part of share one sample of it: what it reconstructs, and its KL, weigh Σ 1/|A| over
    these terms.
    """
    return _mixed(drawn_subsets(present_BM.shape[1], objective, seed, step), present_BM, objective, posterior)


def mixture_joint(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    """The bound of the mixture of all that a row has."""
    return _mixed(np.ones((1, present_BM.shape[1]), bool), present_BM, objective, posterior)


def _mixed(subsets: np.ndarray, present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    alone, joint = posterior.components(present_BM)
    seen, weight = cut(subsets, present_BM)
    share_SBM = seen * (weight / np.maximum(seen.sum(2), 1))[:, :, None]  # of each member in each term
    weight_TB = share_SBM.sum(0).T.astype(np.float32)
    reconstructed = targets(seen, present_BM, objective)
    target = np.einsum("sbt,sbm->tbm", share_SBM, reconstructed) / np.maximum(weight_TB, 1e-12)[:, :, None]
    return Plan(alone, posterior.of(alone), target.astype(np.float32), weight_TB, joint_TB=joint)


def mopoe(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    """MoPoE-VAE (Sutter et al. 2021): the product of each subset reconstructs all that a row has."""
    return mixture_plan(present_BM, posterior)
