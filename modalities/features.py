"""Feature vectors, e.g. the 2,048 numbers that a ResNet makes of a picture of a bird (MMVAE section 4.3, Caltech-UCSD).

Their networks are MMVAE's (table 6 c), which SVAE has too (table F.6): layers of 1024, 512 and 256 features with ELU,
and nothing after the last of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.independent import Independent
from modalities.spec import Buffer, npy_header, unwrap_npy

if TYPE_CHECKING:
    from torch import Tensor

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Features(Independent):
    """A fixed number of real numbers, stored and decoded in float32."""

    count: int
    """How many numbers there are."""
    hidden: tuple[int, ...] = (1024, 512, 256)
    """Widths of the hidden layers of the encoder; the decoder has them in reverse."""
    likelihood: Literal["gaussian", "laplace"] = "laplace"
    """The distribution of a number given z."""
    scale: float = 1.0
    """Its standard deviation (gaussian) or diversity b (laplace), in the numbers' own unit."""
    kind: Literal["features"] = "features"

    extension = "npy"
    activation = "elu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.count, len(self.hidden), *self.hidden) < 1:
            raise ValueError("count must be at least 1, and hidden must hold at least one width")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    @property
    def dtype(self) -> np.dtype:
        return FLOAT

    def encode(self, value: np.ndarray) -> bytes:
        if value.shape != self.shape or value.dtype.kind not in "fiu":
            raise ValueError(f"expected numbers of shape {self.shape}, got {value.dtype} of {value.shape}")
        with np.errstate(over="ignore"):
            stored = value.astype(FLOAT)
        _check(stored)
        return npy_header(self.shape, FLOAT) + stored.tobytes()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        values = unwrap_npy(members, self.shape, FLOAT).astype(FLOAT)
        _check(values)
        return values

    def location(self, output: Tensor) -> Tensor:
        """The mean of each number, or for laplace its median: what the decoder gives, as it is."""
        return output


def _check(values: np.ndarray) -> None:
    """Raises ValueError unless the (…, count) values are finite."""
    if not (finite := np.isfinite(values)).all():
        raise ValueError(f"expected finite numbers of float32, got {values[~finite][0]}")
