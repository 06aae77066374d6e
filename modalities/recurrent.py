"""MVAE's networks for text: its own for short texts, those of Bowman et al. (2015) for sentences.

Sentences run little further than their ends (`modalities/parts.py`). Short texts go through whole.

Shape legend: B rows, L places in a sequence, R places that a layer runs over, N places that count, V tokens,
H features, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from modalities.parts import GRU, LSTM, Parts, last_places
from modalities.sentences import UNKNOWN
from modalities.text import START, drawn, ended

LAYERS = {"lstm": LSTM, "gru": GRU}
LOGITS = 2**24
"""Logits that a sentence's decoder has at a time: 64 MiB, which become their own gradient in place."""


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
        last_B1 = last_places(tokens_BL)
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

    @torch.compiler.disable  # which would make new code for every batch's lengths
    def forward(self, tokens_BL: Tensor) -> Tensor:
        parts = Parts(tokens_BL)
        words = parts.of_places(self.embedding(tokens_BL.flatten().index_select(0, parts.place_R)))
        states_RH: Tensor = self.layer(words, [None] * len(words))
        return states_RH.index_select(0, parts.first_B + last_places(tokens_BL).squeeze(1))


class Words(nn.Linear):
    """States (N, H) -> logits (N, V), or with tokens (N,) the log-probability of each (N,), in float32.

    All in one call: ZeRO 3 gathers weights call by call, and ranks have different numbers of rows.
    """

    def forward(self, states_NH: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        if tokens_N is None:
            return super().forward(states_NH)
        scores: Tensor = _LogProbabilities.apply(states_NH, tokens_N, self.weight, self.bias)
        return scores


class _LogProbabilities(Function):
    """log softmax(W s + b) of one token for each state s, in float32, of at most LOGITS logits at a time.

    As torch's cross entropy, which would hold logits, their softmax and its gradient. This makes each chunk of logits
    once more on the way back and turns it into the gradient in place.
    """

    @staticmethod
    def forward(ctx: Any, states_NH: Tensor, tokens_N: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
        scores, totals = [], []
        for states, tokens in _in_turn(len(weight_VH), states_NH, tokens_N):
            logits = linear(states, weight_VH, bias_V).float()
            score, top = logits.gather(1, tokens[:, None]), logits.amax(1, keepdim=True)
            rest = logits.sub_(top).exp_().sum(1, keepdim=True).log_()
            scores.append(score - top - rest)
            totals.append(top + rest)
        ctx.save_for_backward(states_NH, tokens_N, weight_VH, bias_V, torch.cat(totals))
        return torch.cat(scores).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        states_NH, tokens_N, weight_VH, bias_V, total_N1 = ctx.saved_tensors
        of_states = []
        of_weight, of_bias = (torch.zeros_like(one, dtype=torch.float32) for one in (weight_VH, bias_V))
        for states, tokens, totals, gradients in _in_turn(len(weight_VH), states_NH, tokens_N, total_N1, gradient_N):
            share = linear(states, weight_VH, bias_V).float().sub_(totals).exp_()  # softmax
            share.mul_(-gradients[:, None]).scatter_add_(1, tokens[:, None], gradients[:, None])
            share = share.to(states.dtype)
            of_states.append(share @ weight_VH)
            of_weight += share.T @ states
            of_bias += share.sum(0)
        return torch.cat(of_states), None, of_weight.to(weight_VH.dtype), of_bias.to(bias_V.dtype)


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

    @torch.compiler.disable  # as above
    def forward(self, z_BZ: Tensor, tokens_BL: Tensor | None = None, uniform_BL: Tensor | None = None) -> Tensor:
        """Log-probability (B, L) of each token up to the end after the tokens before it, in float32.

        What stands after the end means nothing. The decoder reads a word as unknown where its number of `uniform_BL` is
        below the share to be dropped. Without tokens it writes them itself.
        """
        if tokens_BL is None:
            return self.write(z_BZ)
        parts = Parts(tokens_BL)
        read_BL = tokens_BL if uniform_BL is None else tokens_BL.masked_fill(uniform_BL < self.dropout, UNKNOWN)
        before_BL = torch.cat([torch.full_like(read_BL[:, :1], START), read_BL[:, :-1]], 1)
        words = parts.of_places(self.embedding(before_BL.flatten().index_select(0, parts.place_R)))
        states_RH = self.layer(words, [self._state(some) for some in parts.of_rows(self.start(z_BZ))])
        tokens_N = tokens_BL.flatten().index_select(0, parts.place_N)
        scores_N: Tensor = self.words(states_RH.index_select(0, parts.kept_N), tokens_N)
        return scores_N.new_zeros(tokens_BL.numel()).index_copy(0, parts.place_N, scores_N).view_as(tokens_BL)

    def write(self, z_BZ: Tensor, uniform_BL: Tensor | None = None) -> Tensor:
        """A sentence (B, L) of each row: the likeliest word each time, or one drawn by a number in [0, 1)."""
        token_B, state = torch.full((len(z_BZ),), START, device=z_BZ.device), self._state(self.start(z_BZ))
        tokens = []
        for place in range(self.length):
            output_B1H, state = self.layer(self.embedding(token_B[:, None]), state)
            logits_BV = self.words(output_B1H.squeeze(1))
            token_B = logits_BV.argmax(1) if uniform_BL is None else drawn(logits_BV, uniform_BL[:, place])
            tokens.append(token_B)
        return ended(torch.stack(tokens, 1))

    def _state(self, start_BH: Tensor) -> Any:
        """The layer's state before the first word: (1, B, H), of an LSTM two."""
        states = [part.contiguous() for part in start_BH[None].chunk(self.states, 2)]
        return states[0] if self.states == 1 else tuple(states)


def _in_turn(vocabulary: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """So many places (N, …) at a time as LOGITS logits have, of each tensor."""
    places = max(1, LOGITS // vocabulary)
    return zip(*(tensor.split(places) for tensor in tensors), strict=True)
