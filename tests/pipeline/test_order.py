"""Permutations: every row once, far from storage order, and never O(N) memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import CHUNK, WINDOW, mix, permute, seed_of, shuffle
from pipeline.pairing import Pool, View, view
from pipeline.settings import Pairing
from pipeline.stream import Share, Stream
from tests.pipeline.tiny import MODALITIES, NAMES, bare

WINDOW_ROWS = CHUNK * WINDOW
KEYS = st.integers(0, 2**64 - 1)
BILLION = 10**9


def one_pass(size: int, key: int) -> np.ndarray:
    return shuffle(np.arange(size), size, np.full(size, key, np.uint64))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3000), KEYS)
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**50), KEYS, st.data())
def test_permute_with_a_key_per_element_is_each_key_s_permutation(size: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)))
    keys = mix(np.uint64(key) ^ np.arange(len(index), dtype=np.uint64))
    together = permute(index, size, keys)
    assert ((together >= 0) & (together < size)).all()
    assert together.tolist() == [int(permute(np.array([i]), size, int(k))[0]) for i, k in zip(index, keys, strict=True)]


def test_permute_is_injective_where_it_cannot_be_listed() -> None:
    size = 2**40 + 12345
    index = np.concatenate([np.arange(5000), size - 1 - np.arange(5000), np.arange(5000) * (size // 5000 - 3) + 7000])
    index = np.unique(index)
    assert len(np.unique(permute(index, size, 5))) == len(index)


def test_every_permutation_of_three_appears_and_places_are_even() -> None:
    keys = np.arange(6000, dtype=np.uint64)
    places = np.stack([permute(np.full(6000, index), 6, mix(keys)) for index in range(6)])
    counts = np.stack([np.bincount(row, minlength=6) for row in places])
    assert (np.abs(counts - 1000) < 150).all()  # five standard deviations
    threes = np.stack([permute(np.full(300, index), 3, mix(keys[:300])) for index in range(3)])
    assert len(np.unique(threes, axis=1).T) == 6


SIZES = [1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, WINDOW_ROWS - 1, WINDOW_ROWS, WINDOW_ROWS + 1, WINDOW_ROWS + CHUNK - 1]
SIZES += [
    WINDOW_ROWS + CHUNK,
    WINDOW_ROWS + CHUNK + 1,
    2 * WINDOW_ROWS - 1,
    2 * WINDOW_ROWS,
    2 * WINDOW_ROWS + 1,
    50001,
]


@pytest.mark.parametrize("size", SIZES)
def test_a_pass_visits_every_row_once_and_the_next_in_another_order(size: int) -> None:
    first, second = one_pass(size, 1), one_pass(size, 2)
    assert np.array_equal(np.sort(first), np.arange(size))
    assert np.array_equal(np.sort(second), np.arange(size))
    if size > 100:
        assert (first != second).mean() > 0.97


@pytest.mark.parametrize("size", [1797, WINDOW_ROWS, 3 * WINDOW_ROWS + 777])
def test_any_position_is_found_without_the_others(size: int) -> None:
    whole = [one_pass(size, key) for key in (8, 9)]
    rng = np.random.default_rng(0)
    position, which = rng.integers(0, size, 500), rng.integers(0, 2, 500)
    found = shuffle(position, size, which.astype(np.uint64) + np.uint64(8))
    assert np.array_equal(found, np.where(which == 0, whole[0][position], whole[1][position]))


@pytest.mark.parametrize("size", [500, 1797, WINDOW_ROWS, WINDOW_ROWS + 1, 100_000])
def test_order_is_uncorrelated_with_storage(size: int) -> None:
    correlations = [np.corrcoef(one_pass(size, key), np.arange(size))[0, 1] for key in range(20)]
    assert abs(np.mean(correlations)) < 0.06
    assert np.max(np.abs(correlations)) < 0.3
    steps = np.diff(one_pass(size, 3))  # neighbours in storage do not stay neighbours
    assert (np.abs(steps) == 1).mean() < 0.02


def test_windows_keep_locality_and_mix() -> None:
    """A window reads at most WINDOW + 1 runs of rows; a batch of it comes from many of them."""
    size = 7 * WINDOW_ROWS + 5 * CHUNK + 100
    order = one_pass(size, 4)
    for start in range(0, size, WINDOW_ROWS):
        rows = np.sort(order[start : start + WINDOW_ROWS])
        assert 1 + (np.diff(rows) > 1).sum() <= WINDOW + 1
    batch = order[WINDOW_ROWS : WINDOW_ROWS + 100]
    assert len(np.unique(batch // CHUNK)) > 40
    windows = [set((order[i * WINDOW_ROWS : (i + 1) * WINDOW_ROWS] // CHUNK).tolist()) for i in range(2)]
    again = set((one_pass(size, 5)[:WINDOW_ROWS] // CHUNK).tolist())
    assert len(windows[0] & again) < len(windows[0])  # another pass puts other chunks together


@pytest.mark.parametrize("size", [1000, 60_000])
def test_batches_of_a_stream_mix_the_shards(tmp_path: Path, size: int) -> None:
    """A stream's order has next to no rank correlation with storage, and each batch has rows of many shards."""
    manifest = bare(tmp_path, np.ones((size, 1), int), shards=size // 20, others=3)
    names = {"m0": MODALITIES["label"]}
    stream = Stream([view(manifest, "train", ["m0"], Pairing(), 0, 100)], names, 0)
    one_epoch = stream.rows(np.arange(size)).sample_B
    assert abs(np.corrcoef(one_epoch, np.arange(size))[0, 1]) < 0.2
    assert abs(np.corrcoef(one_epoch[1:], one_epoch[:-1])[0, 1]) < 0.1
    shards = manifest.shard[manifest.first[one_epoch]][: size // 100 * 100].reshape(-1, 100)
    assert min(len(np.unique(batch)) for batch in shards) >= 38


def test_odd_rows_behind_the_last_chunk_move_from_pass_to_pass() -> None:
    size = WINDOW_ROWS + 10
    last = [frozenset(one_pass(size, key)[-10:].tolist()) for key in range(5)]
    assert len(set(last)) == 5


class Virtual:
    """A billion rows that are their own numbers."""

    fingerprint, size = "virtual", range(3 * BILLION)

    def __len__(self) -> int:
        return BILLION

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def column(self, names: list[str], partly: bool) -> list[int]:
        return list(range(len(names)))

    def members(self, rows: np.ndarray, columns: list[int], choice: np.ndarray, turn: np.ndarray) -> np.ndarray:
        return rows[:, None] * 3 + np.array(columns)


def test_a_billion_rows_cost_no_memory() -> None:
    virtual = Virtual()
    shown = View(virtual, [Pool("all", virtual, np.ones(3, bool))], None, 1000, BILLION)  # type: ignore[arg-type]
    stream = Stream([shown], MODALITIES, 0)
    stream.global_batch(0)
    tracemalloc.start()
    steps = [0, 1, 2, 499_999, 999_999, 1_000_000, 10**9]
    seen = [stream.global_batch(step).sample_B for step in steps]
    shares = [Share(stream, rank, 4)(10**9) for rank in range(4)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    assert np.concatenate([share.sample_B for share in shares]).tolist() == seen[6].tolist()
    one_epoch = np.concatenate(seen[:5])
    assert len(np.unique(one_epoch)) == 5000
    assert ((one_epoch >= 0) & (one_epoch < BILLION)).all()
    assert set(seen[5].tolist()) != set(seen[0].tolist())
    assert stream.global_batch(10**9).member_BM.shape == (1000, len(NAMES))


def test_a_seed_names_its_purpose() -> None:
    seeds = {
        seed_of(0),
        seed_of(1),
        seed_of("1"),
        seed_of(1, 1),
        seed_of("1", 1),
        seed_of(11),
        seed_of("a", "b"),
        seed_of("ab"),
    }
    assert len(seeds) == 8


def test_the_order_is_the_same_for_ever() -> None:
    """A run must resume in its order on another machine, numpy or release: change this only with a new version."""
    text = one_pass(2 * WINDOW_ROWS + 77, seed_of(0, "order")).astype("<i8").tobytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "0eb695ea43b2fa2a"
