"""What all objectives share: which terms a batch has, and how their scores become a loss and honest metrics.

Shape legend: T terms, B rows, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Batch
from pipeline.model import Scores


@dataclass(frozen=True)
class Plan:
    """The terms of a batch, known before any network runs. Term 0 is the joint one."""

    seen_TBM: np.ndarray
    """Boolean: the modalities that the posterior of term t sees of row b (A_tb)."""
    target_TBM: np.ndarray
    """Weight with which term t reconstructs modality m of row b (0: not at all)."""
    weight_TB: np.ndarray
    """Weight of term t for row b; 0 where the term has nothing to see or repeats another."""

    @property
    def wanted_TBM(self) -> np.ndarray:
        """Boolean: what has to be decoded (D_tb)."""
        wanted: np.ndarray = (self.target_TBM > 0) & (self.weight_TB > 0)[:, :, None]
        return wanted


@dataclass(frozen=True)
class Terms:
    """A rank's share of the objective, and sums with counts from which metrics are made on any number of ranks."""

    loss: Tensor
    """Scalar; the mean of this over the ranks is -objective per row of the global batch."""
    row_objective_B: Tensor
    """Weighted objective of each row, in nats (before its weight), to find the row that spoils a batch."""
    sums: dict[str, Tensor]
    counts: dict[str, float]


def combine(
    scores: Scores, plan: Plan, batch: Batch, lambdas: dict[str, float], beta: float, rows_per_rank: float
) -> Terms:
    """-1/B Σ_b w_b Σ_t w_tb (Σ_m λ_m ρ_tbm log p(x_m|z_tb) - β KL_tb), B being the rows of the *global* batch.

    `rows_per_rank` is the global batch's rows divided by the world size: engines average gradients over ranks, so
    an absent or padded row leaves a smaller sum, never a larger share for the others.
    Metrics are always with λ = β = 1 except `objective`: `elbo` and `kl` of the joint term, `recon.m` over the rows
    that have modality m.
    """
    device = scores.kl_TB.device
    weight_TB = torch.from_numpy(plan.weight_TB).to(device, torch.float32)
    target = plan.target_TBM * np.array([lambdas[name] for name in batch.values])
    target_TBM = torch.from_numpy(target).to(device, torch.float32)
    reconstruction_TB = (target_TBM * scores.log_likelihood_TBM).sum(2)
    row_objective = (weight_TB * (reconstruction_TB - beta * scores.kl_TB)).sum(0)
    # where, not a product: what a row of weight 0 scores counts nothing, not even an infinity
    counted = torch.where(batch.weight_B > 0, row_objective * batch.weight_B, 0.0)
    loss = -counted.sum() / rows_per_rank + scores.anchor
    with torch.no_grad():
        sums, counts = metrics(scores, plan, batch)
        sums["objective"], counts["objective"] = counted.sum(), counts["elbo"]
    return Terms(loss, row_objective.detach(), sums, counts)


def metrics(scores: Scores, plan: Plan, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Sums and counts of the joint term with λ = β = 1: `elbo`, `kl` and `recon.MODALITY`, in nats."""
    counted_BM = torch.from_numpy(plan.seen_TBM[0]).to(scores.kl_TB.device) & (batch.weight_B > 0)[:, None]
    recon_M = torch.where(counted_BM, scores.log_likelihood_TBM[0], 0.0).sum(0)
    kl = torch.where(counted_BM.any(1), scores.kl_TB[0], 0.0).sum()
    rows = float(counted_BM.any(1).sum())
    sums = {"elbo": recon_M.sum() - kl, "kl": kl}
    counts = {"elbo": rows, "kl": rows}
    for name, recon, present in zip(batch.values, recon_M, counted_BM.sum(0).tolist(), strict=True):
        sums[f"recon.{name}"], counts[f"recon.{name}"] = recon, float(present)
    return sums, counts
