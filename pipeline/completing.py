"""Rows of which some modalities are missing, completed by a model.

Shape legend: B rows, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from modalities import Modality
from pipeline.batch import Batch
from pipeline.experts import Mixture
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.posteriors import Posterior, generates

TOGETHER = 256
"""Rows that go through the networks at once."""
Column = Sequence[np.ndarray | None]
"""A modality's value of each row, as `Modality.decode` gives it; None where it is missing."""


@torch.no_grad()
def completed(
    model: MultimodalVAE, columns: Mapping[str, Column], sample: bool = False, seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """All modalities of all rows: what is given unchanged, what is missing as the mean of p(x | z).

    z is the mean of q(z | what is given), or with `sample` a sample, whose noise hangs on `seed` and the row's number.
    Where nothing is given it comes from the prior. Raises UserError, which counts rows from 0, where the model's system
    has no posterior of what is given.
    """
    count = len(next(iter(columns.values())))
    for row in range(count):
        given = [name for name, column in columns.items() if column[row] is not None]
        if reason := unanswerable(model.family, list(columns), given):
            raise UserError(f"row {row}: {reason}")
    whole: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for start in range(0, count, TOGETHER):
        some = {name: column[start : start + TOGETHER] for name, column in columns.items()}
        batch = batch_of(model.modalities, some, start)
        z_BZ = _latent(model, batch, sample, seed)
        for name, column in some.items():
            lacks = any(value is None for value in column)
            made = model.modalities[name].mean(model.decode(name, z_BZ, batch)).numpy() if lacks else None
            whole[name] += [made[row] if value is None else value for row, value in enumerate(column)]  # type: ignore[index]
    return whole


def unanswerable(
    family: Posterior, names: Sequence[str], given: Sequence[str], wanted: Sequence[str] | None = None
) -> str | None:
    """Why a model cannot make the wanted modalities, all others where none are named, from these; None where it can."""
    lacking = [name for name in names if name not in given] if wanted is None else wanted
    if not given and not family.conditions:
        return None
    for name in lacking:
        if not generates(family, names, name, frozenset(given)):
            needs = f"it needs {', '.join(family.conditions)}" if family.conditions else "give one of them, or all"
            return f"this model makes no {name} from {', '.join(given) or 'nothing'} alone: {needs}"
    return None


def batch_of(modalities: Mapping[str, Modality], columns: Mapping[str, Column], start: int = 0) -> Batch:
    """Rows as a batch on the CPU; the first has the number `start`."""
    count = len(next(iter(columns.values())))
    present_BM = np.array([[column[row] is not None for column in columns.values()] for row in range(count)])
    values = {}
    for name, column in columns.items():
        held = [value for value in column if value is not None]
        modality = modalities[name]
        stacked = np.stack(held) if held else np.zeros((1, *modality.shape))
        values[name] = torch.from_numpy(stacked.astype(modality.dtype, copy=False))
    return Batch(
        values=values,
        rows_of={name: np.flatnonzero(present_BM[:, column]) for column, name in enumerate(columns)},
        present_BM=present_BM,
        weight_B=torch.ones(count),
        row_B=torch.arange(start, start + count),
        keys=[str(start + row) for row in range(count)],
    )


def _latent(model: MultimodalVAE, batch: Batch, sample: bool, seed: int) -> Tensor:
    """A z of each row: (B, Z)."""
    posterior = model.posterior(batch)
    if not sample:
        return posterior.mu
    width = posterior.noise if isinstance(posterior, Mixture) else model.latent
    noise = normal(seed, "completed", batch.row_B, 1, width)
    prior = model.prior(batch.row_B.device).sample(noise[..., : model.latent])[0]
    nothing = torch.from_numpy(~batch.present_BM.any(1))[:, None]
    return torch.where(nothing, prior, posterior.sample(noise)[0])
