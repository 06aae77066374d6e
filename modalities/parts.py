"""Recurrent layers on sentences of all lengths, most of them much shorter than their rows.

torch's packed sequences run on a CPU place by place, and their gradient takes longer than that of full rows. Here the
rows of a batch are sorted by length, and a layer runs over parts of them that are cut to their longest.

Shape legend: B rows of a batch, L places in a row, R places of all parts, N of them that count, E features; b rows of a
part, l places in them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalities.text import END

PARTS = 6
"""More of them run over fewer places, and have fewer rows to share the products of a place."""


class Parts:
    """The places of a batch of sentences in parts: rows of like lengths, up to the end of the longest of them.

    On a device, which would have to be waited for, each sentence is taken to fill its row, and all are one part.
    """

    def __init__(self, tokens_BL: Tensor) -> None:
        length_B, room = lengths(tokens_BL), tokens_BL.shape[1]
        order_B = np.argsort(-length_B, kind="stable")  # the longest first
        count = min(PARTS, len(order_B)) if length_B.min() < length_B.max() else 1
        places = [rows[:, None] * room + np.arange(length_B[rows[0]]) for rows in np.array_split(order_B, count)]
        place_R = np.concatenate([some.ravel() for some in places])
        kept_N = np.flatnonzero(place_R % room < length_B[place_R // room])
        first_B = np.empty_like(order_B)
        first_B[order_B] = np.flatnonzero(place_R % room == 0)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(tokens_BL.device, non_blocking=True)

        self._shapes = [some.shape for some in places]
        self._order_B = tensor(order_B)
        self.place_R = tensor(place_R)
        """Where in the flattened batch the places of all parts are, one part after the other."""
        self.kept_N = tensor(kept_N)
        """Which of them come no later than the end of their row."""
        self.place_N = tensor(place_R[kept_N])
        self.first_B = tensor(first_B)
        """With which of them each row begins."""

    def of_places(self, values_RE: Tensor) -> list[Tensor]:
        """What belongs to the places of each part, (b, l, E)."""
        sizes = [rows * longest for rows, longest in self._shapes]
        return [some.view(*shape, -1) for some, shape in zip(values_RE.split(sizes), self._shapes, strict=True)]

    def of_rows(self, values_BE: Tensor) -> list[Tensor]:
        """What belongs to the rows of each part, (b, E)."""
        return list(values_BE.index_select(0, self._order_B).split([rows for rows, _ in self._shapes]))


class _InParts(nn.Module):
    """A recurrent layer that takes a list of parts too, in one call: ZeRO 3 gathers weights call by call."""

    def forward(self, words: Any, state: Any = None) -> Any:
        """As torch's; of a list of parts (b, l, E) and one of their first states the states of all places, (R, H)."""
        run = super().forward
        if not isinstance(words, list):
            return run(words, state)
        return torch.cat([run(part, first)[0].flatten(0, 1) for part, first in zip(words, state, strict=True)])


class LSTM(_InParts, nn.LSTM):
    """torch's, in parts."""


class GRU(_InParts, nn.GRU):
    """torch's, in parts."""


def lengths(tokens_BL: Tensor) -> np.ndarray:
    """How many places of each row a layer runs over: up to its first end, if that is known without waiting."""
    if tokens_BL.is_cpu:
        found: np.ndarray = (last_places(tokens_BL) + 1).squeeze(1).numpy()
        return found
    return np.full(*tokens_BL.shape)


def last_places(tokens_BL: Tensor) -> Tensor:
    """The place of each row's first end, or its last place: (B, 1)."""
    going_BL = (tokens_BL == END).cumsum(1) == 0
    return going_BL.sum(1, keepdim=True).clamp(max=tokens_BL.shape[1] - 1)
