"""MVAE's networks for text: its own for short texts, those of Bowman et al. (2015) for sentences.

Sequences of all lengths go through together, and nothing here waits for the device to say how long one is.

Shape legend: B rows, L places in a sequence, N places of all rows, V tokens, H features, Z latent dimensions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu
from torch.utils.checkpoint import checkpoint

from modalities.sentences import UNKNOWN
from modalities.text import END, START, drawn, ended

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}
LOGITS = 2**24
"""Logits that a sentence's decoder has at a time: 64 MiB, and some four times that while their gradient is made."""


class Reader(nn.Module):
    """(B, L) tokens -> (B, H): an embedding, and a GRU in each direction, whose last states are summed.

    Either direction ends at a sequence's own end, so what fills the row after it changes nothing.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.forwards = nn.GRU(embedding, hidden, batch_first=True)
        self.backwards = nn.GRU(embedding, hidden, batch_first=True)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        last_B1 = _last(tokens_BL)
        reversed_BL = tokens_BL.gather(1, (last_B1 - place_L).clamp(min=0))
        states = [
            gru(self.embedding(tokens))[0].take_along_dim(last_B1[..., None], 1).squeeze(1)
            for gru, tokens in ((self.forwards, tokens_BL), (self.backwards, reversed_BL))
        ]
        return states[0] + states[1]


class Writer(nn.Module):
    """(B, Z) -> logits (B, L, V): two layers of GRU that start from z, and at each place see z and the token before.

    That token is the likeliest of the place before, in training too: p(x|z) then has z alone to go by, and given z
    its places are independent. So the authors' code does it (mhw32/multimodal-vae-public, multimnist/model.py), whose
    layers these are; the papers (earlier version, section 4.3; supplement A) sample a token, and say nothing of z.
    """

    def __init__(self, latent: int, vocabulary: int, embedding: int, hidden: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.start = nn.Linear(latent, hidden)
        self.lower = nn.GRUCell(embedding + latent, hidden)
        self.upper = nn.GRUCell(hidden, hidden)
        self.logits = nn.Linear(hidden + latent, vocabulary)

    def forward(self, z_BZ: Tensor) -> Tensor:
        token_B = torch.full((len(z_BZ),), START, device=z_BZ.device)
        lower_BH = upper_BH = self.start(z_BZ)
        logits = []
        for _ in range(self.length):
            lower_BH = self.lower(torch.cat([silu(self.embedding(token_B)), z_BZ], 1), lower_BH)
            upper_BH = self.upper(lower_BH, upper_BH)
            logits.append(self.logits(torch.cat([upper_BH, z_BZ], 1)))
            token_B = logits[-1].argmax(1)
        return torch.stack(logits, 1)


class SentenceReader(nn.Module):
    """(B, L) tokens -> (B, H): an embedding and one layer, LSTM or GRU, with its state at a sentence's end."""

    def __init__(self, layer: str, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layer = LAYERS[layer](embedding, hidden, batch_first=True)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        states_BLH, _ = self.layer(self.embedding(tokens_BL))
        return states_BLH.take_along_dim(_last(tokens_BL)[..., None], 1).squeeze(1)


class Words(nn.Linear):
    """States (N, H) -> logits (N, V), or with tokens (N,) the log-probability of each (N,), in float32.

    Log-probabilities are made of so many places at a time that there are never more than LOGITS logits; the gradient
    makes them again. All in one call: ZeRO 3 gathers weights call by call, and ranks have different numbers of rows.
    """

    def forward(self, states_NH: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        if tokens_N is None:
            return super().forward(states_NH)
        places = max(1, LOGITS // self.out_features)
        score = partial(checkpoint, self._score, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([*map(score, states_NH.split(places), tokens_N.split(places))])

    def _score(self, states_NH: Tensor, tokens_N: Tensor) -> Tensor:
        return -cross_entropy(super().forward(states_NH).float(), tokens_N, reduction="none")


class SentenceWriter(nn.Module):
    """p(x|z) = Π_t p(x_t | x_<t, z): one layer, LSTM or GRU, whose first state z makes, and which reads word by word.

    z is not put beside the words as well: Bowman et al. (section 3) tried that and saw little difference.
    """

    def __init__(
        self, layer: str, latent: int, vocabulary: int, embedding: int, hidden: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        self.states = 2 if layer == "lstm" else 1
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.start = nn.Linear(latent, self.states * hidden)
        self.layer = LAYERS[layer](embedding, hidden, batch_first=True)
        self.words = Words(hidden, vocabulary)

    def forward(self, z_BZ: Tensor, tokens_BL: Tensor | None = None, uniform_BL: Tensor | None = None) -> Tensor:
        """Log-probability (B, L) of each token after the tokens before it, those after the end too, in float32.

        The decoder reads a word as unknown where its number of `uniform_BL` is below the share to be dropped. Without
        tokens it writes them itself.
        """
        if tokens_BL is None:
            return self.write(z_BZ)
        read_BL = tokens_BL if uniform_BL is None else tokens_BL.masked_fill(uniform_BL < self.dropout, UNKNOWN)
        before_BL = torch.cat([torch.full_like(read_BL[:, :1], START), read_BL[:, :-1]], 1)
        states_BLH, _ = self.layer(self.embedding(before_BL), self._first(z_BZ))
        scores: Tensor = self.words(states_BLH.flatten(0, 1), tokens_BL.flatten())
        return scores.view_as(tokens_BL)

    def write(self, z_BZ: Tensor, uniform_BL: Tensor | None = None) -> Tensor:
        """A sentence (B, L) of each row: the likeliest word each time, or one drawn by a number in [0, 1)."""
        token_B, state = torch.full((len(z_BZ),), START, device=z_BZ.device), self._first(z_BZ)
        tokens = []
        for place in range(self.length):
            output_B1H, state = self.layer(self.embedding(token_B[:, None]), state)
            logits_BV = self.words(output_B1H.squeeze(1))
            token_B = logits_BV.argmax(1) if uniform_BL is None else drawn(logits_BV, uniform_BL[:, place])
            tokens.append(token_B)
        return ended(torch.stack(tokens, 1))

    def _first(self, z_BZ: Tensor) -> Any:
        """The layer's state before the first word: (1, B, H), of an LSTM two."""
        states = [part.contiguous() for part in self.start(z_BZ)[None].chunk(self.states, 2)]
        return states[0] if self.states == 1 else tuple(states)


def _last(tokens_BL: Tensor) -> Tensor:
    """The place of each row's first end, or its last place: (B, 1)."""
    going_BL = (tokens_BL == END).cumsum(1) == 0
    return going_BL.sum(1, keepdim=True).clamp(max=tokens_BL.shape[1] - 1)
