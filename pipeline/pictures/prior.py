"""Samples from the prior (MVAE figure 2 a, c, e, g; MMVAE figure 4, top row)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Batch, empty_batch
from pipeline.evaluate.subject import Subject
from pipeline.noise import normal
from pipeline.pictures.looks import Words, faces, titled
from pipeline.pictures.made import Values, decoded
from pipeline.pictures.page import Page, Panel, Tile, side_for

SIDE = 8
"""Samples in a row, and rows."""


def samples(subject: Subject, count: int = SIDE * SIDE) -> Values:
    """Everything that the model decodes of z ~ p(z), `count` rows; the noise hangs on seed and row."""
    batch = rows(subject, count)
    return decoded(subject, subject.model.generated, latents(subject, batch), batch)  # type: ignore[return-value]


def rows(subject: Subject, count: int) -> Batch:
    """So many rows that have nothing; their keys are their numbers, from 1."""
    nothing, device = empty_batch(subject.run.modalities, subject.world.device), subject.world.device
    return replace(
        nothing,
        present_BM=np.zeros((count, len(nothing.values)), bool),
        weight_B=torch.zeros(count, device=device),
        row_B=torch.arange(count, device=device),
        keys=[str(row + 1) for row in range(count)],
    )


@torch.no_grad()
def latents(subject: Subject, batch: Batch) -> Tensor:
    """z ~ p(z) of each row, (B, Z)."""
    noise = normal(subject.run.seed, "pictures prior", batch.row_B, 1, subject.model.latent)[0]
    return subject.model.prior(batch.row_B.device).sample(noise)


def sheet(subject: Subject) -> Page | None:
    """Each picture on a grid of its own, the same z at the same place; None where there is nothing to draw.

    So it is where no modality is an image, and where the system generates nothing but what goes with other modalities.
    """
    shown = faces(subject.run)
    if not shown or subject.model.family.conditions:
        return None
    values, words = samples(subject), Words.of(subject)
    across = min(len(shown), 3)
    side = side_for(SIDE, across, [face.longest for face in shown], most=112)
    panels = []
    for face in shown:
        tiles = [Tile(one, words.short(values, row)) for row, one in enumerate(face.pictures(values))]
        panels.append(Panel(face.title, [tiles[row : row + SIDE] for row in range(0, len(tiles), SIDE)], side))
    texts = [f"{row + 1}  {text}" for row in range(SIDE) if (text := words.long(values, row))]
    notes = ["The first row, from the left:", *texts] if texts else []
    alike = ", the same z at the same place" if len(shown) > 1 else ""
    title = titled(subject, f"samples from the prior{alike}")
    lines = [panels[start : start + across] for start in range(0, len(panels), across)]
    return Page(title, lines, notes)
