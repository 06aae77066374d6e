"""Grey images stored as raw bytes, scored as independent Bernoulli pixels.

Grey levels in [0, 1] under a Bernoulli are not a normalised density; the papers (MVAE section 5, "Bernoulli") use
this cross-entropy all the same, and so do the numbers beside theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.spec import Buffer, Modality, npy_header, unwrap_npy

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Image(Modality):
    """A grey image of fixed size."""

    height: int
    """Rows of pixels."""
    width: int
    """Columns of pixels."""
    levels: int = 255
    """The stored integer that stands for white; pixels are divided by it."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers of the encoder; the decoder has them in reverse."""
    kind: Literal["image"] = "image"

    extension = "npy"

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 255:
            raise ValueError(f"levels is {self.levels}: pixels are stored in one byte, so choose 1 to 255")
        if min(self.height, self.width, len(self.hidden), *self.hidden) < 1:
            raise ValueError("height and width must be at least 1, and hidden must hold at least one width")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.height, self.width)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @cached_property
    def _header(self) -> bytes:
        return npy_header(self.shape, np.dtype(np.uint8))

    def encode(self, value: np.ndarray) -> bytes:
        if value.shape != self.shape:
            raise ValueError(f"expected shape {self.shape}, got {value.shape}")
        with np.errstate(invalid="ignore"):
            pixels = value.astype(np.uint8)
        if pixels.max() > self.levels or not np.array_equal(pixels, value):
            raise ValueError(f"expected whole levels 0 to {self.levels}, got {value.min()} to {value.max()}")
        return self._header + pixels.tobytes()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        pixels = unwrap_npy(members, self.shape, np.dtype(np.uint8))
        if pixels.size and pixels.max() > self.levels:
            raise ValueError(f"expected levels 0 to {self.levels}, got {pixels.max()}")
        return pixels.astype(np.float32) / np.float32(self.levels)

    def encoder(self, latent: int) -> nn.Module:
        from modalities.networks import GaussianEncoder, mlp

        size = self.height * self.width
        return GaussianEncoder(mlp((size, *self.hidden)), self.hidden[-1], latent)

    def decoder(self, latent: int) -> nn.Module:
        from modalities.networks import mlp

        return mlp((latent, *reversed(self.hidden), self.height * self.width), last_activation=False)

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        target = value.flatten(1).float()
        return -binary_cross_entropy_with_logits(parameters.float(), target, reduction="none").sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.float().sigmoid().unflatten(1, self.shape)
