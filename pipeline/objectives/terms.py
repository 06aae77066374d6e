"""How the scores of a plan's terms become a loss and honest metrics.

Shape legend: T terms, B rows, M modalities, P pairs of terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Batch, on_device
from pipeline.objectives.plan import Plan
from pipeline.objectives.sampled import averaged, bound
from pipeline.scores import Densities, Scores
from pipeline.settings import Objective


@dataclass(frozen=True)
class Terms:
    """A rank's share of the objective, and sums with counts from which metrics are made on any number of ranks."""

    loss: Tensor
    """Scalar; the mean of this over the ranks is -objective per row of the global batch. Of several runs together one
    number each, and so are sums and counts: (N,)."""
    row_objective_B: Tensor
    """Weighted objective of each row, in nats (before its weight), to find the row that spoils a batch."""
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]


def combine(
    scores: Scores | Densities,
    plan: Plan,
    batch: Batch,
    lambdas: dict[str, float] | np.ndarray,
    beta: float | Tensor,
    rows_per_rank: float,
    runs: int | None = None,
) -> Terms:
    """-1/B Σ_b w_b times each row's objective (see `Plan`), B being the rows of the *global* batch.

    `rows_per_rank` is the global batch's rows divided by the world size: engines average gradients over ranks, so
    an absent or padded row leaves a smaller sum, never a larger share for the others.
    Metrics are always with λ = β = 1 except `objective`: `elbo` and `kl` of the joint ELBO, `recon.m` over the rows
    that have modality m.
    Of N `runs` together, each of which has its part of the rows, `lambdas` are (B, M) and `beta` is (B,).
    """
    lambdas_M = np.array([lambdas[n] for n in batch.values], np.float32) if isinstance(lambdas, dict) else lambdas
    score = bound if isinstance(scores, Densities) else _weighted
    row_objective = score(scores, plan, lambdas_M, beta)  # type: ignore[arg-type]
    # where, not a product: what a row of weight 0 scores counts nothing, not even an infinity
    counted = torch.where(batch.weight_B > 0, row_objective * batch.weight_B, 0.0)
    loss = -_total(counted, runs) / rows_per_rank + scores.anchor
    with torch.no_grad():
        sums, counts = metrics(scores, plan, batch, runs)
        taken_B = on_device(np.asarray((plan.weight_TB > 0).any(0)), counted.device) & (batch.weight_B > 0)
        sums["objective"], counts["objective"] = _total(counted, runs), _total(taken_B, runs)
    return Terms(loss, row_objective.detach(), sums, counts)


def _total(values: Tensor, runs: int | None) -> Tensor:
    """The sum over rows, the first axis; of several runs together (N, …)."""
    return values.sum(0) if runs is None else values.unflatten(0, (runs, -1)).sum(1)


def _weighted(scores: Scores, plan: Plan, lambdas_M: np.ndarray, beta: float | Tensor) -> Tensor:
    """The objective of each row (B,), as `Plan` says it."""
    device = scores.kl_TB.device

    def tensor(array: np.ndarray) -> Tensor:
        return on_device(array, device, torch.float32)

    reconstruction_TB = (tensor(plan.target_TBM * lambdas_M) * scores.log_likelihood_TBM).sum(2)
    prior_TB = 1.0 if plan.prior_TB is None else tensor(plan.prior_TB)
    row_objective = (tensor(plan.weight_TB) * (reconstruction_TB - beta * prior_TB * scores.kl_TB)).sum(0)
    if plan.pair_PB is None:
        return row_objective
    return row_objective - beta * (tensor(plan.pair_PB) * scores.kl_PB).sum(0)


def metrics(
    scores: Scores | Densities, plan: Plan, batch: Batch, runs: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums and counts of each row's joint ELBO with λ = β = 1: `elbo`, `kl` and `recon.MODALITY`, in nats.

    They stay on the device, so that a step need not wait for them.
    """
    recon_BM, kl_B, counted_BM = _joint(scores, plan, batch)
    recon_M, kl, rows = _total(recon_BM, runs), _total(kl_B, runs), _total(counted_BM.any(1), runs)
    sums = {"elbo": recon_M.sum(-1) - kl, "kl": kl}
    counts = {"elbo": rows, "kl": rows}
    for name, recon, present in zip(batch.values, recon_M.unbind(-1), _total(counted_BM, runs).unbind(-1), strict=True):
        sums[f"recon.{name}"], counts[f"recon.{name}"] = recon, present
    return sums, counts


def row_metrics(scores: Scores | Densities, plan: Plan, batch: Batch) -> dict[str, Tensor]:
    """The same of each row, (B,): NaN where it has none, and -inf where the model's own number is none."""
    recon_BM, kl_B, counted_BM = _joint(scores, plan, batch)

    def told(values: Tensor, counted: Tensor) -> Tensor:
        return torch.where(counted, values.nan_to_num(-torch.inf), torch.nan)

    rows = counted_BM.any(1)
    joint = {"elbo": told(recon_BM.sum(1) - kl_B, rows), "kl": told(kl_B, rows)}
    parts = zip(batch.values, recon_BM.T, counted_BM.T, strict=True)
    return joint | {f"recon.{name}": told(recon, counted) for name, recon, counted in parts}


def _joint(scores: Scores | Densities, plan: Plan, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of the joint ELBO the reconstructions (B, M) and the KL (B,), zeros where they do not count; and which do."""
    if isinstance(scores, Densities):
        scores = averaged(scores, plan)
    device, terms = scores.kl_TB.device, 1 if plan.joint_TB is None else len(plan.joint_TB)
    share_TB = plan.weight_TB[:1] if plan.joint_TB is None else plan.joint_TB
    wanted_TBM = plan.wanted_TBM[:terms] & (share_TB > 0)[:, :, None] & batch.present_BM  # no pseudo-label
    counted_BM = on_device(np.asarray(wanted_TBM.any(0)), device) & (batch.weight_B > 0)[:, None]
    share = on_device(share_TB, device, torch.float32)
    likely_TBM = torch.where(on_device(wanted_TBM, device), scores.log_likelihood_TBM[:terms], 0.0)
    recon_BM = torch.where(counted_BM, (share[:, :, None] * likely_TBM).sum(0), 0.0)
    divergence_TB = torch.where(share > 0, share * scores.kl_TB[:terms], 0.0)
    return recon_BM, torch.where(counted_BM.any(1), divergence_TB.sum(0), 0.0), counted_BM


def beta_at(objective: Objective, step: int, steps: int) -> float:
    """β of a step: linear from 0 over the share `anneal` of the `steps` of training, then constant."""
    if objective.anneal == 0:
        return objective.beta
    return objective.beta * min(1.0, step / (objective.anneal * steps))
