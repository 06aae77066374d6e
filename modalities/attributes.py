"""Attributes that apply or do not, e.g. the 18 of CelebA that MVAE uses (section 5), as independent Bernoullis.

Their networks are MVAE's: two hidden layers of 512 features with Swish and an affine normalisation before it (earlier
version, section 4.4; the parameters of table 1 confirm it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.independent import Independent
from modalities.spec import Buffer, npy_header, unwrap_npy

if TYPE_CHECKING:
    from torch import nn

BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class Attributes(Independent):
    """A fixed number of yes/no attributes, or some of those that one member of a sample holds.

    `Attributes(count=1, of="attributes", first=3, among=18)` is the fourth of the 18 in the member `attributes`.
    """

    count: int
    """How many attributes there are; each is 0 or 1."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers of the encoder; the decoder has them in reverse."""
    of: str = ""
    """The member that they are a part of, where it is not the modality's own."""
    first: int = 0
    """How many attributes of that member come before these."""
    among: int = 0
    """How many attributes that member holds."""
    kind: Literal["attributes"] = "attributes"

    extension = "npy"

    def __post_init__(self) -> None:
        if min(self.count, len(self.hidden), *self.hidden) < 1:
            raise ValueError("count must be at least 1, and hidden must hold at least one width")
        if not self.of and (self.first or self.among):
            raise ValueError(
                f"first is {self.first} and among {self.among}: of must name the member that they are about"
            )
        if self.of and not 0 <= self.first <= self.first + self.count <= self.among:
            raise ValueError(
                f"the {self.count} attributes from {self.first} on are not among the {self.among} of {self.of}: "
                "first must be at least 0, and first + count at most among"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def member_shape(self) -> tuple[int, ...]:
        return (self.among,) if self.of else self.shape

    @property
    def network_kind(self) -> Attributes:
        return replace(self, of="", first=0, among=0)

    def member(self, name: str) -> str:
        return self.of or name

    def encode(self, value: np.ndarray) -> bytes:
        if self.of:
            raise ValueError(f"a part of {self.of} is not written by itself: write all {self.among} attributes of it")
        if value.shape != self.shape:
            raise ValueError(f"expected shape {self.shape}, got {value.shape}")
        if not ((value == 0) | (value == 1)).all():
            raise ValueError(f"expected attributes that are 0 or 1, got {value.min()} to {value.max()}")
        return npy_header(self.shape, BYTE) + value.astype(BYTE).tobytes()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        values = unwrap_npy(members, self.member_shape, BYTE)
        if values.size and values.max() > 1:
            raise ValueError(f"expected attributes that are 0 or 1, got {values.max()}")
        return values[:, self.first : self.first + self.count].astype(np.float32)

    def encoder(self, latent: int) -> nn.Module:
        from modalities.networks import GaussianEncoder, mlp

        return GaussianEncoder(mlp((self.count, *self.hidden), norm=True), self.hidden[-1], latent)

    def decoder(self, latent: int) -> nn.Module:
        from modalities.networks import mlp

        return mlp((latent, *reversed(self.hidden), self.count), last_activation=False, norm=True)
