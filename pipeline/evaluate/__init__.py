"""Metrics on a split. Every one is a sum with a count, so it is the same on any number of ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from infra.distributed import World
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.evaluate.classification import accuracy_names, label_accuracy
from pipeline.evaluate.importance import importance_sampled
from pipeline.evaluate.likelihood import elbo
from pipeline.evaluate.tokens import token_names, tokens_per_text
from pipeline.manifest import Manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.stream import in_order, rows_for_rank

Measure = Callable[[nn.Module, MultimodalVAE, Run, Batch], tuple[dict[str, float], dict[str, float]]]
"""Sums and counts of metrics over the rows of a batch."""


def metric_names(run: Run, split: str) -> list[str]:
    """The metrics that `evaluate` gives for a run's modalities and system."""
    made = [name for name in run.modalities if name not in family_of(run).conditions]
    names = ["elbo", "kl", *(f"recon.{name}" for name in made), *accuracy_names(run), *token_names(run)]
    return [f"{split}/{name}" for name in names]


def batches(run: Run, manifest: Manifest, split: str, world: World) -> Iterator[Batch]:
    """This rank's rows of a split in equal steps on all ranks; rows that fill up the last batch weigh 0."""
    collate = Collator([manifest], run.modalities, budget=run.train.damage)
    size = -(-run.train.batch // world.size) * world.size
    for refs in in_order(manifest, split, list(run.modalities), size):
        yield collate(rows_for_rank(refs, world.rank, world.size)).to(world.device)


@torch.no_grad()
def evaluate(
    module: nn.Module,
    model: MultimodalVAE,
    run: Run,
    manifest: Manifest,
    split: str,
    world: World,
    samples: int = 0,
) -> dict[str, float]:
    """All metrics that the modalities define, on one split, named `SPLIT/…`. Collective.

    `module` is what is called (DeepSpeed's engine, or the model itself); ELBO terms are in nats with λ = β = 1. With
    `samples` also the log-likelihoods by as many importance samples a row.
    """
    was_training = model.training
    model.eval()
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, float] = defaultdict(float)
    measures: list[Measure] = [
        elbo,
        label_accuracy,
        tokens_per_text,
        *([partial(importance_sampled, samples=samples)] if samples else []),
    ]
    for batch in batches(run, manifest, split, world):
        for measure in measures:
            more, rows = measure(module, model, run, batch)
            for name, value in more.items():
                sums[name] += value
                counts[name] += rows[name]
    model.train(was_training)
    names = sorted(sums)
    totals = world.sum([float(sums[name]) for name in names] + [float(counts[name]) for name in names])
    return {
        f"{split}/{name}": totals[i] / totals[len(names) + i] for i, name in enumerate(names) if totals[len(names) + i]
    }
