"""How long texts are: what a log-likelihood per text has to be divided by to compare it per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modalities.text import Tokens, after_end
from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.model import MultimodalVAE


def token_names(run: Run) -> list[str]:
    """All metrics that `tokens_per_text` gives for a run."""
    return [f"tokens.{name}" for name, modality in run.modalities.items() if isinstance(modality, Tokens)]


def tokens_per_text(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
    """`tokens.MODALITY` of each row (B,): the tokens of its text, its end counted; NaN where it has none."""
    told: dict[str, Tensor] = {}
    for metric in token_names(run):
        name = metric.removeprefix("tokens.")
        rows = batch.rows_of[name]
        told[metric] = torch.full((len(batch),), torch.nan, device=batch.weight_B.device)
        tokens = (~after_end(batch.values[name][: len(rows)])).sum(1)
        told[metric][on_device(rows, batch.weight_B.device)] = tokens.float()
    return told
