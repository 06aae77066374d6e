"""Accuracy of predicting a label from any subset of the other modalities (MVAE section 5.1, SVAE table 1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from modalities import Label
from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.experts import Mixture
from pipeline.model import MultimodalVAE
from pipeline.noise import normal, uniform
from pipeline.objectives.systems import family_of
from pipeline.posteriors import generates

MOST_SUBSETS = 16
"""With many modalities: the single ones and all together, not the 2^M subsets."""


def metric_name(label: str, given: tuple[str, ...], kind: str = "accuracy") -> str:
    """accuracy/label_given_top_bottom"""
    return f"{kind}/{label}_given_{'_'.join(given)}"


def subsets(names: list[str]) -> list[tuple[str, ...]]:
    """The non-empty subsets to predict from."""
    if 2 ** len(names) - 1 <= MOST_SUBSETS:
        return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
    return [(name,) for name in names] + [tuple(names)]


def accuracy_names(run: Run) -> list[str]:
    """All metrics that `label_accuracy` gives for a run."""
    return [metric_name(label, given) for label, given in questions(run)]


def questions(run: Run) -> list[tuple[str, tuple[str, ...]]]:
    """(label, the modalities that it is predicted from) for every label and subset that the run's system answers."""
    family, names = family_of(run), list(run.modalities)
    asked = [
        (label, given)
        for label, modality in run.modalities.items()
        if isinstance(modality, Label)
        for given in subsets([name for name in names if name != label])
    ]
    return [(label, given) for label, given in asked if generates(family, names, label, frozenset(given))]


def label_accuracy(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
    """Per label and subset whether each row is right, 0 or 1, (B,): argmax p(label | z) at the mean of q(z | subset).

    Rows that lack the label or a part of the subset are NaN.
    """
    return {metric_name(*asked): _right(model, run, batch, *asked, _most_likely) for asked in questions(run)}


def sampled_accuracy(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
    """The same as `sampled/…` of a label drawn from p(label | z) at a z drawn from q(z | subset) (MVAE figure 9)."""
    return {metric_name(*asked, kind="sampled"): _right(model, run, batch, *asked, _drawn) for asked in questions(run)}


def _most_likely(model: MultimodalVAE, run: Run, shown: Batch, label: str) -> Tensor:
    return model.decode(label, model.posterior(shown).mu, shown).argmax(1)


def _drawn(model: MultimodalVAE, run: Run, shown: Batch, label: str) -> Tensor:
    posterior = model.posterior(shown)
    width = posterior.noise if isinstance(posterior, Mixture) else model.latent
    z = posterior.sample(normal(run.seed, f"sampled {label}", shown.row_B, 1, width))[0]
    log_p = model.decode(label, z, shown).float().log_softmax(1)
    # Gumbel's trick: the largest of log-probabilities with such noise is a draw from them
    noise = uniform(normal(run.seed, f"drawn {label}", shown.row_B, 1, 1).flatten(), label, log_p.shape[1])
    return (log_p - (-noise.clamp(2.0**-25, 1 - 2.0**-24).log()).log()).argmax(1)


def _right(
    model: MultimodalVAE,
    run: Run,
    batch: Batch,
    label: str,
    given: tuple[str, ...],
    predict: Callable[[MultimodalVAE, Run, Batch, str], Tensor],
) -> Tensor:
    names, device = list(model.modalities), batch.row_B.device
    truth = torch.zeros(len(batch), dtype=torch.int64, device=device)
    if len(batch.rows_of[label]):
        truth[on_device(batch.rows_of[label], device)] = batch.values[label]
    asked = np.asarray(batch.present_BM[:, [names.index(name) for name in (label, *given)]].all(1))
    right = (predict(model, run, batch.only(frozenset(given)), label) == truth).float()
    return torch.where(on_device(asked, device) & (batch.weight_B > 0), right, torch.nan)
