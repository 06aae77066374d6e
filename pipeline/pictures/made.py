"""What a model makes, and of which rows: arrays for the sheets, without a pixel of layout.

Shape legend: B rows, K samples, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from pipeline.batch import Batch, empty_batch
from pipeline.collate import Collator
from pipeline.evaluate.subject import Subject
from pipeline.experts import Mixture
from pipeline.noise import normal
from pipeline.order import mix, seed_of
from pipeline.posteriors import generates
from pipeline.stream import Refs

Value = np.ndarray | None
"""None where there is none."""
Values = Mapping[str, Sequence[Value]]
"""By modality a value of each row."""


# Rows


def rows(subject: Subject, count: int, having: Collection[str] = ()) -> Batch:
    """So many rows of the split, first those that have all of these modalities, or else the most of them.

    Which ones, the hash of their number says: neighbours in storage may be alike. Raises UserError where the split
    holds no sample.
    """
    manifest, names = subject.manifest, list(subject.run.modalities)
    there = manifest.split(subject.split)
    if not there:
        raise UserError(f"{manifest.directory}: split {subject.split!r} holds no sample to draw")
    asked = manifest.column(list(having) or names)
    wanted = np.array([1 << column for column in set(asked)], np.uint64)
    lacking = len(wanted) - ((manifest.patterns(there)[:, None] & wanted) != 0).sum(1)
    place = np.arange(len(there))
    number = np.lexsort((mix(place.astype(np.uint64) + np.uint64(seed_of("pictures"))), lacking))[:count]
    sample, zeros = there.start + number, np.zeros(len(number), np.uint64)
    refs = Refs(sample, manifest.members(sample, manifest.column(names), zeros, zeros), number)
    collate = Collator([manifest], subject.run.modalities, budget=subject.run.train.damage)
    return collate(refs).to(subject.world.device)


def batch_of(subject: Subject, name: str, values: np.ndarray) -> Batch:
    """Rows that have these values (B, …) of one modality, and nothing else."""
    nothing = empty_batch(subject.run.modalities, subject.world.device)
    everywhere, device = np.arange(len(values)), subject.world.device
    modality = subject.run.modalities[name]
    return replace(
        nothing,
        values={**nothing.values, name: torch.from_numpy(values.astype(modality.dtype)).to(device)},
        rows_of={**nothing.rows_of, name: everywhere},
        present_BM=np.tile(np.array([other == name for other in nothing.values]), (len(values), 1)),
        weight_B=torch.ones(len(values), device=device),
        row_B=torch.from_numpy(everywhere).to(device),
        keys=[f"{name} {row}" for row in everywhere],
    )


def held(batch: Batch) -> Values:
    """The rows' own values."""
    whole: dict[str, list[Value]] = {name: [None] * len(batch) for name in batch.values}
    for name, rows_of in batch.rows_of.items():
        for row, value in zip(rows_of.tolist(), batch.values[name].cpu().numpy(), strict=False):
            whole[name][row] = value
    return whole


# What is made


def makes(subject: Subject, given: Collection[str]) -> list[str]:
    """The modalities that the system generates from these."""
    names = list(subject.run.modalities)
    return [name for name in names if generates(subject.model.family, names, name, frozenset(given))]


def lacking(batch: Batch, given: Collection[str]) -> np.ndarray:
    """Which rows have not all of these modalities: (B,)."""
    columns = [column for column, name in enumerate(batch.values) if name in given]
    return ~np.asarray(batch.present_BM[:, columns].all(1))


@torch.no_grad()
def mean_of(subject: Subject, batch: Batch, given: Collection[str]) -> Tensor:
    """The mean of q(z | x_given): (B, Z)."""
    return subject.model.posterior(batch.only(frozenset(given))).mu


@torch.no_grad()
def samples_of(subject: Subject, batch: Batch, given: Collection[str], count: int, sheet: str) -> Tensor:
    """z ~ q(z | x_given): (K, B, Z); the noise hangs on the run's seed, the sheet, what is given and the row."""
    posterior = subject.model.posterior(batch.only(frozenset(given)))
    width = posterior.noise if isinstance(posterior, Mixture) else subject.model.latent
    purpose = " ".join(["pictures", sheet, *sorted(given)])
    return posterior.sample(normal(subject.run.seed, purpose, batch.row_B, count, width))


@torch.no_grad()
def decoded(subject: Subject, names: Collection[str], z_BZ: Tensor, batch: Batch) -> dict[str, np.ndarray]:
    """The mean of p(x_name | z), or its likeliest value, by modality: (B, …)."""
    model = subject.model
    parameters = {name: model.decode(name, z_BZ, batch) for name in names}
    return {name: model.modalities[name].mean(one).cpu().numpy() for name, one in parameters.items()}
