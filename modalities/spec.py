"""What one modality is: how its bytes are read, which networks it has, how likely a value is under a decoder.

Shape legend: B rows, Z latent dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Modality(ABC):
    """One kind of observation. Subclasses are frozen dataclasses whose fields are the modality's settings.

    A subclass is a value: a recipe holds it, the command line edits it, a checkpoint stores it as JSON. Nothing
    is built (and torch is not imported) until `encoder` or `decoder` is called.
    """

    @property
    @abstractmethod
    def extension(self) -> str:
        """Extension of a member in a shard, without the dot: `KEY.MODALITY.EXTENSION`."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one decoded value; a batch has shape (B, *shape)."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """Element type of a decoded batch."""

    @property
    def member_shape(self) -> tuple[int, ...]:
        """Shape of what one member of a shard holds: of more than one value where modalities share it."""
        return self.shape

    @property
    def network_kind(self) -> Hashable:
        """What the structure of its networks hangs on: those of modalities with one kind may run stacked."""
        return self

    def member(self, name: str) -> str:
        """Which member of a sample holds the modality of this name; several may share one."""
        return name

    @abstractmethod
    def encode(self, value: np.ndarray) -> bytes:
        """Bytes of one value for a shard. Raises ValueError when the value does not fit this modality."""

    @abstractmethod
    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        """(len(members), *shape) from the bytes of several members. Raises ValueError on bytes that do not fit."""

    @abstractmethod
    def encoder(self, latent: int) -> nn.Module:
        """A network (B, *shape) -> (mu_BZ, logvar_BZ): this modality's Gaussian expert."""

    def features(self) -> tuple[nn.Module, int]:
        """A network (B, …) -> (B, H) for an expert that sees other modalities too, and H.

        Raises NotImplementedError where the kind has none: systems of one expert per modality do without.
        """
        raise NotImplementedError(f"{type(self).__name__} has no features for a network that sees several modalities")

    @abstractmethod
    def decoder(self, latent: int) -> nn.Module:
        """A network (B, Z) -> the parameters of p(x|z), in the form that `log_likelihood` takes."""

    @property
    def autoregressive(self) -> bool:
        """Whether the decoder is also called with the values that it scores (`modalities/sentences.py`)."""
        return False

    @abstractmethod
    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        """log p(value | z) in nats, shape (B,), summed over the value's elements, in float32."""

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The expected value (B, *shape) under p(x|z), or the most likely one where a mean has no meaning."""


def unwrap_npy(members: Sequence[Buffer], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Stack members that are `.npy` files of one known shape and type, without a Python object per element.

    Returns an array (len(members), *shape). Raises ValueError when a member has another shape, type or length.
    """
    header = np.frombuffer(npy_header(shape, dtype), np.uint8)
    size = len(header) + math.prod(shape) * dtype.itemsize
    sizes = set(map(len, members)) - {size}
    if sizes:
        raise ValueError(f"expected a .npy array of shape {shape} and type {dtype}, got {min(sizes)} other bytes")
    rows = np.frombuffer(b"".join(members), np.uint8).reshape(len(members), size)
    if not (rows[:, : len(header)] == header).all():
        raise ValueError(f"expected a .npy array of shape {shape} and type {dtype}, got {size} other bytes")
    return rows[:, len(header) :].view(dtype).reshape(len(members), *shape)


@cache
def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The bytes in front of the elements of a `.npy` file of this shape and type (C order)."""
    from io import BytesIO

    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()
