"""What holds of the stream over any manifest, view, mixture and batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from infra.errors import UserError
from modalities import Label
from pipeline.manifest import Manifest
from pipeline.pairing import Pool, View, is_pair, key_hashes, mixture
from pipeline.settings import Pairing
from pipeline.stream import Refs, Share, Stream, rows_for_rank
from tests.pipeline.tiny import bare

COLUMNS = 4
SHARES = st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1)
INSTANCES = st.sampled_from([0, 0, 1, 1, 2, 10])


@dataclass(frozen=True)
class Case:
    """A stream over one manifest or two; table[m] is the number of instances by (sample, the run's modality)."""

    stream: Stream
    names: list[str]
    pairing: Pairing
    tables: list[np.ndarray]
    starts: list[tuple[int, int]]
    """The numbers that the stream gives each manifest's first sample and first member."""

    def source(self, samples: np.ndarray) -> np.ndarray:
        """Which manifest each sample is of."""
        return np.searchsorted([sample for sample, _ in self.starts], samples, side="right") - 1


@st.composite
def pairings(draw: st.DrawFn) -> Pairing:
    kind = draw(st.sampled_from(["declared", "split", "keep-one", "keep"]))
    if kind == "keep":
        return Pairing(view=kind, keep=draw(SHARES))
    composition = draw(st.sampled_from(["natural", "balanced"]))
    return Pairing(kind, draw(SHARES), composition=composition, complete_share=draw(SHARES))  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Also of a single sample, of samples that lack everything, and of shards without a sample.

    A pairing that such data refuse gives way to `declared`, which needs one row only.
    """
    names = draw(st.permutations([f"m{column}" for column in range(COLUMNS)]))[: draw(st.integers(1, COLUMNS))]
    batch, seed, pairing = draw(st.integers(4, 30)), draw(st.integers(0, 2**64)), draw(pairings())
    columns = [int(name[1]) for name in names]
    manifests: list[Manifest] = []
    tables: list[np.ndarray] = []
    with TemporaryDirectory() as directory:
        for number in range(draw(st.integers(1, 2))):
            width = COLUMNS if number == 0 else draw(st.integers(columns[0] + 1, COLUMNS))
            shape = (draw(st.integers(1, 3) | st.integers(1, 40)), width)
            instances = draw(arrays(np.int64, shape, elements=INSTANCES, fill=st.nothing()))
            instances[-1, columns[0]] = 1
            others = draw(st.integers(0, 3))
            manifests.append(bare(Path(directory) / str(number), instances, draw(st.integers(1, 4)), others))
            tables.append(np.pad(instances, ((others, 0), (0, COLUMNS - width)))[:, columns])
    shares = [1.0] if len(manifests) == 1 else [0.5, draw(st.sampled_from([0.5, 0.2]))]
    with patch("pipeline.pairing.CHUNK", draw(st.sampled_from([5, 2**18]))):
        views = mixture(manifests, shares, names, pairing, seed, batch)
        reason = refusal(views)
        if reason:
            with pytest.raises(UserError, match=reason):
                Stream(views, dict.fromkeys(names, Label(2)), seed)
            pairing = Pairing()
            views = mixture(manifests, shares, names, pairing, seed, batch)
    stream = Stream(views, dict.fromkeys(names, Label(2)), seed)
    starts = [(0, 0), (len(manifests[0]), len(manifests[0].size))][: len(manifests)]
    return Case(stream, list(names), pairing, tables, starts)


def refusal(views: list[View]) -> str:
    """Why no stream can be made of these views, or nothing."""
    for view in views:
        if view.starved or not view.pools:
            return "is too small" if view.pools else "shows no row"
    return ""


def same(one: Refs, other: Refs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


NUMBERS = st.lists(st.integers(0, 200) | st.integers(0, 10**12), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(cases(), NUMBERS, st.data())
def test_each_row_is_a_function_of_its_number(case: Case, numbers: list[int], data: st.DataObject) -> None:
    """Any rows in any order, one by one or together, are the rows that come in sequence."""
    rows, stream = np.array(numbers), case.stream
    together = stream.rows(rows)
    for index in range(len(rows)):
        assert same(stream.rows(rows[index : index + 1]), together[index : index + 1])
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    again = stream.rows(rows[order])
    assert same(again, Refs(together.sample_B[order], together.member_BM[order], together.row_B[order]))
    step = data.draw(st.integers(0, 30) | st.integers(0, 10**10))
    batches = [stream.global_batch(step + one) for one in range(3)]
    assert same(
        stream.rows(np.arange(step * stream.batch, (step + 3) * stream.batch)),
        Refs(*(np.concatenate(parts) for parts in zip(*(vars(one).values() for one in batches), strict=True))),
    )


@settings(max_examples=60, deadline=None)
@given(cases(), st.lists(st.integers(0, 50) | st.integers(0, 10**9), min_size=1, max_size=4), st.data())
def test_the_ranks_rows_side_by_side_are_the_global_batch(case: Case, steps: list[int], data: st.DataObject) -> None:
    """However many rows a rank works out together, and in whatever order it is asked."""
    stream = case.stream
    world = data.draw(st.sampled_from([n for n in range(1, stream.batch + 1) if stream.batch % n == 0]))
    with patch.object(Share, "ROWS", data.draw(st.integers(1, 200))):
        shares = [Share(stream, rank, world) for rank in range(world)]
    for step in steps:
        whole = stream.global_batch(step)
        assert whole.row_B.tolist() == list(range(step * stream.batch, (step + 1) * stream.batch))
        for rank, share in enumerate(shares):
            part = slice(rank * stream.batch // world, (rank + 1) * stream.batch // world)
            assert same(share(step), whole[part])
            assert same(rows_for_rank(whole, rank, world), whole[part])


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 10**9))
def test_a_row_shows_what_is_declared_and_nothing_else(case: Case, start: int) -> None:
    """A training sample's own members, of the right modality, and none that its view hides."""
    refs = case.stream.rows(np.arange(start, start + 300))
    for source, manifest in enumerate(case.stream.manifests):
        mine = case.source(refs.sample_B) == source
        sample = refs.sample_B[mine] - case.starts[source][0]
        member = refs.member_BM[mine] - case.starts[source][1]
        split, has = manifest.split("train"), case.tables[source][sample] > 0
        assert np.isin(sample, split).all()
        shown = refs.member_BM[mine] >= 0
        assert shown.any(1).all()
        assert not (shown & ~has).any()
        assert (refs.member_BM[mine][~shown] == -1).all()
        place, column = np.nonzero(shown)
        of = member[place, column]
        assert (manifest.first[sample[place]] <= of).all()
        assert (of < manifest.first[sample[place] + 1]).all()
        assert [list(manifest.modalities)[kind] for kind in manifest.modality[of]] == [case.names[c] for c in column]
        pairing = case.pairing if source == 0 else Pairing()
        if pairing.view == "declared":
            assert np.array_equal(shown, has)
        elif pairing.view != "keep":
            hashes = key_hashes(manifest.keys(split), case.stream.seed)
            paired = is_pair(hashes, pairing.fraction)[sample - split.start]
            assert np.array_equal(shown[paired], has[paired])
            assert (shown[~paired].sum(1) == 1).all()


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 60))
def test_each_pass_over_the_rows_of_a_view_has_each_of_them_once(case: Case, steps: int) -> None:
    """After any number of steps no row came twice as one has not come yet; of balanced views, in each pool on its own.

    Which rows there are follows from the table and the pairing.
    """
    refs = case.stream.rows(np.arange(steps * case.stream.batch))
    counts = Counter(zip(refs.sample_B.tolist(), map(tuple, (refs.member_BM >= 0).tolist()), strict=True))
    for source, view in enumerate(case.stream.views):
        split = view.manifest.split("train")
        lanes = [view.pools] if view.counts is None else [[pool] for pool in view.pools]
        rows = [row for pool in view.pools for row in rows_of(case, source, pool)]
        assert len(set(rows)) == len(rows)
        assert (view.keys, view.empty) == (len(split), len(split) - len({sample for sample, _ in rows}))
        check_rows(case, source, rows)
        for pools, count in zip(lanes, view.counts or [view.rows], strict=True):
            often = [counts.pop(row, 0) for pool in pools for row in rows_of(case, source, pool)]
            assert sum(often) == steps * count
            assert max(often) - min(often) <= 1
    assert not counts


