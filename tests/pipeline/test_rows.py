"""A subset at one bit a sample: the numbers that a list would hold, without the list."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pairing import view
from pipeline.rows import Rows
from pipeline.settings import Pairing

MASKS = st.builds(  # with runs of nothing and of everything that are longer than a word
    lambda pieces: np.repeat([one for one, _ in pieces], [length for _, length in pieces]).astype(bool),
    st.lists(st.tuples(st.booleans(), st.integers(1, 3) | st.integers(1, 200)), max_size=40),
)


@settings(max_examples=300, deadline=None)
@given(MASKS, st.integers(0, 2**40), st.data())
def test_rows_are_the_numbers_of_the_mask(mask: np.ndarray, start: int, data: st.DataObject) -> None:
    rows, numbers = Rows(range(start, start + len(mask)), mask), np.flatnonzero(mask) + start
    assert len(rows) == len(numbers)
    assert list(rows) == numbers.tolist()
    if len(numbers):
        position = np.array(data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=20)), np.int64)
        assert rows[position].tolist() == numbers[position].tolist()
        square = np.resize(np.arange(len(numbers)), (2, 3))
        assert rows[square].tolist() == numbers[square].tolist()


@given(st.integers(0, 300), st.integers(0, 2**40))
def test_without_a_mask_all_are_chosen(size: int, start: int) -> None:
    for rows in (Rows(range(start, start + size)), Rows(range(start, start + size), np.ones(size, bool))):
        assert len(rows) == size
        assert list(rows) == list(range(start, start + size))


def test_the_last_of_many_is_found() -> None:
    """Where counts no longer fit 16 bits, and behind a long stretch of nothing."""
    mask = np.ones(300_000, bool)
    mask[1000:200_000] = False
    rows, numbers = Rows(range(7, 300_007), mask), np.flatnonzero(mask) + 7
    assert np.array_equal(rows[np.arange(len(rows))], numbers)


# Memory

TEN_MILLION = 10**7


class Virtual:
    """A manifest's table of ten million samples of two modalities; one in `lacks` has but the second."""

    directory = fingerprint = "virtual"

    def __init__(self, lacks: int) -> None:
        self.lacks = lacks

    def split(self, name: str) -> range:
        return range(5, 5 + TEN_MILLION)

    def column(self, names: Sequence[str], partly: bool) -> list[int]:
        return list(range(len(names)))

    def patterns(self, rows: range) -> np.ndarray:
        return np.where(np.arange(rows.start, rows.stop) % self.lacks, 3, 2).astype(np.uint64)


@pytest.mark.parametrize(("lacks", "bits"), [(2 * TEN_MILLION, 0.01), (3, 2.1)])
def test_a_view_costs_two_bits_a_sample_or_nothing(lacks: int, bits: float) -> None:
    """One for the sample, one for finding the k-th; nothing where all are shown. What it takes to make it is let go."""
    tracemalloc.start()
    try:
        shown = view(Virtual(lacks), "train", ["m0"], Pairing(), 0, 100)  # type: ignore[arg-type]
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held * 8 < bits * TEN_MILLION + 50_000
    assert peak < 4 * TEN_MILLION  # bytes
    (pool,) = shown.pools
    everything = np.arange(5, 5 + TEN_MILLION)
    expected = everything[everything % lacks > 0]
    assert len(pool) == len(expected) == TEN_MILLION - shown.empty
    position = np.random.default_rng(0).integers(0, len(pool), 10_000)
    assert np.array_equal(pool.samples[position], expected[position])
