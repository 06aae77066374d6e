"""Promise 2: the global order is a pure function of (seed, epoch, manifest); nothing else moves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import Batch
from pipeline.config import Pairing
from pipeline.corpora.corpus import Entry, Values
from pipeline.corpora.digits import MODALITIES
from pipeline.manifest import Manifest, open_manifest
from pipeline.pairing import view
from pipeline.stream import Collator, Stream, prefetch, rows_for_rank
from pipeline.writing import write

NAMES, BATCH, STEPS = list(MODALITIES), 20, 50
VIEWS = {
    "declared": Pairing(),
    "split": Pairing(view="split", fraction=0.2),
    "keep-one": Pairing(view="keep-one", fraction=0.2),
    "balanced": Pairing(view="split", fraction=0.01, composition="balanced"),  # 13 pairs, again and again
}
Row = tuple[str, tuple[bool, ...], int, bytes]


def stream_of(manifest: Manifest, pairing: Pairing, seed: int = 0) -> Stream:
    return Stream(manifest, view(manifest, "train", NAMES, pairing, 0, BATCH), MODALITIES, seed, BATCH)


def rows(batch: Batch) -> Iterator[Row]:
    """(key, shown modalities, number in the run, bytes of all values) of each row."""
    for index, key in enumerate(batch.keys):
        shown = batch.present_BM[index]
        found = [
            batch.values[n][int(np.flatnonzero(batch.rows_of[n] == index)[0])]
            for n, p in zip(NAMES, shown, strict=True)
            if p
        ]
        yield key, tuple(shown.tolist()), int(batch.row_B[index]), b"".join(value.numpy().tobytes() for value in found)


def delivered(manifest: Manifest, pairing: Pairing, world: int, workers: int, start: int = 0) -> list[list[Row]]:
    """What the ranks get in each step, side by side, each rank with a collator and threads of its own."""
    stream = stream_of(manifest, pairing)
    steps: list[list[Row]] = [[] for _ in range(start, STEPS)]
    for rank in range(world):
        collate = Collator(manifest, MODALITIES)
        batches = prefetch(
            lambda step, collate=collate, rank=rank: collate(rows_for_rank(stream.global_batch(step), rank, world)),
            start, STEPS, workers,
        )  # fmt: skip
        for step, batch in zip(steps, batches, strict=True):
            assert len(batch) == BATCH // world
            step += rows(batch)
    return steps


@pytest.fixture(scope="module")
def manifest(digits_dir: Path) -> Manifest:
    return open_manifest(digits_dir)


@pytest.fixture(scope="module")
def undisturbed(manifest: Manifest) -> dict[str, list[list[Row]]]:
    return {name: delivered(manifest, pairing, 1, 0) for name, pairing in VIEWS.items()}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4, 5])
@pytest.mark.parametrize("name", ["declared", "split", "balanced"])
def test_ranks_and_workers_do_not_change_what_is_seen(
    manifest: Manifest, undisturbed: dict[str, list[list[Row]]], name: str, world: int, workers: int
) -> None:
    assert delivered(manifest, VIEWS[name], world, workers) == undisturbed[name]


@pytest.mark.parametrize("start", [1, 7, 33, STEPS - 1, STEPS])
def test_a_run_that_goes_on_at_a_step_sees_what_it_would_have_seen(
    manifest: Manifest, undisturbed: dict[str, list[list[Row]]], start: int
) -> None:
    for name, pairing in VIEWS.items():
        assert delivered(manifest, pairing, 2, 1, start) == undisturbed[name][start:]


def test_rows_are_numbered_through_the_run(undisturbed: dict[str, list[list[Row]]]) -> None:
    for steps in undisturbed.values():
        assert [row[2] for step in steps for row in step] == list(range(BATCH * STEPS))


@pytest.mark.parametrize("name", VIEWS)
def test_another_seed_gives_another_order(manifest: Manifest, name: str) -> None:
    """The seed moves the order, not which rows there are (that is the pairing's seed)."""
    one, other = stream_of(manifest, VIEWS[name], 0), stream_of(manifest, VIEWS[name], 1)
    same = [np.mean(one.global_batch(step).sample_B == other.global_batch(step).sample_B) for step in range(20)]
    assert np.mean(same) < 0.2
    assert (
        stream_of(manifest, VIEWS[name], 0).global_batch(3).sample_B.tolist() == one.global_batch(3).sample_B.tolist()
    )


def test_another_manifest_gives_another_order(digits_dir: Path, tmp_path: Path) -> None:
    """One label changed: the same keys in the same places, and another order."""
    from pipeline.corpora.digits import DIGITS, load

    def changed(entry: Entry) -> Values:
        values = load(entry)
        return {**values, "label": (values["label"] + 1) % 10} if entry.source == 0 else values

    write(tmp_path / "d", replace(DIGITS, load=changed))
    one, other = open_manifest(digits_dir), open_manifest(tmp_path / "d")
    assert one.keys(range(len(one))) == other.keys(range(len(other)))
    assert one.fingerprint != other.fingerprint
    for pairing in VIEWS.values():
        a, b = stream_of(one, pairing).global_batch(0), stream_of(other, pairing).global_batch(0)
        assert np.mean(a.sample_B == b.sample_B) < 0.5


def test_a_copy_of_the_data_has_the_same_order(digits_dir: Path, tmp_path: Path) -> None:
    """Neither the path nor the moment of preparing is part of it."""
    from pipeline.corpora import prepare

    prepare("digits", tmp_path / "elsewhere")
    one, other = open_manifest(digits_dir), open_manifest(tmp_path / "elsewhere")
    for pairing in VIEWS.values():
        a, b = stream_of(one, pairing).global_batch(5), stream_of(other, pairing).global_batch(5)
        assert np.array_equal(a.sample_B, b.sample_B)
        assert np.array_equal(a.member_BM, b.member_BM)


@pytest.mark.parametrize("name", ["declared", "split", "keep-one"])
def test_every_row_comes_exactly_once_per_pass(manifest: Manifest, name: str) -> None:
    """A row is a sample in a pool; a pass goes over all pools together and need not end with a step."""
    stream = stream_of(manifest, VIEWS[name])
    rows = [(sample, tuple(pool.shown)) for pool in stream.view.pools for sample in pool.samples]
    size = len(rows)
    assert size == {"declared": 1258, "split": 1258 + 2 * 1006, "keep-one": 1258}[name]
    seen = []
    for step in range(3 * size // BATCH):
        refs = stream.global_batch(step)
        seen += list(zip(refs.sample_B.tolist(), map(tuple, refs.member_BM >= 0), strict=True))
    first, second = seen[:size], seen[size : 2 * size]
    assert sorted(first) == sorted(second) == sorted(rows)
    assert np.mean([one == other for one, other in zip(first, second, strict=True)]) < 0.01


def test_balanced_rows_come_equally_often_within_their_pool(manifest: Manifest) -> None:
    stream = stream_of(manifest, VIEWS["balanced"])
    counts = {pool.shown.tobytes(): dict.fromkeys(pool.samples.tolist(), 0) for pool in stream.view.pools}
    for step in range(700):
        refs = stream.global_batch(step)
        for sample, shown in zip(refs.sample_B.tolist(), refs.member_BM >= 0, strict=True):
            counts[shown.tobytes()][sample] += 1
        for often in counts.values() if step % 100 == 0 else ():
            assert max(often.values()) - min(often.values()) <= 1
    totals = sorted(sum(often.values()) for often in counts.values())
    assert totals == [3 * 700, 3 * 700, 4 * 700, 10 * 700]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_an_epoch_has_as_many_rows_as_keys_at_every_fraction(manifest: Manifest, fraction: float) -> None:
    for kind in ("split", "keep-one"):
        pairing = Pairing(view=kind, fraction=fraction)  # type: ignore[arg-type]
        assert view(manifest, "train", NAMES, pairing, 0, BATCH).keys == 1258
