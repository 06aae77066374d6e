"""Promise 2: the global order is a pure function of (seed, epoch, manifest); nothing else moves it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.distributed import World
from modalities import AnyModality
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.corpora.corpus import Entry, Values
from pipeline.corpora.digits import DIGITS
from pipeline.corpora.digits import MODALITIES as PARTS
from pipeline.data import training_stream
from pipeline.manifest import open_manifest
from pipeline.pairing import Pool, view
from pipeline.settings import Engine, Pairing, Training
from pipeline.stream import Share, Stream, rows_for_rank
from pipeline.train import _read_ahead
from pipeline.writing import write
from tests.pipeline.tiny import LABEL, MODALITIES, bare, given, one, uneven

BATCH, STEPS = 24, 120
VIEWS = {
    "declared": Pairing(),
    "split": Pairing(view="split", fraction=0.2),
    "keep-one": Pairing(view="keep-one", fraction=0.2),
    "keep": Pairing(view="keep", keep=0.5),
    "balanced": Pairing(view="split", fraction=0.03, composition="balanced"),  # three pairs, again and again
    "mixture": Pairing(view="split", fraction=0.2),  # and a directory of labels only, a quarter of each step
}
Row = tuple[str, tuple[bool, ...], int, bytes]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank works out few rows at a time, as it would many of a long run."""
    monkeypatch.setattr(Share, "ROWS", 100)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each view over shards of 30, 1, 0 and 64 samples."""
    data = tmp_path_factory.mktemp("order")
    uneven(data / "uneven")
    write(data / "labels", given("labels", LABEL, [one(f"train/{i:04d}", label=i % 7) for i in range(40)]))
    return {
        name: run_of(data / "uneven", MODALITIES, pairing, (f"{data / 'labels'}=0.25",) if name == "mixture" else ())
        for name, pairing in VIEWS.items()
    }


def run_of(data: Path, modalities: dict[str, AnyModality], pairing: Pairing, mix: tuple[str, ...] = ()) -> Run:
    train = Training(batch=BATCH, steps=STEPS)
    return Run(recipe="order", data=str(data), modalities=modalities, mix=mix, pairing=pairing, train=train)


def stream_of(run: Run) -> Stream:
    return training_stream(run, open_manifest(run.data))


def rows(batch: Batch) -> list[Row]:
    """(key, shown modalities, number in the run, bytes of all values) of each row."""
    values = [
        dict(zip(batch.rows_of[name].tolist(), batch.values[name].numpy(), strict=False)) for name in batch.values
    ]
    return [
        (key, tuple(shown), number, b"".join(value[index].tobytes() for value in values if index in value))
        for index, (key, shown, number) in enumerate(
            zip(batch.keys, batch.present_BM.tolist(), batch.row_B.tolist(), strict=True)
        )
    ]


def delivered(
    run: Run, world: int, workers: int, start: int = 0, stop: int = 12, accumulate: int = 1
) -> list[list[Row]]:
    """What the ranks get in each step, side by side, as training reads it; each rank opens the data by itself.

    They are stopped in the midst of reading ahead.
    """
    run = replace(run, engine=Engine(workers=workers, accumulate=accumulate))
    steps: list[list[Row]] = [[] for _ in range(start, stop)]
    for rank in range(world):
        stream = stream_of(run)
        ahead = _read_ahead(
            stream, Collator(stream.manifests, run.modalities), run, World(rank, world, 0, torch.device("cpu")), start
        )
        for mine, (step, batches, failure) in zip(steps, ahead, strict=False):
            assert failure is None
            assert [len(batch) for batch in batches] == [BATCH // world // accumulate] * accumulate
            assert mine is steps[step - start]
            mine += [row for batch in batches for row in rows(batch)]
        ahead.close()  # type: ignore[attr-defined]
    return steps


@pytest.fixture(scope="module")
def undisturbed(runs: dict[str, Run]) -> dict[str, list[list[Row]]]:
    """The global batches, worked out and read one by one."""
    steps = {}
    for name, run in runs.items():
        stream = stream_of(run)
        collate = Collator(stream.manifests, run.modalities)
        steps[name] = [rows(collate(stream.global_batch(step))) for step in range(STEPS)]
    return steps


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", VIEWS)
def test_ranks_and_workers_do_not_change_what_is_seen(
    runs: dict[str, Run], undisturbed: dict[str, list[list[Row]]], name: str, world: int, workers: int
) -> None:
    assert delivered(runs[name], world, workers) == undisturbed[name][:12]


@pytest.mark.parametrize("name", VIEWS)
def test_a_run_stopped_at_50_random_steps_sees_what_it_would_have_seen(
    runs: dict[str, Run], undisturbed: dict[str, list[list[Row]]], name: str
) -> None:
    """It goes on each time with other numbers of ranks, workers and micro-batches."""
    chance = random.Random(name)
    stops = [0, *sorted(chance.sample(range(1, STEPS), 50)), STEPS]
    seen: list[list[Row]] = []
    for start, stop in pairwise(stops):
        world, workers = chance.choice([1, 2, 3, 4, 8]), chance.choice([0, 1, 3])
        micro = chance.choice([number for number in (1, 2, 3) if BATCH % (world * number) == 0])
        seen += delivered(runs[name], world, workers, start, stop, micro)
    assert seen == undisturbed[name]


def test_digits_are_seen_alike_by_any_number_of_ranks(digits_dir: Path) -> None:
    for name in ("declared", "balanced"):
        run = run_of(digits_dir, PARTS, VIEWS[name])
        stream = stream_of(run)
        collate = Collator(stream.manifests, PARTS)
        parts = [[rows_for_rank(stream.global_batch(step), rank, 4) for rank in range(4)] for step in range(50, 70)]
        assert delivered(run, 3, 1, 50, 70) == [[row for refs in step for row in rows(collate(refs))] for step in parts]


def test_rows_are_numbered_through_the_run(undisturbed: dict[str, list[list[Row]]]) -> None:
    for steps in undisturbed.values():
        assert [row[2] for step in steps for row in step] == list(range(BATCH * STEPS))


def test_the_views_show_what_they_are_for(undisturbed: dict[str, list[list[Row]]]) -> None:
    """Otherwise the tests above would compare little: all keys, other patterns in each, several instances of a tag."""
    kinds = set()
    for name, steps in undisturbed.items():
        seen = [row for step in steps for row in step]
        keys, patterns = {key for key, *_ in seen}, Counter(shown for _, shown, *_ in seen)
        assert len(keys) == {"keep": 65, "mixture": 100}.get(name, 95)
        assert len(patterns) >= 4
        kinds.add(tuple(sorted(patterns.items())))
        assert (
            max(Counter(key for key, shown, _ in {(r[0], r[1], r[3]) for r in seen if r[1] == (0, 1, 0)}).values()) == 3
        )
    assert len(kinds) == len(VIEWS)


@pytest.mark.parametrize("name", VIEWS)
def test_another_seed_gives_another_order(digits_dir: Path, name: str) -> None:
    """The seed moves the order, not which rows there are (that is the pairing's seed)."""
    pairing = replace(VIEWS[name], seed=5)
    run = run_of(digits_dir, PARTS, pairing)
    one, other, same = (stream_of(replace(run, seed=seed)) for seed in (0, 1, 0))
    for step in range(20):
        assert np.mean(one.global_batch(step).sample_B == other.global_batch(step).sample_B) < 0.2
        assert np.array_equal(one.global_batch(step).sample_B, same.global_batch(step).sample_B)
    for some, others in zip(one.views[0].pools, other.views[0].pools, strict=True):
        assert list(some.samples) == list(others.samples)


def test_another_manifest_gives_another_order(digits_dir: Path, tmp_path: Path) -> None:
    """One label changed: the same keys in the same places, and another order."""

    def changed(entry: Entry) -> Values:
        values = DIGITS.load(entry)
        return {**values, "label": (values["label"] + 1) % 10} if entry.source == 0 else values

    write(tmp_path / "d", replace(DIGITS, load=changed))
    one, other = open_manifest(digits_dir), open_manifest(tmp_path / "d")
    assert one.keys(range(len(one))) == other.keys(range(len(other)))
    assert one.fingerprint != other.fingerprint
    for pairing in VIEWS.values():
        a, b = (stream_of(run_of(d, PARTS, pairing)).global_batch(0) for d in (digits_dir, tmp_path / "d"))
        assert np.mean(a.sample_B == b.sample_B) < 0.5


def test_a_copy_of_the_data_has_the_same_order(digits_dir: Path, tmp_path: Path) -> None:
    """Neither the path nor the moment of preparing is part of it."""
    from pipeline.corpora import prepare

    prepare("digits", tmp_path / "elsewhere")
    for pairing in VIEWS.values():
        a, b = (stream_of(run_of(d, PARTS, pairing)).global_batch(5) for d in (digits_dir, tmp_path / "elsewhere"))
        assert np.array_equal(a.sample_B, b.sample_B)
        assert np.array_equal(a.member_BM, b.member_BM)


def rows_of(pool: Pool) -> list[tuple[int, tuple[bool, ...]]]:
    """(sample, shown modalities) of each row of a pool, over data in which every sample is complete."""
    return [
        (sample, tuple((pool.shown if pool.kept is None else pool.kept(np.array([sample]))[0]).tolist()))
        for sample in pool.samples
    ]


@pytest.mark.parametrize("name", ["declared", "split", "keep-one", "keep"])
def test_every_row_comes_exactly_once_per_pass(digits_dir: Path, name: str) -> None:
    """A row is a sample in a pool; a pass goes over all pools together and need not end with a step."""
    stream = stream_of(run_of(digits_dir, PARTS, VIEWS[name]))
    rows = [row for pool in stream.views[0].pools for row in rows_of(pool)]
    size = len(rows)
    assert size == {"declared": 1258, "split": 1258 + 2 * 1006, "keep-one": 1258, "keep": 1112}[name]
    seen = []
    for step in range(3 * size // BATCH):
        refs = stream.global_batch(step)
        seen += list(zip(refs.sample_B.tolist(), map(tuple, (refs.member_BM >= 0).tolist()), strict=True))
    first, second = seen[:size], seen[size : 2 * size]
    assert sorted(first) == sorted(second) == sorted(rows)
    assert np.mean([one == other for one, other in zip(first, second, strict=True)]) < 0.01


def test_every_sample_comes_exactly_once_an_epoch(runs: dict[str, Run]) -> None:
    """As declared, over uneven shards: 95 samples, of which an epoch ends within a step."""
    stream = stream_of(runs["declared"])
    seen = np.concatenate([stream.global_batch(step).sample_B for step in range(STEPS)])
    epochs = seen[: len(seen) // 95 * 95].reshape(-1, 95)
    assert (np.sort(epochs) == np.arange(95)).all()
    assert len(np.unique(epochs, axis=0)) == len(epochs) == 30


def test_balanced_rows_come_equally_often_within_their_pool(digits_dir: Path) -> None:
    stream = stream_of(run_of(digits_dir, PARTS, VIEWS["balanced"]))
    counts = {pool.shown.tobytes(): dict.fromkeys(pool.samples, 0) for pool in stream.views[0].pools}
    for step in range(300):
        refs = stream.global_batch(step)
        for sample, shown in zip(refs.sample_B.tolist(), refs.member_BM >= 0, strict=True):
            counts[shown.tobytes()][sample] += 1
        for often in counts.values() if step % 50 == 0 else ():
            assert max(often.values()) - min(often.values()) <= 1
    totals = sorted(sum(often.values()) for often in counts.values())
    assert totals == [4 * 300, 4 * 300, 4 * 300, 12 * 300]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_an_epoch_has_as_many_rows_as_keys_at_every_fraction(digits_dir: Path, fraction: float) -> None:
    for kind in ("split", "keep-one"):
        pairing = Pairing(view=kind, fraction=fraction)  # type: ignore[arg-type]
        assert view(open_manifest(digits_dir), "train", list(PARTS), pairing, 0, BATCH).keys == 1258


def test_ten_captions_of_a_key_take_turns(tmp_path: Path) -> None:
    """The caption shown is a pure function of (seed, epoch, key): no batch size, no view and no seed of the pairing
    moves it; every one of the ten comes once in epochs 0 to 9, and once in 10 to 19."""
    manifest = bare(tmp_path, np.tile([1, 10], (50, 1)), shards=3, others=4)
    cases = [(Pairing(), 7, 0), (Pairing(), 50, 0), (Pairing(), 7, 1)]
    cases += [(Pairing(view=v, fraction=0.3, seed=9), 8, 0) for v in ("split", "keep-one")]  # type: ignore[arg-type]
    cases += [(Pairing(view="keep", keep=0.6), 13, 0)]
    shown = []
    for pairing, batch, seed in cases:
        names = {"m1": LABEL["label"], "m0": LABEL["label"]}
        stream = Stream([view(manifest, "train", list(names), pairing, seed, batch)], names, seed)
        size = sum(len(pool) for pool in stream.views[0].pools)
        refs = stream.rows(np.arange(20 * size))
        sees = refs.member_BM[:, 0] >= 0
        caption = refs.member_BM[:, 0] - manifest.first[np.maximum(refs.sample_B, 0)] - 1
        epochs = refs.row_B // size
        shown.append(dict(zip(zip(epochs[sees], refs.sample_B[sees], strict=True), caption[sees], strict=True)))
        assert len(shown[-1]) == sees.sum()  # once an epoch
    first, again, other, *views = shown
    assert len(first) == 20 * 50
    assert again == first
    assert all(one.items() < first.items() or one == first for one in views)
    assert np.mean([first[at] == other[at] for at in first]) < 0.2
    for sample in manifest.split("train"):
        order = [first[epoch, sample] for epoch in range(20)]
        assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert len({tuple(first[epoch, sample] for sample in manifest.split("train")) for epoch in range(20)}) == 20
