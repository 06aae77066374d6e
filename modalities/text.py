"""Text as tokens, e.g. MultiMNIST's strings of up to four digits: GRUs in and out (MVAE supplement A, figure 7).

Token 0 is the end of a text, and also fills what is left of its row; 1 is the start, which a decoder is given and no
text holds. MVAE's twelve tokens are ten digits and these two ("a start token, and stop token"; the authors' code, which
always writes four characters, calls the end FILL).

Shape legend: B rows, L places in a text, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from modalities.spec import Buffer, Modality, npy_header, unwrap_npy

if TYPE_CHECKING:
    from torch import Tensor, nn

END = 0
START = 1


@dataclass(frozen=True)
class Tokens(Modality):
    """Sequences of tokens with an end, stored and decoded as `length` whole numbers: other tokens, then ends only.

    The likelihood is of the tokens and the first end. Over all texts it sums to less than one: the softmax has a place
    for the start token, and for texts that do not end in time. Decoders here give logits (B, L, V): given z, a text's
    places are independent.
    """

    vocabulary: int
    """How many tokens there are, the end and the start among them."""
    length: int
    """Tokens of the longest text, its end among them."""

    extension = "npy"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int64)

    @property
    def _stored(self) -> np.dtype:
        return np.min_scalar_type(self.vocabulary - 1)

    def encode(self, value: np.ndarray) -> bytes:
        if value.shape != self.shape or value.dtype.kind not in "iu":
            raise ValueError(f"expected whole numbers of shape {self.shape}, got {value.dtype} of {value.shape}")
        self._check(value)
        return npy_header(self.shape, self._stored) + value.astype(self._stored).tobytes()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        texts = unwrap_npy(members, self.shape, self._stored)
        self._check(texts)
        return texts.astype(np.int64)

    def _check(self, tokens: np.ndarray) -> None:
        """Raises ValueError unless the (…, length) tokens are texts."""
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise ValueError(f"tokens run from {tokens.min()} to {tokens.max()}, expected 0 to {self.vocabulary - 1}")
        if (tokens == START).any():
            raise ValueError(f"token {START} stands for the start, which no text holds")
        ended = tokens == END
        if not ended[..., -1].all() or (ended[..., :-1] > ended[..., 1:]).any():
            raise ValueError(f"a text must end with token {END} within {self.length} tokens, and hold none after it")

    def encoder(self, latent: int) -> nn.Module:
        from modalities.networks import GaussianEncoder

        return GaussianEncoder(*self.features(), latent)

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        scores = -cross_entropy(parameters.float().flatten(0, 1), value.flatten(), reduction="none").view_as(value)
        return scores.masked_fill(after_end(value), 0).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return ended(parameters.argmax(2))

    def sample(self, parameters: Tensor, uniform_BL: Tensor) -> Tensor:
        """A text of each row's p(x|z), (B, L), made of uniform numbers in [0, 1); `mean` is the likeliest."""
        return ended(drawn(parameters, uniform_BL))


@dataclass(frozen=True)
class Text(Tokens):
    """A short text: tokens from 2, then ends only."""

    embedding: int = 200
    """Features of a token."""
    hidden: int = 200
    """Features of the GRUs' states."""
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        if self.vocabulary < 3 or self.length < 2:
            raise ValueError(
                f"vocabulary is {self.vocabulary} and length {self.length}: choose at least 3 (end, start and a token) "
                f"and 2 (a token and its end)"
            )
        if min(self.embedding, self.hidden) < 1:
            raise ValueError("embedding and hidden must be at least 1")

    def features(self) -> tuple[nn.Module, int]:
        from modalities.recurrent import Reader

        return Reader(self.vocabulary, self.embedding, self.hidden), self.hidden

    def decoder(self, latent: int) -> nn.Module:
        from modalities.recurrent import Writer

        return Writer(latent, self.vocabulary, self.embedding, self.hidden, self.length)


def after_end(tokens_BL: Tensor) -> Tensor:
    """Which places come after a row's first end."""
    ends = tokens_BL == END
    return ends.cumsum(1) > ends


def ended(tokens_BL: Tensor) -> Tensor:
    """The same texts with nothing but ends after the first."""
    return tokens_BL.masked_fill(after_end(tokens_BL), END)


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (…) of distributions (…, V) by their inverse cumulative functions, from numbers (…) in [0, 1).

    In float64: thousands of probabilities summed in float32 would be off by more than many of them.
    """
    reached = logits.double().softmax(-1).cumsum(-1)
    return (reached[..., :-1] <= uniform[..., None] * reached[..., -1:]).sum(-1)
