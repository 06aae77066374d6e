"""Sentences as tokens of a large vocabulary: recurrent networks (Bowman et al. 2015), or convolutions (SVAE table F.5).

MVAE section 7 translates with "the RNN architectures from [Bowman et al.] with a maximum sequence length of 70 tokens",
where "word dropout and KL annealing are crucial"; SVAE and MMVAE take convolutions for the captions of CUB, 1590 words
and at most 32 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modalities.text import Tokens, after_end

if TYPE_CHECKING:
    from torch import Tensor, nn

UNKNOWN = 2
"""What a tokenizer has no token for; words begin after it."""


@dataclass(frozen=True)
class Sentences(Tokens):
    """A sentence: the unknown token or words from 3, then ends only.

    A recurrent decoder is autoregressive, p(x|z) = Π_t p(x_t | x_<t, z): `decoder(z_BZ, value_BL, uniform_BL)` gives
    the log-probability (B, L) of each token of the value up to its end, the parameters that `log_likelihood` takes.
    Where training gives numbers in [0, 1), those below `word_dropout` drop their word from what the decoder reads.
    `decoder(z_BZ)` writes a sentence (B, L), the likeliest word after the likeliest word, and `decoder.write` can
    sample.
    """

    length: int = 70
    """Tokens of the longest sentence, its end among them; for cnn a multiple of 8, 32 in the papers."""
    embedding: int = 256
    """Features of a word; for cnn a multiple of 32, 256 in the papers. MVAE gives none for its recurrent networks."""
    hidden: int = 256
    """Features of a recurrent network's states. Of cnn: what it gives to an expert that sees
    other modalities too, by a layer with ReLU (SVAE appendix F, which names no width)."""
    network: Literal["lstm", "gru", "cnn"] = "lstm"
    word_dropout: float = 0.0
    """Share of the words that a recurrent decoder reads in training as unknown."""
    kind: Literal["sentences"] = "sentences"

    def __post_init__(self) -> None:
        if self.vocabulary < 4 or self.length < 2:
            raise ValueError(
                f"vocabulary is {self.vocabulary} and length {self.length}: choose at least 4 (end, start, unknown and "
                f"a word) and 2 (a word and its end)"
            )
        if min(self.embedding, self.hidden) < 1:
            raise ValueError("embedding and hidden must be at least 1")
        if not 0 <= self.word_dropout <= 1:
            raise ValueError(f"word_dropout is {self.word_dropout}: choose a share of the words, 0 to 1")
        if self.network == "cnn" and self.word_dropout:
            raise ValueError("network cnn reads no words when it writes: choose word_dropout 0, or lstm or gru")
        if self.network == "cnn" and (self.length % 8 or self.embedding % 32):
            raise ValueError(
                f"network cnn halves length three times and embedding five times: {self.length} and {self.embedding} "
                f"must be multiples of 8 and 32"
            )

    @property
    def autoregressive(self) -> bool:
        return self.network != "cnn"

    def encoder(self, latent: int) -> nn.Module:
        if self.network != "cnn":
            return super().encoder(latent)
        from modalities.networks import GaussianEncoder
        from modalities.textcnn import reader

        return GaussianEncoder(*reader(self.vocabulary, self.embedding, self.length), latent)

    def features(self) -> tuple[nn.Module, int]:
        if self.network == "cnn":
            from torch import nn

            from modalities.networks import mlp
            from modalities.textcnn import reader

            network, width = reader(self.vocabulary, self.embedding, self.length)
            return nn.Sequential(network, mlp((width, self.hidden), activation="relu")), self.hidden
        from modalities.recurrent import SentenceReader

        return SentenceReader(self.network, self.vocabulary, self.embedding, self.hidden), self.hidden

    def decoder(self, latent: int) -> nn.Module:
        if self.network == "cnn":
            from modalities.textcnn import writer

            return writer(latent, self.vocabulary, self.embedding, self.length)
        from modalities.recurrent import SentenceWriter

        sizes = self.vocabulary, self.embedding, self.hidden, self.length
        return SentenceWriter(self.network, latent, *sizes, self.word_dropout)

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        if not self.autoregressive:
            return super().log_likelihood(parameters, value)
        return parameters.float().masked_fill(after_end(value), 0).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The likeliest words; what a recurrent decoder has written as it is."""
        return parameters if self.autoregressive else super().mean(parameters)
