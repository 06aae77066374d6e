"""Samples from the prior (MVAE figure 2 a, c, e, g; MMVAE figure 4, top row)."""

from __future__ import annotations

import torch

from pipeline.batch import empty_batch
from pipeline.evaluate.subject import Subject
from pipeline.noise import normal
from pipeline.pictures.looks import Words, faces, titled
from pipeline.pictures.made import Values, decoded
from pipeline.pictures.page import Page, Panel, Tile, side_for

SIDE = 8
"""Samples in a row, and rows."""


def samples(subject: Subject, count: int = SIDE * SIDE) -> Values:
    """Everything that the model decodes of z ~ p(z), `count` rows; the noise hangs on seed and row."""
    model, device = subject.model, subject.world.device
    row_B = torch.arange(count, device=device)
    noise = normal(subject.run.seed, "pictures prior", row_B, 1, model.latent)[0]
    z = model.prior(device).sample(noise)
    return decoded(subject, model.generated, z, empty_batch(model.modalities, device))  # type: ignore[return-value]


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
