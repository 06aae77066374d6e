"""Promise 8: supervision fraction, pairing policy and mixing are views; a sweep never re-shards data."""

from __future__ import annotations

import shutil
from itertools import combinations, pairwise
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora.digits import MODALITIES
from pipeline.manifest import NAME, Manifest, open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.stream import Refs, Stream
from tests.pipeline.tiny import bare

NAMES = list(MODALITIES)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """6,000 samples that have all of m0, m1 and m2, behind some of another split."""
    return bare(tmp_path_factory.mktemp("views"), np.ones((6000, 3), int), shards=5, others=10)


def shown(manifest: Manifest, keep: float, seed: int = 0) -> np.ndarray:
    """Which modalities each training sample shows under the view keep, as one pass of the stream has it."""
    names = dict.fromkeys(manifest.modalities, MODALITIES["label"])
    stream = Stream([view(manifest, "train", list(names), Pairing(view="keep", keep=keep), seed, 100)], names, seed)
    refs = stream.rows(np.arange(sum(len(pool) for pool in stream.views[0].pools)))
    split = manifest.split("train")
    result = np.zeros((len(split), len(names)), bool)
    result[refs.sample_B - split.start] = refs.member_BM >= 0
    assert (result.any(1).sum(), stream.describe().get("empty", 0)) == (len(refs.sample_B), (~result.any(1)).sum())
    return result


def pairs(directory: Path, fraction: float, seed: int = 0) -> set[str]:
    manifest = open_manifest(directory)
    pools = view(manifest, "train", NAMES, Pairing(view="split", fraction=fraction), seed, 100).pools
    return {manifest.key(sample) for pool in pools if pool.name == "complete" for sample in pool.samples}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_of_a_fraction_are_among_those_of_a_larger_one(digits_dir: Path, seed: int) -> None:
    fractions = [0.0, 0.001, 0.01, 0.1, 0.2, 0.5, 1.0]
    nested = [pairs(digits_dir, fraction, seed) for fraction in fractions]
    assert [len(keys) for keys in nested] == [round(fraction * 1258) for fraction in fractions]
    assert all(fewer <= more for fewer, more in pairwise(nested))
    assert pairs(digits_dir, 0.1, seed + 10) != nested[3]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_kept_of_a_key_is_kept_with_a_larger_probability(complete: Manifest, seed: int) -> None:
    nested = [shown(complete, keep, seed) for keep in (0.001, 0.1, 0.3, 0.5, 1.0)]
    assert all(0 < fewer.sum() < more.sum() and not (fewer & ~more).any() for fewer, more in pairwise(nested))
    assert nested[-1].all()
    assert not np.array_equal(shown(complete, 0.5, seed + 10), nested[3])


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9])
def test_each_modality_is_kept_independently_with_the_probability_asked_for(complete: Manifest, keep: float) -> None:
    """Alone, in pairs and all three within 3.5 standard deviations of the binomial; so is the number left empty."""
    for seed in (0, 1):
        kept = shown(complete, keep, seed)
        for count in (1, 2, 3):
            for some in combinations(range(3), count):
                expected = keep**count * 6000
                assert abs(kept[:, some].all(1).sum() - expected) <= 3.5 * sqrt(expected * (1 - keep**count)) + 1
        empty = (1 - keep) ** 3
        assert abs((~kept.any(1)).sum() - empty * 6000) <= 3.5 * sqrt(6000 * empty * (1 - empty)) + 1


def test_what_is_empty_gives_no_row_and_is_counted(tmp_path: Path) -> None:
    """Of samples that lack modalities as well: a sample is empty where it has none of what it keeps, or nothing."""
    has = np.random.default_rng(0).integers(0, 3, (400, 2)) * (np.arange(400) % 4 > 0)[:, None]
    manifest = bare(tmp_path, has, shards=3, others=2)
    kept = view(manifest, "train", ["m0", "m1"], Pairing(view="keep", keep=0.5), 0, 10)
    (pool,) = kept.pools
    assert pool.kept
    shows = pool.kept(np.arange(2, 402)) & (has > 0)
    assert list(pool.samples) == (2 + np.flatnonzero(shows.any(1))).tolist()
    assert 180 < kept.empty == 400 - len(pool) < 300
    for kind in ("declared", "split", "keep-one"):
        pairing = Pairing(view=kind, fraction=1.0 if kind == "declared" else 0.3)  # type: ignore[arg-type]
        assert view(manifest, "train", ["m0", "m1"], pairing, 0, 10).describe()["empty"] == (has == 0).all(1).sum()
    assert "empty" not in view(manifest, "other", ["m0", "m1"], Pairing(), 0, 10).describe()
    assert view(manifest, "train", ["m0", "m1"], Pairing(view="keep", keep=0.0), 0, 10).pools == []


def test_split_trains_on_as_many_rows_at_every_fraction(complete: Manifest) -> None:
    """A step holds the batch's rows, each with something to see; a pass has one row a pair and one a modality of each
    other key, and every one of them once; an epoch has as many rows as there are keys."""
    names = dict.fromkeys(complete.modalities, MODALITIES["label"])
    for fraction in (0.0, 0.001, 0.01, 0.1, 0.5, 1.0):
        shown = view(complete, "train", list(names), Pairing(view="split", fraction=fraction), 0, 100)
        stream, pairs = Stream([shown], names, 0), round(fraction * 6000)
        assert shown.keys == 6000
        for step in (0, 1, 59, 60, 10**6):
            refs = stream.global_batch(step)
            assert refs.row_B.tolist() == list(range(step * 100, step * 100 + 100))
            assert np.isin((refs.member_BM >= 0).sum(1), [1, 3]).all()
        size = pairs + 3 * (6000 - pairs)
        refs = stream.rows(np.arange(size))
        present = refs.member_BM >= 0
        rows = {(sample, *row) for sample, row in zip(refs.sample_B.tolist(), present.tolist(), strict=True)}
        assert len(rows) == size == sum(shown.describe().values())
        assert present.all(1).sum() == pairs


@pytest.mark.parametrize(
    "pairing",
    [
        Pairing(),
        Pairing(view="keep", keep=0.5),
        Pairing(view="split", fraction=0.1),
        Pairing(view="split", fraction=0.1, composition="balanced"),
        Pairing(view="keep-one", fraction=0.1),
        Pairing(view="keep-one", fraction=0.1, composition="balanced"),
    ],
)
def test_views_and_their_order_read_no_payload(digits_dir: Path, tmp_path: Path, pairing: Pairing) -> None:
    shutil.copy(digits_dir / NAME, tmp_path)  # the manifest alone, not one shard

    def batches(directory: Path) -> list[Refs]:
        manifest = open_manifest(directory)
        stream = Stream([view(manifest, "train", NAMES, pairing, 0, 60)], MODALITIES, 0)
        return [stream.global_batch(step) for step in range(5)]

    for one, other in zip(batches(digits_dir), batches(tmp_path), strict=True):
        assert np.array_equal(one.sample_B, other.sample_B)
        assert np.array_equal(one.member_BM, other.member_BM)


def test_a_sweep_of_views_leaves_the_shards_untouched(digits_dir: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in digits_dir.iterdir()}
    fingerprints = set()
    for fraction in (0.05, 0.2, 1.0):
        manifest = open_manifest(digits_dir)
        view(manifest, "train", NAMES, Pairing(view="keep-one", fraction=fraction), 0, 100)
        view(manifest, "train", NAMES, Pairing(view="keep", keep=fraction), 0, 100)
        fingerprints.add(manifest.calculated_fingerprint())
    assert len(fingerprints) == 1
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in digits_dir.iterdir()} == before
