"""Supervision views: exact, nested, and nothing but a way to look at shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from pipeline.manifest import Manifest, open_manifest
from pipeline.pairing import View, _weights, is_pair, key_hashes, portions, view
from pipeline.settings import Pairing
from pipeline.stream import Stream
from tests.pipeline.tiny import MODALITIES, NAMES, held, make

FRACTIONS = st.floats(0, 1)


@pytest.fixture(scope="module")
def digits(digits_dir: Path) -> Manifest:
    return open_manifest(digits_dir)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """80 samples: ten of each pattern, also of none."""
    return make(tmp_path_factory.mktemp("pairing") / "tiny", 80)


def rows_of(shown: View) -> dict[str, set[int]]:
    return {pool.name: set(pool.samples) for pool in shown.pools}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), FRACTIONS, FRACTIONS, st.integers(-5, 2**64))
def test_pairs_are_exact_and_nested(count: int, one: float, other: float, seed: int) -> None:
    hashes = key_hashes([f"key{number}" for number in range(count)], seed)
    fewer, more = is_pair(hashes, min(one, other)), is_pair(hashes, max(one, other))
    assert fewer.sum() == round(min(one, other) * count)
    assert more.sum() == round(max(one, other) * count)
    assert not (fewer & ~more).any()


def test_a_hash_hangs_on_seed_and_key_only() -> None:
    keys = [f"key{number}" for number in range(100)]
    assert key_hashes(keys[::-1], 3).tolist() == key_hashes(keys, 3)[::-1].tolist()
    assert not set(key_hashes(keys, 3).tolist()) & set(key_hashes(keys, 4).tolist())


@pytest.mark.parametrize("kind", ["split", "keep-one"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_rows_of_a_whole_data_set(digits: Manifest, kind: str, fraction: float) -> None:
    pairing = Pairing(view=kind, fraction=fraction)  # type: ignore[arg-type]
    shown = view(digits, "train", list(digits.modalities), pairing, 0, 100)
    rows, pairs = rows_of(shown), round(fraction * 1258)
    assert shown.keys == 1258
    assert all(len(pool.samples) == len(rows[pool.name]) for pool in shown.pools)
    assert len(rows.get("complete", ())) == pairs
    alone = [rows.get(f"only {name}", set()) for name in digits.modalities]
    if kind == "split":
        assert [len(one) for one in alone] == [1258 - pairs] * 3
        assert alone[0] == alone[1] == alone[2]
    else:
        assert sum(len(one) for one in alone) == 1258 - pairs == len(set.union(*alone))
        assert all(abs(len(one) - (1258 - pairs) / 3) < 85 for one in alone)
    assert not rows.get("complete", set()) & set.union(*alone)
    assert all(len(pool) > 0 for pool in shown.pools)
    for pool in shown.pools:
        assert pool.shown.tolist() == [pool.name in ("complete", f"only {name}") for name in digits.modalities]


@pytest.mark.parametrize("kind", ["declared", "split", "keep-one"])
def test_nothing_that_is_missing_is_shown(tiny: Manifest, kind: str) -> None:
    """Each row shows what its pool shows and its sample holds; keys that hold nothing give no row."""
    shown = view(tiny, "train", NAMES, Pairing(view=kind, fraction=0.25), 1, 10)  # type: ignore[arg-type]
    per_sample: dict[int, list[str]] = {}
    for pool in shown.pools:
        for sample in pool.samples:
            seen = [n for n, one in zip(NAMES, pool.shown, strict=True) if one and n in held(sample)]
            assert seen
            per_sample.setdefault(sample, []).append("+".join(seen))
    assert set(per_sample) == {sample for sample in range(80) if held(sample)}
    paired = set(np.flatnonzero(is_pair(key_hashes(tiny.keys(range(80)), 1), 0.25)).tolist())
    for sample, rows in per_sample.items():
        if kind == "declared" or sample in paired:
            assert rows == ["+".join(held(sample))]
        elif kind == "split":
            assert rows == held(sample)
        else:
            assert len(rows) == 1
            assert rows[0] in held(sample)
    assert shown.keys == 80


@pytest.mark.parametrize(
    "pairing",
    [
        Pairing(),
        Pairing(view="split", fraction=0.3),
        Pairing(view="keep-one", fraction=0.3),
        Pairing(view="keep", keep=0.5),
    ],
)
def test_a_view_is_made_piece_by_piece(tiny: Manifest, monkeypatch: pytest.MonkeyPatch, pairing: Pairing) -> None:
    """However many samples are looked at together, also of a split in the midst of the manifest."""
    for split in ("train", "val"):
        whole = view(tiny, split, NAMES, pairing, 1, 10)
        for size in (1, 7, 80):
            with monkeypatch.context() as patch:
                patch.setattr("pipeline.pairing.CHUNK", size)
                pieces = view(tiny, split, NAMES, pairing, 1, 10)
            assert pieces.describe() == whole.describe()
            assert [list(pool.samples) for pool in pieces.pools] == [list(pool.samples) for pool in whole.pools]
            assert all(sample in tiny.split(split) for pool in pieces.pools for sample in pool.samples)


def test_what_is_kept_hangs_on_key_and_modality_only(tiny: Manifest) -> None:
    """Not on the other modalities of the run, their order, or on which samples are asked about together."""
    (pool,) = view(tiny, "train", NAMES, Pairing(view="keep", keep=0.4), 1, 10).pools
    (less,) = view(tiny, "train", ["label", "image"], Pairing(view="keep", keep=0.4, seed=1), 9, 7).pools
    assert pool.kept
    assert less.kept
    kept = pool.kept(np.arange(80))
    assert np.array_equal(less.kept(np.arange(80)), kept[:, [2, 0]])
    assert np.array_equal(np.concatenate([pool.kept(np.array([i])) for i in range(80)]), kept)
    assert not np.array_equal(kept[:, 0], kept[:, 1])


def test_what_a_key_keeps_does_not_hang_on_the_fraction(digits: Manifest) -> None:
    names = list(digits.modalities)
    few = rows_of(view(digits, "train", names, Pairing(view="keep-one", fraction=0.05), 0, 9))
    many = rows_of(view(digits, "train", names, Pairing(view="keep-one", fraction=0.5), 0, 9))
    assert all(many[f"only {name}"] < few[f"only {name}"] for name in names)


def test_pairs_do_not_hang_on_view_modalities_or_batch(digits: Manifest) -> None:
    pairing = Pairing(view="split", fraction=0.1)
    first = rows_of(view(digits, "train", ["top", "label"], pairing, 7, 10))["complete"]
    others = [(["label", "bottom"], pairing, 7, 99), (["top"], replace(pairing, view="keep-one"), 7, 3)]
    others += [(["top", "label"], replace(pairing, seed=7), 1234, 10)]
    others += [(["top", "label"], replace(pairing, composition="balanced"), 7, 10)]
    for names, one, seed, batch in others:
        assert rows_of(view(digits, "train", names, one, seed, batch))["complete"] == first
    assert rows_of(view(digits, "train", ["top"], pairing, 8, 10))["complete"] != first


def test_a_modality_that_the_shards_lack_is_named(digits: Manifest) -> None:
    with pytest.raises(UserError, match="'sound'"):
        view(digits, "train", ["top", "sound"], Pairing(), 0, 10)
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        view(digits, "dev", ["top"], Pairing(), 0, 10)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8).filter(lambda c: sum(c) < 2), FRACTIONS, st.integers(1, 500))
def test_balanced_counts_fill_the_batch(complete: list[bool], share: float, batch: int) -> None:
    counts = portions(_weights(complete, share), batch)
    assert sum(counts) == batch
    assert min(counts) >= 0
    alone = [count for count, one in zip(counts, complete, strict=True) if not one]
    if alone:
        assert max(alone) - min(alone) <= 1
    if any(complete) and alone:
        assert abs(counts[complete.index(True)] - share * batch) < 1


@pytest.mark.parametrize(
    ("fraction", "share", "batch", "expected"),
    [
        (0.2, 0.5, 100, {"complete": 50, "only top": 17, "only bottom": 17, "only label": 16}),
        (0.2, 0.25, 8, {"complete": 2, "only top": 2, "only bottom": 2, "only label": 2}),
        (0.0, 0.5, 9, {"only top": 3, "only bottom": 3, "only label": 3}),
        (0.0, 1.0, 9, {"only top": 3, "only bottom": 3, "only label": 3}),
        (1.0, 0.5, 9, {"complete": 9}),
        (1.0, 0.0, 9, {"complete": 9}),
        (0.2, 1.0, 9, {"complete": 9, "only top": 0, "only bottom": 0, "only label": 0}),
        (0.2, 0.0, 9, {"complete": 0, "only top": 3, "only bottom": 3, "only label": 3}),
    ],
)
def test_balanced_steps_hold_exact_counts(
    digits: Manifest, fraction: float, share: float, batch: int, expected: dict[str, int]
) -> None:
    from pipeline.corpora.digits import MODALITIES as PARTS

    pairing = Pairing(view="split", fraction=fraction, composition="balanced", complete_share=share)
    shown = view(digits, "train", list(PARTS), pairing, 0, batch)
    assert shown.counts is not None
    assert dict(zip([pool.name for pool in shown.pools], shown.counts, strict=True)) == expected
    stream = Stream([shown], PARTS, 0)
    complete = rows_of(shown).get("complete", set())
    for step in (0, 1, 77, 10**6):
        refs = stream.global_batch(step)
        present = refs.member_BM >= 0
        kinds = ["complete" if row.all() else f"only {list(PARTS)[int(row.argmax())]}" for row in present]
        assert {name: kinds.count(name) for name in expected} == expected
        assert all(
            (kind == "complete") == (sample in complete) for kind, sample in zip(kinds, refs.sample_B, strict=True)
        )


def test_balanced_kinds_are_mixed_within_a_step(digits: Manifest) -> None:
    """The pools' rows do not stand in blocks: two ranks get the like of each."""
    from pipeline.corpora.digits import MODALITIES as PARTS

    pairing = Pairing(view="split", fraction=0.2, composition="balanced")
    stream = Stream([view(digits, "train", list(PARTS), pairing, 0, 100)], PARTS, 0)
    first_half = [int((stream.global_batch(step).member_BM[:50] >= 0).all(1).sum()) for step in range(100)]
    assert 22 < np.mean(first_half) < 28
    assert 10 < min(first_half) <= max(first_half) < 40


