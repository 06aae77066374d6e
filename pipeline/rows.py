"""A subset of a manifest's samples at one bit a sample: views of any size without a list of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

WORD = 64
"""Bits that are counted together: to find the k-th sample, one word is looked through."""


class Rows:
    """Some of the samples start … stop - 1, in their order. Where it is all of them, nothing is kept."""

    def __init__(self, span: range, chosen: np.ndarray | None = None) -> None:
        """`chosen` has one bool per sample of the span; None chooses all."""
        self._span, self._bits = span, None
        self._length = len(span)
        if chosen is not None and not chosen.all():
            padded = np.zeros(-(-len(span) // WORD) * WORD, bool)
            padded[: len(span)] = chosen
            self._bits = np.packbits(padded, bitorder="little").reshape(-1, WORD // 8)
            self._before = np.cumsum(padded.reshape(-1, WORD).sum(1)) - padded.reshape(-1, WORD).sum(1)
            self._length = int(chosen.sum())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: np.ndarray) -> np.ndarray:
        """The sample at each position, 0 … len - 1: a search and a look through one word each."""
        position = np.asarray(position)
        if self._bits is None:
            return self._span.start + position
        word = np.searchsorted(self._before, position, side="right") - 1
        bits = np.unpackbits(self._bits[word], axis=-1, bitorder="little")
        rank = np.cumsum(bits, axis=-1, dtype=np.uint8)
        within = np.argmax(rank > (position - self._before[word])[..., None], axis=-1)
        return self._span.start + word * WORD + within

    def __iter__(self) -> Iterator[int]:
        return iter(self[np.arange(len(self))].tolist())