Row = tuple[int, tuple[bool, ...]]


def rows_of(case: Case, source: int, pool: Pool) -> list[Row]:
    """(sample, what it shows) of a pool's rows, the samples numbered as by the stream."""
    samples = np.array(list(pool.samples))
    shown = (case.tables[source][samples] > 0) & (pool.shown if pool.kept is None else pool.kept(samples))
    return list(zip((samples + case.starts[source][0]).tolist(), map(tuple, shown.tolist()), strict=True))


def check_rows(case: Case, source: int, rows: list[Row]) -> None:
    """Each sample gives the rows that its view promises."""
    manifest, pairing = case.stream.manifests[source], case.pairing if source == 0 else Pairing()
    split = manifest.split("train")
    paired = is_pair(key_hashes(manifest.keys(split), case.stream.seed), pairing.fraction)
    shown: dict[int, list[tuple[bool, ...]]] = {}
    for sample, pattern in rows:
        shown.setdefault(sample - case.starts[source][0], []).append(pattern)
    for sample in split:
        has, found = case.tables[source][sample] > 0, shown.get(sample, [])
        alone = [tuple(row) for row in (np.eye(len(has), dtype=bool) & has).tolist() if any(row)]
        if pairing.view == "declared" or (pairing.view != "keep" and paired[sample - split.start]):
            assert found == [tuple(has.tolist())] * bool(has.any())
        elif pairing.view == "split":
            assert found == alone
        elif pairing.view == "keep-one":
            assert len(found) == has.any()
            assert set(found) <= set(alone)
        else:
            assert len(found) <= has.any()
