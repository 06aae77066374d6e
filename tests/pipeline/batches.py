"""Batches by hand: any pattern of presence, every row's values and noise a function of its number alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from modalities import AnyModality, Attributes, Image, Label, Modality
from pipeline.batch import Batch
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import SYSTEMS
from pipeline.objectives.terms import Terms, combine
from pipeline.settings import Objective

LATENT = 5


def some_modalities(count: int) -> dict[str, AnyModality]:
    """`count` small modalities, images and labels by turns, no two of one size."""
    return {
        f"m{i}": Label(classes=3 + i, hidden=(7, 6)) if i % 2 else Image(2, 2 + i, levels=16, hidden=(7, 6))
        for i in range(count)
    }


def small_model(modalities: Mapping[str, Modality], seed: int = 0, system: str = "mvae") -> MultimodalVAE:
    """A system's model whose experts disagree: weights well above the usual initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultimodalVAE(modalities, LATENT, SYSTEMS[system].posterior(list(modalities)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.7).add_(0.1 * torch.randn_like(parameter))
    return model


def patterns(rows: int, modalities: int, seed: int) -> np.ndarray:
    """Random presence (rows, modalities)."""
    return np.random.default_rng(seed).random((rows, modalities)) < 0.6


def value_of(modality: Modality, row: int, column: int) -> np.ndarray:
    """The value of one modality in one row, as the shards would give it."""
    rng = np.random.default_rng((row, column))
    if isinstance(modality, Label):
        return np.asarray(rng.integers(modality.classes))
    if isinstance(modality, Attributes):
        return rng.integers(0, 2, modality.shape).astype(modality.dtype)
    assert isinstance(modality, Image)
    levels = rng.integers(0, modality.levels + 1, modality.shape)
    return (levels / modality.levels).astype(modality.dtype)


def batch_of(
    modalities: Mapping[str, Modality],
    present_BM: np.ndarray | Sequence[Sequence[int]],
    weight: Sequence[float] | None = None,
    numbers: Sequence[int] | None = None,
) -> Batch:
    """A batch with this presence, as the collator builds it; `numbers` are the rows' numbers in the run."""
    present = np.asarray(present_BM, bool)
    row = np.arange(len(present)) if numbers is None else np.asarray(numbers)
    values, rows_of = {}, {}
    for column, (name, modality) in enumerate(modalities.items()):
        rows_of[name] = np.flatnonzero(present[:, column])
        there = [value_of(modality, int(row[b]), column) for b in rows_of[name]]
        values[name] = torch.from_numpy(np.stack(there or [np.zeros(modality.shape)]).astype(modality.dtype))
    return Batch(
        values=values,
        rows_of=rows_of,
        present_BM=present,
        weight_B=torch.tensor(present.any(1) if weight is None else weight, dtype=torch.float32),
        row_B=torch.from_numpy(row.astype(np.int64)),
        keys=[f"row{number}" for number in row],
    )


def score(
    model: MultimodalVAE,
    batch: Batch,
    objective: Objective,
    rows: float,
    beta: float = 1.0,
    seed: int = 0,
    step: int = 0,
    system: str = "mvae",
    later: bool = False,
) -> Terms:
    """The objective of a batch, put together as training does it; `later`: in the second stage of a system of two."""
    planner = SYSTEMS[system].later if later else SYSTEMS[system].plan
    assert planner is not None
    terms = planner(batch.present_BM, objective, model.family, seed, step)
    noise = terms.noise(seed, "train", batch.row_B, model.latent, objective.shared_noise)
    scores = model(batch, terms, noise)
    lambdas = {name: objective.lambda_.get(name, 1.0) for name in model.modalities}
    return combine(scores, terms, batch, lambdas, beta, rows)


def networks(model: MultimodalVAE) -> dict[str, nn.Module]:
    """Every expert and every decoder by name."""
    return {f"{kind}.{name}": net for kind in ("encoders", "decoders") for name, net in getattr(model, kind).items()}


def counted(model: MultimodalVAE) -> Counter[str]:
    """Counts the runs of every network from now on."""
    runs: Counter[str] = Counter()
    for name, network in networks(model).items():
        network.register_forward_hook(lambda *_, name=name: runs.update([name]))
    return runs


def gradients(model: MultimodalVAE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every parameter, in float64; fails where a parameter takes no part."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))  # raises for a parameter that the loss does not reach
    return {name: gradient.double() for name, gradient in zip(named, found, strict=True)}


def assert_close(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], tolerance: float = 1e-5, prefix: str = ""
) -> None:
    """Equal up to `tolerance` times the largest entry of each tensor."""
    for name in (name for name in theirs if name.startswith(prefix)):
        scale = float(theirs[name].abs().max())
        error = float((ours[name] - theirs[name]).abs().max())
        assert error <= tolerance * scale + 1e-9, f"{name}: off by {error} where the largest entry is {scale}"
