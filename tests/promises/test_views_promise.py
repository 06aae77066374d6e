"""Promise 8: supervision fraction, pairing policy and mixing are views; a sweep never re-shards data."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Pairing
from pipeline.corpora.digits import MODALITIES
from pipeline.manifest import NAME, open_manifest
from pipeline.pairing import view
from pipeline.stream import Refs, Stream

NAMES = list(MODALITIES)


def pairs(directory: Path, fraction: float, seed: int = 0) -> set[str]:
    manifest = open_manifest(directory)
    pools = view(manifest, "train", NAMES, Pairing(view="split", fraction=fraction), seed, 100).pools
    return {manifest.key(sample) for pool in pools if pool.name == "complete" for sample in pool.samples}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_of_a_fraction_are_among_those_of_a_larger_one(digits_dir: Path, seed: int) -> None:
    fractions = [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0]
    nested = [pairs(digits_dir, fraction, seed) for fraction in fractions]
    assert [len(keys) for keys in nested] == [round(fraction * 1258) for fraction in fractions]
    assert all(fewer <= more for fewer, more in pairwise(nested))
    assert pairs(digits_dir, 0.05, seed + 10) != nested[3]


@pytest.mark.parametrize("kind", ["declared", "split", "keep-one"])
@pytest.mark.parametrize("composition", ["natural", "balanced"])
def test_views_and_their_order_read_no_payload(digits_dir: Path, tmp_path: Path, kind: str, composition: str) -> None:
    shutil.copy(digits_dir / NAME, tmp_path)  # the manifest alone, not one shard
    pairing = Pairing(view=kind, fraction=0.1, composition=composition)  # type: ignore[arg-type]

    def batches(directory: Path) -> list[Refs]:
        manifest = open_manifest(directory)
        stream = Stream(manifest, view(manifest, "train", NAMES, pairing, 0, 60), MODALITIES, 0, 60)
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
        fingerprints.add(manifest.calculated_fingerprint())
    assert len(fingerprints) == 1
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in digits_dir.iterdir()} == before
