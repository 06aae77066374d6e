"""Bounds of a mixture posterior from samples of its components (MMVAE: Shi et al. 2019).

Shape legend: K samples, T, S components of the mixture, B rows, M modalities.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import on_device
from pipeline.experts import LEAST, mixture_log_prob
from pipeline.objectives.plan import Plan, Sampling, mixture_plan
from pipeline.posteriors import Posterior
from pipeline.scores import Densities, Scores
from pipeline.settings import Objective

MOST_RATIO = 30.0
"""log q_i(z_j) / q_j(z_j) is cut off here: the exponential of more would drown everything else in float32."""


def mmvae(present_BM: np.ndarray, objective: Objective, posterior: Posterior, seed: int, step: int) -> Plan:
    """The mixture of what each row has, 1/|P| each; every component reconstructs all of it."""
    return mixture_plan(present_BM, posterior, Sampling(objective.samples, objective.bound, objective.gradient))


def mmvae_joint(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    """The ELBO of the mixture: one sample of each component (section 3, after eq. 3)."""
    return mixture_plan(present_BM, posterior, Sampling(1, "stratified", "iwae"))


def bound(densities: Densities, plan: Plan, lambdas_M: np.ndarray, beta: float | Tensor) -> Tensor:
    """The objective of each row (B,), whose gradient is the one that the plan asks for."""
    assert plan.sampling is not None
    weight_TB, target_TBM = _tensors(densities, plan.weight_TB, plan.target_TBM * lambdas_M)
    likely_KTBM = target_TBM * densities.log_likelihood_KTBM
    log_mixture_KTB = mixture_log_prob(densities.log_q_KTSB, _mixed(weight_TB), 2)
    log_ratio_KTB = beta * (densities.log_prior_KTB - log_mixture_KTB)
    if plan.sampling.bound == "linear":
        return _linear(densities, weight_TB, likely_KTBM.sum(3), log_ratio_KTB)
    log_w_KTB = likely_KTBM.sum(3) + log_ratio_KTB
    over: tuple[int, ...] = (0,)
    if plan.sampling.bound == "tight":
        log_w_KTB = log_w_KTB + _mixed(weight_TB).clamp_min(LEAST).log()
        log_w_KTB, over = torch.where(_mixed(weight_TB) > 0, log_w_KTB, -torch.inf), (0, 1)
    if plan.sampling.gradient == "dreg" and densities.z_KTBZ.requires_grad:
        again_KTB = (log_w_KTB - torch.logsumexp(log_w_KTB, over, keepdim=True)).exp().detach()
        densities.z_KTBZ.register_hook(lambda gradient: gradient * again_KTB[..., None])
    value = torch.logsumexp(log_w_KTB, over) - math.log(plan.sampling.samples)
    if plan.sampling.bound == "tight":
        return torch.where(weight_TB.sum(0) > 0, value, 0.0)
    return torch.where(weight_TB > 0, weight_TB * value, 0.0).sum(0)


def _linear(densities: Densities, weight_TB: Tensor, own_KTB: Tensor, log_ratio_KTB: Tensor) -> Tensor:
    """Appendix B: each modality is decoded from its own samples only; under another component these weigh q_i / q_j.

    Σ_i a_i (log p(z_i) + log p(x_i|z_i) - log q(z_i) + Σ_{j != i} q_i(z_j) / q_j(z_j) log p(x_j|z_j)): the ratio and
    the likelihood beside it do not move z_j, nor q_j; all likelihoods of modality j are one call of its decoder, so the
    gradient that reaches z_j by way of it is cut down to the share of the first.
    """
    share_KTB = _borrowed(densities, weight_TB)
    whole_KTB = weight_TB + share_KTB
    if densities.decoded_KTBZ.requires_grad:
        part_KTB = (weight_TB / whole_KTB.clamp_min(LEAST)).detach()
        densities.decoded_KTBZ.register_hook(lambda gradient: gradient * part_KTB[..., None])
    return torch.where(weight_TB > 0, weight_TB * log_ratio_KTB + whole_KTB * own_KTB, 0.0).mean(0).sum(0)


def _borrowed(densities: Densities, weight_TB: Tensor) -> Tensor:
    """Σ_{i != j} a_i q_i(z_j) / q_j(z_j) for the samples of each j: (K, T, B)."""
    assert densities.log_q_fixed_KTSB is not None
    log_q = densities.log_q_fixed_KTSB
    own = torch.diagonal(log_q, dim1=1, dim2=2).movedim(-1, 1)
    ratio_KTSB = (log_q - own.detach()[:, :, None]).clamp_max(MOST_RATIO).exp()
    others = 1 - torch.eye(len(weight_TB), device=weight_TB.device)
    return torch.einsum("ktsb,sb,ts->ktb", ratio_KTSB, weight_TB, others)


def averaged(densities: Densities, plan: Plan) -> Scores:
    """The same as means over the samples, in which `kl` is log q(z) - log p(z), q being the mixture."""
    assert plan.sampling is not None
    (weight_TB,) = _tensors(densities, plan.weight_TB)
    log_mixture_KTB = mixture_log_prob(densities.log_q_KTSB, _mixed(weight_TB), 2)
    likely_KTBM = densities.log_likelihood_KTBM
    if plan.sampling.bound == "linear":
        whole = (weight_TB + _borrowed(densities, weight_TB)) / weight_TB.clamp_min(LEAST)
        likely_KTBM = torch.where(weight_TB > 0, whole, 0.0)[..., None] * likely_KTBM
    divergence = (log_mixture_KTB - densities.log_prior_KTB).mean(0)
    return Scores(likely_KTBM.mean(0), divergence, divergence[:0], densities.anchor)


def _mixed(weight_TB: Tensor) -> Tensor:
    """The mixture's weights; a row that has nothing is given its first component, for a density without a NaN."""
    first = torch.zeros_like(weight_TB)
    first[0] = 1.0
    return torch.where(weight_TB.sum(0) > 0, weight_TB, first)


def _tensors(densities: Densities, *arrays: np.ndarray) -> list[Tensor]:
    return [on_device(array, densities.anchor.device, torch.float32) for array in arrays]
