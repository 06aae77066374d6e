"""Attributes that apply or do not, e.g. the 18 of CelebA that MVAE uses (section 5), as independent Bernoullis.

Their networks are MVAE's: two hidden layers of 512 features with Swish and an affine normalisation before it (earlier
version, section 4.4; the parameters of table 1 confirm it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.bernoulli import Bernoulli
from modalities.spec import Buffer, npy_header, unwrap_npy

if TYPE_CHECKING:
    from torch import nn

BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class Attributes(Bernoulli):
    """A fixed number of yes/no attributes."""

    count: int
    """How many attributes there are; each is 0 or 1."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers of the encoder; the decoder has them in reverse."""
    kind: Literal["attributes"] = "attributes"

    extension = "npy"

    def __post_init__(self) -> None:
        if min(self.count, len(self.hidden), *self.hidden) < 1:
            raise ValueError("count must be at least 1, and hidden must hold at least one width")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def encode(self, value: np.ndarray) -> bytes:
        if value.shape != self.shape:
            raise ValueError(f"expected shape {self.shape}, got {value.shape}")
        if not ((value == 0) | (value == 1)).all():
            raise ValueError(f"expected attributes that are 0 or 1, got {value.min()} to {value.max()}")
        return npy_header(self.shape, BYTE) + value.astype(BYTE).tobytes()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        values = unwrap_npy(members, self.shape, BYTE)
        if values.size and values.max() > 1:
            raise ValueError(f"expected attributes that are 0 or 1, got {values.max()}")
        return values.astype(np.float32)

    def encoder(self, latent: int) -> nn.Module:
        from modalities.networks import GaussianEncoder, mlp

        return GaussianEncoder(mlp((self.count, *self.hidden), norm=True), self.hidden[-1], latent)

    def decoder(self, latent: int) -> nn.Module:
        from modalities.networks import mlp

        return mlp((latent, *reversed(self.hidden), self.count), last_activation=False, norm=True)
