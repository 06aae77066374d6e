"""Images stored as raw bytes, PNG or JPEG, scored as independent pixels.

Levels in [0, 1] under a Bernoulli are not a normalised density; the papers (MVAE section 5, "Bernoulli") use
this cross-entropy all the same, and so do the numbers beside theirs. Of a Gaussian or Laplace distribution a sigmoid
makes the location, as in MMVAE's and SVAE's decoders (MMVAE table 6, SVAE appendix F).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.codecs import decode_pictures, encode_picture
from modalities.independent import Independent
from modalities.spec import Buffer, npy_header, unwrap_npy

if TYPE_CHECKING:
    from torch import nn

BYTE = np.dtype(np.uint8)
LEAST_SIDE = {"mlp": 1, "conv": 32, "conv-strided": 32, "conv-shallow": 4, "conv-svhn": 8, "conv-split": 8}
"""Pixels a side of the smallest picture of which a network's convolutions leave anything."""


@dataclass(frozen=True)
class Image(Independent):
    """A grey or coloured image of fixed size.

    A corpus gives whole levels, (height, width), or (height, width, 3) with red first; so they are stored. Decoded
    they are float32 from 0 to 1, (height, width) or (3, height, width).
    """

    height: int
    """Rows of pixels."""
    width: int
    """Columns of pixels."""
    levels: int = 255
    """The stored integer that stands for white; pixels are divided by it."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the encoder's hidden linear layers; the decoder has them in reverse (conv-split: its own). There may be
    none after convolutions."""
    codec: Literal["npy", "png", "jpg"] = "npy"
    """How an image is stored, which is also its extension: raw, or compressed without (png) or with loss (jpg)."""
    channels: Literal[1, 3] = 1
    """1: grey. 3: red, green and blue."""
    quality: int = 95
    """JPEG's quality when images are written, 1 to 100; other codecs do not use it."""
    network: Literal["mlp", "conv", "conv-strided", "conv-shallow", "conv-svhn", "conv-split"] = "mlp"
    """mlp: the linear layers of `hidden` alone. Before them, MVAE's mini-DCGAN: conv, four convolutions, for CelebA;
    conv-strided, the last of them halves too, for MultiMNIST; conv-shallow, two without norm, for FashionMNIST. SVAE's
    three with ReLU: conv-svhn, for SVHN, with no `hidden`; conv-split, for parts of MNIST's digits, with 786."""
    likelihood: Literal["bernoulli", "gaussian", "laplace"] = "bernoulli"
    """The distribution of a pixel given z."""
    scale: float = 1.0
    """The standard deviation of gaussian, the diversity b of laplace, in units of white; bernoulli has none."""
    activation: Literal["swish", "relu"] = "swish"
    """What follows each hidden layer of network mlp: MVAE's, or SVAE's and MMVAE's; other networks have their own."""
    shift: float = 0.0
    """Training moves each picture by up to so many pixels along either side; 0, like the next three: not at all."""
    rotate: float = 0.0
    """Training turns each picture by up to so many degrees."""
    zoom: float = 0.0
    """Training shrinks and enlarges each picture by up to this share of its size, 0 to below 1."""
    shear: float = 0.0
    """Training moves the columns of each picture's top against its bottom by up to this share of the height."""
    kind: Literal["image"] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= 255:
            raise ValueError(f"levels is {self.levels}: pixels are stored in one byte, so choose 1 to 255")
        if self.codec == "jpg" and self.levels != 255:
            raise ValueError(f"levels is {self.levels}: JPEG's loss keeps to no smaller range, so choose 255")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}: choose 1 to 100")
        if min(self.height, self.width, *self.hidden) < 1 or (self.network == "mlp" and not self.hidden):
            raise ValueError("height, width and hidden must be at least 1, and network mlp needs at least one width")
        if self.network != "mlp" and self.activation != "swish":
            raise ValueError(
                f"activation is {self.activation}: network {self.network} has its own, so leave it at swish"
            )
        if min(self.shift, self.rotate, self.zoom, self.shear) < 0 or self.zoom >= 1:
            raise ValueError("shift, rotate, zoom and shear must not be negative, and zoom must be below 1")
        least = LEAST_SIDE[self.network]
        if min(self.height, self.width) < least:
            raise ValueError(
                f"network {self.network} takes pictures from {least} x {least} pixels, not {self.height} x "
                f"{self.width}: choose network mlp, or scale them"
            )

    @property
    def augmented(self) -> bool:
        """Whether training sees the pictures mapped (`pipeline/augment.py`)."""
        return max(self.shift, self.rotate, self.zoom, self.shear) > 0

    @property
    def extension(self) -> str:
        return self.codec

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.height, self.width) if self.channels == 1 else (3, self.height, self.width)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def _planes(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)

    @property
    def _stored(self) -> tuple[int, ...]:
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, 3)

    def encode(self, value: np.ndarray) -> bytes:
        if value.shape != self._stored:
            raise ValueError(f"expected shape {self._stored}, got {value.shape}")
        with np.errstate(invalid="ignore"):
            pixels = value.astype(np.uint8, copy=False)
        if pixels.max() > self.levels or not (pixels is value or np.array_equal(pixels, value)):
            raise ValueError(f"expected whole levels 0 to {self.levels}, got {value.min()} to {value.max()}")
        if self.codec == "npy":
            return npy_header(self._stored, BYTE) + pixels.tobytes()
        return encode_picture(pixels, self.codec, self.quality)

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        if self.codec == "npy":
            pixels = unwrap_npy(members, self._stored, BYTE)
        else:
            pixels = decode_pictures(members, self._stored, self.codec)
        if self.levels < 255 and pixels.size and pixels.max() > self.levels:
            raise ValueError(f"expected levels 0 to {self.levels}, got {pixels.max()}")
        if self.channels == 3:
            pixels = np.ascontiguousarray(np.moveaxis(pixels, 3, 1))
        return np.divide(pixels, np.float32(self.levels), dtype=np.float32)

    def encoder(self, latent: int) -> nn.Module:
        if self.network == "mlp":
            return super().encoder(latent)
        from modalities.networks import GaussianEncoder, convolutions

        return GaussianEncoder(*convolutions(self.network, self._planes, self.hidden), latent)

    def features(self) -> tuple[nn.Module, int]:
        if self.network == "mlp":
            return super().features()
        from modalities.networks import convolutions

        return convolutions(self.network, self._planes, self.hidden[:1])

    def decoder(self, latent: int) -> nn.Module:
        if self.network == "mlp":
            return super().decoder(latent)
        from modalities.networks import deconvolutions

        return deconvolutions(self.network, latent, self.hidden, self._planes)