def test_a_batch_too_small_for_its_pools_is_refused(tiny: Manifest) -> None:
    """Otherwise a modality's rows would silently never be shown."""
    pairing = Pairing(view="split", fraction=0.25, composition="balanced", complete_share=0.5)
    shown = view(tiny, "train", NAMES, pairing, 0, 4)
    with pytest.raises(UserError, match=r"train\.batch = 4 is too small .* only label"):
        Stream([shown], MODALITIES, 0)
    Stream([view(tiny, "train", NAMES, pairing, 0, 8)], MODALITIES, 0)


def test_a_view_without_a_row_is_refused(tmp_path: Path) -> None:
    from pipeline.corpora.corpus import Entry
    from pipeline.writing import write
    from tests.pipeline.tiny import given as corpus_of

    write(tmp_path / "d", corpus_of("none", MODALITIES, [Entry("a", "train", {})]))
    manifest = open_manifest(tmp_path / "d")
    pairings = [Pairing(view="keep", keep=0.5)]
    for kind in ("declared", "split", "keep-one"):
        pairings += [Pairing(view=kind, composition=c) for c in ("natural", "balanced")]  # type: ignore[arg-type]
    for pairing in pairings:
        shown = view(manifest, "train", NAMES, pairing, 0, 4)
        with pytest.raises(UserError, match="shows no row of image, tag, label"):
            Stream([shown], MODALITIES, 0)
