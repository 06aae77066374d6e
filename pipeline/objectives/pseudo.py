"""Pseudo-labels (Lee 2013; FixMatch: Sohn et al. 2020): labels that a row lacks, as the model itself tells them.

The most likely label at the mean of q(z | what the row shows), its pictures as they are, becomes a target of the row's
terms, whose pictures are augmented, where its probability is above `objective.confidence`. No expert sees it, no ELBO
counts it, and the true label of a row that does not show it is read nowhere. Which rows ask is known to the host; how
sure the model is, the device alone knows, and no step waits for it.

Shape legend: T terms, B rows, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from modalities import Label
from pipeline.batch import Batch, on_device
from pipeline.model import MultimodalVAE
from pipeline.objectives.plan import Plan
from pipeline.objectives.terms import Terms
from pipeline.scores import Scores


@dataclass(frozen=True)
class Guesses:
    """A model's labels for the rows of a batch that have something, but not the label."""

    told: Batch
    """The rows with these labels filled in: what decoders score, never what encoders see."""
    asked_BM: np.ndarray
    """Boolean: the labels that were filled in."""
    sure_BM: Tensor
    """Boolean: where the label's probability is above the confidence; all that was not asked counts as sure."""

    def targets(self, plan: Plan, weight: float) -> Plan:
        """The plan with these labels among the targets of every term of their rows; none of the terms sees them."""
        return replace(plan, target_TBM=plan.target_TBM + np.float32(weight) * self.asked_BM)

    def trusted(self, scores: Scores) -> Scores:
        """The scores with 0 for labels that the model is not sure of."""
        return replace(scores, log_likelihood_TBM=torch.where(self.sure_BM, scores.log_likelihood_TBM, 0.0))

    def tallied(self, terms: Terms) -> Terms:
        """The terms with one metric more, `pseudo.LABEL`: the share of the rows that lack a label which got one."""
        asked_BM = on_device(self.asked_BM, self.sure_BM.device)
        counts = dict(zip([f"pseudo.{name}" for name in self.told.values], asked_BM.sum(0), strict=True))
        sums = dict(zip(counts, (asked_BM & self.sure_BM).sum(0), strict=True))
        return replace(terms, sums=terms.sums | sums, counts=terms.counts | counts)


@torch.no_grad()
def guess(model: MultimodalVAE, batch: Batch, shown: Batch, confidence: float) -> Guesses:
    """Labels for the rows of `shown` that lack them, from the same rows as `batch` has them (not augmented).

    A forward pass of its own, without gradient: every encoder and each label's decoder once more. The pass that is
    scored still runs every encoder once. A row whose probability lies within rounding of the confidence may count on
    one number of ranks and not on another.
    """
    mu_BZ = model.posterior(batch).mu
    values, rows_of = dict(shown.values), dict(shown.rows_of)
    asked = np.zeros_like(shown.present_BM)
    sure = torch.ones(asked.shape, dtype=torch.bool, device=mu_BZ.device)
    for column, name in enumerate(batch.values):
        if not isinstance(model.modalities[name], Label):
            continue
        probability_B, label_B = model.decode(name, mu_BZ, batch).float().softmax(1).max(1)
        asked[:, column] = shown.present_BM.any(1) & ~shown.present_BM[:, column]
        sure[:, column] = (probability_B > confidence) | on_device(~asked[:, column], sure.device)
        if asked[:, column].any():
            known = shown.rows_of[name]
            label_B[on_device(known, label_B.device)] = shown.values[name][: len(known)]
            rows_of[name] = np.flatnonzero(shown.present_BM.any(1))
            values[name] = label_B.index_select(0, on_device(rows_of[name], label_B.device))
    told = replace(shown, values=values, rows_of=rows_of, present_BM=shown.present_BM | asked)
    return Guesses(told, asked, sure)
