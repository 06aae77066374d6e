"""Accuracy of predicting a label from any subset of the other modalities (MVAE section 5.1, SVAE table 1)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch import nn

from modalities import Label
from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.posteriors import generates

MOST_SUBSETS = 16
"""With many modalities: the single ones and all together, not the 2^M subsets."""


def metric_name(label: str, given: tuple[str, ...]) -> str:
    """accuracy/label_given_top_bottom"""
    return f"accuracy/{label}_given_{'_'.join(given)}"


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


def label_accuracy(
    module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and counts per label and subset: argmax p(label | z) at the mean of q(z | subset).

    Only rows count that have the label and all of the subset.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    names = list(model.modalities)
    counted = (batch.weight_B > 0).cpu().numpy()
    for label, given in questions(run):
        truth = torch.zeros(len(batch), dtype=torch.int64, device=batch.row_B.device)
        rows = batch.rows_of[label]
        if len(rows):
            truth[on_device(rows, truth.device)] = batch.values[label]
        wanted = batch.present_BM[:, [names.index(name) for name in (label, *given)]].all(1) & counted
        shown = batch.only(frozenset(given))
        predicted = model.decode(label, model.posterior(shown).mu, shown).argmax(1)
        right = (predicted == truth).cpu().numpy() & wanted
        name = metric_name(label, given)
        sums[name], counts[name] = float(np.sum(right)), float(np.sum(wanted))
    return sums, counts
