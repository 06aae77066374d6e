"""How long texts are: what a log-likelihood per text has to be divided by to compare it per token."""

from __future__ import annotations

from torch import nn

from modalities.text import Tokens, after_end
from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.model import MultimodalVAE


def token_names(run: Run) -> list[str]:
    """All metrics that `tokens_per_text` gives for a run."""
    return [f"tokens.{name}" for name, modality in run.modalities.items() if isinstance(modality, Tokens)]


def tokens_per_text(
    module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and counts of `tokens.MODALITY`: the tokens of a text, its end counted, over the rows that have one."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for metric in token_names(run):
        name = metric.removeprefix("tokens.")
        rows = batch.rows_of[name]
        counted = batch.weight_B.index_select(0, on_device(rows, batch.weight_B.device)) > 0
        tokens = (~after_end(batch.values[name][: len(rows)])).sum(1)
        sums[metric], counts[metric] = float(tokens[counted].sum()), float(counted.sum())
    return sums, counts
