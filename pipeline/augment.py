"""Small random affine maps of training pictures: what a model sees and reconstructs instead of the picture itself.

How large they are an `Image` says (shift, rotate, zoom, shear). The map of a row is a pure function of (seed, number of
the row in the whole run, modality), so it is the same on any number of ranks, in any micro-batch and after a resume.
Validation and evaluation never see one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from modalities import Image, Modality
from pipeline.batch import Batch, on_device
from pipeline.noise import normal, uniform


def augment(batch: Batch, modalities: Mapping[str, Modality], seed: int) -> Batch:
    """The same rows, with the pictures mapped of every modality that asks for it."""
    values = dict(batch.values)
    for name, modality in modalities.items():
        rows = batch.rows_of[name]
        if isinstance(modality, Image) and modality.augmented and len(rows):
            row_N = batch.row_B.index_select(0, on_device(rows, batch.row_B.device))
            values[name] = augmented(values[name], modality, seed, name, row_N)
    return replace(batch, values=values)


def augmented(pictures: Tensor, image: Image, seed: int, name: str, row_N: Tensor) -> Tensor:
    """Each picture turned, sheared, scaled and moved about its centre, on its own device; same shape, within [0, 1].

    `pictures` are (N, height, width) or (N, 3, height, width), `row_N` the rows' numbers in the whole run, `name` the
    modality's. Between pixels it interpolates linearly; what comes in over an edge is that edge's pixel.
    """
    drawn = 2 * uniform(normal(seed, "augment", row_N, 1, 1)[0, :, 0], name, 5) - 1  # from -1 to 1
    angle, shear, zoom, right, down = drawn.unbind(1)
    angle, shear, scale = math.radians(image.rotate) * angle, image.shear * shear, 1 + image.zoom * zoom
    # where the pixel at (x, y) comes from; affine_grid counts from the centre, in half widths and half heights
    ratio, cos, sin = image.height / image.width, scale * angle.cos(), scale * angle.sin()
    x = torch.stack([cos, (shear * cos - sin) * ratio, 2 * image.shift / image.width * right], 1)
    y = torch.stack([sin / ratio, shear * sin + cos, 2 * image.shift / image.height * down], 1)
    planes = pictures.view(len(pictures), image.channels, image.height, image.width)
    grid = affine_grid(torch.stack([x, y], 1), list(planes.shape), align_corners=False)
    mapped = grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return mapped.clamp_(0, 1).view_as(pictures)
