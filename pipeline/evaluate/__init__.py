"""Metrics on a split. Every one is a mean over rows, kept as sums, so it is the same on any number of ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from infra.distributed import World
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.evaluate.classification import accuracy_names, label_accuracy
from pipeline.evaluate.likelihood import elbo
from pipeline.evaluate.precision import precision_names, precision_shares
from pipeline.evaluate.scored import Scored, of_sums
from pipeline.evaluate.tokens import token_names, tokens_per_text
from pipeline.manifest import Manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.stream import in_order, rows_for_rank

Measure = Callable[[nn.Module, MultimodalVAE, Run, Batch], dict[str, Tensor]]
"""Metrics of each row of a batch, (B,); NaN where a row does not count."""
OFTEN: tuple[Measure, ...] = (elbo, label_accuracy, tokens_per_text, precision_shares)
"""What is measured while a model is trained."""


def metric_names(run: Run, split: str) -> list[str]:
    """The metrics that `evaluate` gives for a run's modalities and system."""
    made = [name for name in run.modalities if name not in family_of(run).conditions]
    names = [
        "elbo",
        "kl",
        *(f"recon.{name}" for name in made),
        *accuracy_names(run),
        *token_names(run),
        *precision_names(run),
    ]
    return [f"{split}/{name}" for name in names]


def batches(run: Run, manifest: Manifest, split: str, world: World, few: int = 0) -> Iterator[Batch]:
    """This rank's rows of a split, or of `few` of them, in equal steps on all ranks.

    Rows that fill up the last batch weigh 0.
    """
    collate = Collator([manifest], run.modalities, budget=run.train.damage)
    size = -(-run.train.batch // world.size) * world.size
    for refs in in_order(manifest, split, list(run.modalities), size, few):
        yield collate(rows_for_rank(refs, world.rank, world.size)).to(world.device)


@torch.no_grad()
def evaluate(
    module: nn.Module,
    model: MultimodalVAE,
    run: Run,
    manifest: Manifest,
    split: str,
    world: World,
    measures: Sequence[Measure] = OFTEN,
    few: int = 0,
) -> dict[str, Scored]:
    """The metrics of `measures` on one split, or on `few` evenly spaced rows of it; those that any row can answer,
    named `SPLIT/…`. Collective.

    `module` is what is called (DeepSpeed's engine, or the model itself); ELBO terms are in nats with λ = β = 1.
    """
    was_training = model.training
    model.eval()
    totals: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for batch in batches(run, manifest, split, world, few):
        for measure in measures:
            for name, told in measure(module, model, run, batch).items():
                values = told.double().cpu().numpy()
                counted = values[~np.isnan(values)]
                totals[name] += counted.sum(), np.square(counted).sum(), len(counted)
    model.train(was_training)
    names = sorted(totals)
    summed = world.sum(np.concatenate([totals[name] for name in names]).tolist() if names else [])
    scores = {f"{split}/{name}": of_sums(*summed[3 * i : 3 * i + 3]) for i, name in enumerate(names)}
    return {name: score for name, score in scores.items() if score.count}
