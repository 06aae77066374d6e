"""A class label: an embedding in, a categorical distribution out (MVAE table 1: Embedding(10, 512)-512-heads)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.spec import Buffer, Modality

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Label(Modality):
    """One of a fixed number of classes."""

    classes: int
    """How many classes there are; labels are 0 to classes - 1."""
    hidden: tuple[int, ...] = (512, 512)
    """Width of the embedding, then of the hidden layers; the decoder has them in reverse."""
    kind: Literal["label"] = "label"

    extension = "cls"

    def __post_init__(self) -> None:
        if min(self.classes, len(self.hidden), *self.hidden) < 1:
            raise ValueError("classes must be at least 1, and hidden must hold at least one width")

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int64)

    def encode(self, value: np.ndarray) -> bytes:
        if value.shape != () or value.item() not in range(self.classes):
            raise ValueError(f"label {value} is not one of 0 to {self.classes - 1}")
        return str(int(value)).encode()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        digits = b"".join(members)
        if set(map(len, members)) == {1} and digits.isdigit():
            labels = np.frombuffer(digits, np.uint8).astype(np.int64) - ord("0")
        else:
            labels = np.array(list(map(int, members)), object)  # of any size
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}, expected 0 to {self.classes - 1}")
        return labels.astype(np.int64)

    def encoder(self, latent: int) -> nn.Module:
        from torch import nn

        from modalities.networks import GaussianEncoder, mlp

        body = nn.Sequential(nn.Embedding(self.classes, self.hidden[0]), mlp(self.hidden))
        return GaussianEncoder(body, self.hidden[-1], latent)

    def features(self) -> tuple[nn.Module, int]:
        from torch import nn

        return nn.Embedding(self.classes, self.hidden[0]), self.hidden[0]

    def decoder(self, latent: int) -> nn.Module:
        from modalities.networks import mlp

        return mlp((latent, *reversed(self.hidden), self.classes), last_activation=False)

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return -cross_entropy(parameters.float(), value, reduction="none")

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(1)
