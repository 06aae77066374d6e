"""Models of the papers with batches held in memory, for benchmarks of the training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from modalities import AnyModality, Attributes, Label
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.objectives.systems import plan_of
from pipeline.objectives.terms import Terms, combine
from pipeline.recipes import recipe
from pipeline.settings import Objective
from pipeline.train import build

SIZE = 100
"""Rows of a batch."""
RATE = 1e-9
"""Learning rate: Adam does all its work, but the weights, and so the work, stay as they are however long it runs."""


def mnist() -> Run:
    """MVAE on MNIST: an image of 28x28 pixels and its label, joint and single terms."""
    return _timed(recipe("mnist"))


def celeba() -> Run:
    """MVAE on CelebA: an image of 64x64 pixels in colour, and its attributes as one modality."""
    return _timed(recipe("celeba"))


def celeba19() -> Run:
    """MVAE19: an image of 64x64 pixels in colour, 18 attributes that are a modality each, one random subset."""
    return _timed(recipe("celeba19"))


def small(count: int, k: int) -> Run:
    """`count` equal modalities with small networks, and `k` random subsets."""
    modalities: dict[str, AnyModality] = {f"m{i}": Attributes(count=8, hidden=(32, 32)) for i in range(count)}
    base = recipe("mnist")
    return _timed(replace(base, modalities=modalities, model=replace(base.model, latent=16), objective=Objective(k=k)))


def _timed(run: Run) -> Run:
    engine = replace(run.engine, threads=1, device="cpu", precision="fp32")
    objective = replace(run.objective, anneal=0.0)
    return replace(run, engine=engine, objective=objective, optim=replace(run.optim, lr=RATE))


def batches(run: Run, count: int, missing: dict[str, float] | None = None) -> list[Batch]:
    """`count` batches of random values, 0 or 1 (MultiVae's Bernoulli takes no others), and random labels.

    `missing`: the share of a batch's rows that lack a modality, exact.
    """
    rng = np.random.default_rng(0)
    result = []
    for step in range(count):
        present = np.ones((SIZE, len(run.modalities)), bool)
        values, rows_of = {}, {}
        for column, (name, modality) in enumerate(run.modalities.items()):
            present[rng.permutation(SIZE)[: round((missing or {}).get(name, 0.0) * SIZE)], column] = False
            rows_of[name] = np.flatnonzero(present[:, column])
            top = modality.classes if isinstance(modality, Label) else 2
            drawn = rng.integers(0, top, (len(rows_of[name]), *modality.shape))
            values[name] = torch.from_numpy(drawn.astype(modality.dtype))
        row = torch.arange(step * SIZE, (step + 1) * SIZE)
        result.append(Batch(values, rows_of, present, torch.ones(SIZE), row, [str(n) for n in row.tolist()]))
    return result


def networks(run: Run) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Encoders and decoders by modality, each by itself and as torch lays them out in memory."""
    kinds, latent = run.modalities, run.model.latent
    return {n: kind.encoder(latent) for n, kind in kinds.items()}, {
        n: kind.decoder(latent) for n, kind in kinds.items()
    }


def scored(module: nn.Module, run: Run, batch: Batch, step: int) -> Terms:
    """The terms of a step, put together as training does it, metrics included."""
    plan = plan_of(run, batch.present_BM, step)
    noise = plan.noise(run.seed, "bench", batch.row_B, run.model.latent)
    return combine(module(batch, plan, noise), plan, batch, run.weights(), 1.0, len(batch))


def loss(module: nn.Module, run: Run, batch: Batch, step: int) -> Tensor:
    """Of these terms, what is minimised."""
    return scored(module, run, batch, step).loss


def decoded(run: Run, batch: Batch, step: int) -> np.ndarray:
    """How many rows each decoder runs on in a step, over all terms."""
    rows: np.ndarray = plan_of(run, batch.present_BM, step).wanted_TBM.sum((0, 1))
    return rows


def steps(run: Run, batches: Sequence[Batch]) -> Callable[[], int]:
    """Takes a training step on each batch in a plain loop, with fused Adam; returns how many rows they had."""
    model = build(run)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the engine has it
    adam = torch.optim.Adam(model.parameters(), lr=run.optim.lr, fused=True)

    def work() -> int:
        for step, batch in enumerate(batches):
            adam.zero_grad()
            loss(model, run, batch, step).backward()
            adam.step()
        return sum(map(len, batches))

    return work
