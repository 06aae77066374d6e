"""The stream: which instance is shown, what a batch holds, reading ahead, and a split in storage order."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import UserError
from modalities import Image, Label
from pipeline.collate import Collator, Waiting, prefetch
from pipeline.manifest import Manifest, open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.stream import PADDING, Refs, Stream, in_order, rows_for_rank
from tests.pipeline.tiny import MODALITIES, NAMES, fits, held, make, value


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("stream") / "tiny", 48, shard_bytes=5000)


def stream_of(manifest: Manifest, batch: int = 8, pairing: Pairing | None = None, seed: int = 0) -> Stream:
    shown = view(manifest, "train", NAMES, pairing or Pairing(), 0, batch)
    return Stream([shown], MODALITIES, seed)


# Instances


def instances(stream: Stream, passes: int) -> dict[tuple[int, int], int]:
    """{(pass, sample): number of the tag that was shown}."""
    size, result = sum(len(pool) for pool in stream.views[0].pools), {}
    for step in range(passes * size // stream.batch):
        refs = stream.global_batch(step)
        for row, sample, member in zip(refs.row_B, refs.sample_B, refs.member_BM[:, NAMES.index("tag")], strict=True):
            if member >= 0:
                first = stream.manifests[0].first[sample]
                tags = np.flatnonzero(stream.manifests[0].modality[first : stream.manifests[0].first[sample + 1]] == 1)
                result[int(row // size), int(sample)] = int(member - first - tags[0])
    return result


def test_the_instance_shown_is_a_function_of_seed_pass_and_key(tiny: Manifest) -> None:
    """However the batches are cut; and every instance is shown about as often as the others over the passes."""
    shown = instances(stream_of(tiny, 6), 60)
    assert instances(stream_of(tiny, 7), 60).items() >= {k: v for k, v in shown.items() if k[0] < 59}.items()
    assert instances(stream_of(tiny, 6, seed=1), 60) != shown
    for sample in range(48):
        seen = [instance for (_, which), instance in shown.items() if which == sample]
        if "tag" in held(sample):
            counts = Counter(seen)
            assert set(counts) == set(range(1 + sample % 3))
            assert min(counts.values()) > 60 / len(counts) / 3
        else:
            assert not seen


def test_instances_of_one_pass_differ_from_key_to_key(tiny: Manifest) -> None:
    shown = instances(stream_of(tiny, 6), 30)
    three = [sample for sample in range(48) if sample % 3 == 2 and "tag" in held(sample)]
    rows = np.array([[shown[number, sample] for sample in three] for number in range(30)])
    assert all(len(set(row)) > 1 for row in rows)
    assert len({tuple(row) for row in rows}) == 30


def test_the_instance_shown_is_the_one_that_is_read(tiny: Manifest) -> None:
    stream, collate = stream_of(tiny, 6), Collator([tiny], MODALITIES)
    shown = instances(stream, 3)
    for step in range(3 * 42 // 6):
        refs = stream.global_batch(step)
        batch = collate(refs)
        for place, tag in zip(batch.rows_of["tag"], batch.values["tag"], strict=True):
            sample = int(refs.sample_B[place])
            tags = value(batch.keys[place], "tag")
            assert int(tag) == int(tags[shown[int(batch.row_B[place]) // 42, sample]])


def test_the_instance_of_a_scarce_pool_hangs_on_its_own_passes(tmp_path: Path) -> None:
    """Balanced pools go round at their own speed; however many rows a step takes, a pass shows the same instances."""
    manifest = make(tmp_path / "d", 48, complete=True)
    cuts = []
    for batch in (12, 24):  # 6 or 12 complete rows a step: both divide the 24 pairs
        pairing = Pairing(view="split", fraction=0.5, composition="balanced")
        stream, shown = stream_of(manifest, batch, pairing), Counter[int]()
        for step in range(20 * 24 // (batch // 2)):
            members = stream.global_batch(step).member_BM
            shown.update(members[(members >= 0).all(1), NAMES.index("tag")].tolist())
        cuts.append(shown)
    assert cuts[0] == cuts[1]
    assert sum(cuts[0].values()) == 20 * 24


# Batches


def test_a_batch_holds_what_its_samples_hold(tiny: Manifest) -> None:
    stream, collate = stream_of(tiny, 8), Collator([tiny], MODALITIES)
    for step in range(30):
        batch = collate(stream.global_batch(step))
        assert batch.weight_B.tolist() == [1.0] * 8
        assert list(batch.values) == NAMES
        for column, name in enumerate(NAMES):
            assert batch.rows_of[name].tolist() == np.flatnonzero(batch.present_BM[:, column]).tolist()
            assert batch.values[name].shape == (max(1, len(batch.rows_of[name])), *MODALITIES[name].shape)
            assert batch.values[name].numpy().dtype == MODALITIES[name].dtype
            for place, one in zip(batch.rows_of[name], batch.values[name], strict=False):
                assert fits(batch.keys[place], name, one.numpy())
        for key, present in zip(batch.keys, batch.present_BM, strict=True):
            assert [n for n, p in zip(NAMES, present, strict=True) if p] == held(int(key.split("/")[1]))


def test_a_modality_that_no_row_has_is_one_zero_row(tiny: Manifest) -> None:
    rows = np.array([sample for sample in range(48) if held(sample) == ["label"]])
    members = tiny.members(rows, tiny.column(NAMES), np.zeros(len(rows), np.uint64), rows)
    batch = Collator([tiny], MODALITIES)(Refs(rows, members, rows))
    assert batch.values["image"].tolist() == torch.zeros(1, 2, 3).tolist()
    assert batch.values["tag"].tolist() == [0]
    assert len(batch.rows_of["image"]) == 0
    assert batch.weight_B.tolist() == [1.0] * len(rows)


def test_only_hides_the_others(tiny: Manifest) -> None:
    batch = Collator([tiny], MODALITIES)(stream_of(tiny, 16).global_batch(0))
    less = batch.only(frozenset({"label"}))
    assert less.present_BM[:, :2].sum() == 0
    assert less.present_BM[:, 2].tolist() == batch.present_BM[:, 2].tolist()
    assert less.values["label"] is batch.values["label"]
    assert less.values["image"].tolist() == torch.zeros(1, 2, 3).tolist()
    assert batch.present_BM[:, 0].any()
    assert less.weight_B.tolist() == batch.weight_B.tolist()
    assert batch.to(torch.device("cpu")) is batch


def test_ranks_share_a_batch_out(tiny: Manifest) -> None:
    refs = stream_of(tiny, 12).global_batch(3)
    for world in (1, 2, 3, 4, 6, 12):
        parts = [rows_for_rank(refs, rank, world) for rank in range(world)]
        assert np.concatenate([part.sample_B for part in parts]).tolist() == refs.sample_B.tolist()
        assert np.concatenate([part.member_BM for part in parts]).tolist() == refs.member_BM.tolist()
        assert np.concatenate([part.row_B for part in parts]).tolist() == refs.row_B.tolist()


def test_fewer_modalities_in_another_order(tiny: Manifest) -> None:
    """A run may look at some of the modalities; columns follow the run's order, not the manifest's."""
    names = ["label", "image"]
    chosen = {name: MODALITIES[name] for name in names}
    stream = Stream([view(tiny, "train", names, Pairing(), 0, 10)], chosen, 0)
    batch = Collator([tiny], chosen)(stream.global_batch(0))
    for key, present in zip(batch.keys, batch.present_BM, strict=True):
        assert [n for n, p in zip(names, present, strict=True) if p] == [
            n for n in names if n in held(int(key.split("/")[1]))
        ]
    for name in names:
        assert all(
            fits(batch.keys[p], name, v.numpy()) for p, v in zip(batch.rows_of[name], batch.values[name], strict=True)
        )


# A split in storage order


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7])
def test_in_order_fills_the_last_batch_with_rows_that_weigh_nothing(tiny: Manifest, batch: int) -> None:
    batches = list(in_order(tiny, "val", NAMES, batch))
    assert [len(refs.sample_B) for refs in batches] == [batch] * -(-5 // batch)
    collate = Collator([tiny], MODALITIES)
    read = [collate(refs) for refs in batches]
    keys = [key for one in read for key in one.keys]
    weights = [weight for one in read for weight in one.weight_B.tolist()]
    present = np.concatenate([one.present_BM for one in read])
    assert keys[:5] == [f"val/{number:04d}" for number in range(5)]
    assert keys[5:] == [""] * (-5 % batch)
    assert weights == [float(bool(held(number))) for number in range(5)] + [0.0] * (-5 % batch)
    assert not present[5:].any()
    assert [row for one in read for row in one.row_B.tolist()] == list(range(len(keys)))
    assert sum(int((refs.sample_B != PADDING).sum()) for refs in batches) == 5
    assert (collate.rows_read, collate.rows_damaged) == (5, 0)
    for one in read:
        for name in NAMES:
            assert all(
                fits(one.keys[p], name, v.numpy()) for p, v in zip(one.rows_of[name], one.values[name], strict=False)
            )


def test_in_order_is_the_same_every_time(digits_dir: Path) -> None:
    manifest = open_manifest(digits_dir)
    batches = list(in_order(manifest, "test", ["label", "top"], 64))
    assert np.concatenate([refs.sample_B for refs in batches])[:270].tolist() == list(manifest.split("test"))
    assert [len(refs.sample_B) for refs in batches] == [64] * 5
    with pytest.raises(UserError, match="no split 'dev'"):
        in_order(manifest, "dev", ["label"], 64)


# Reading ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_the_order(workers: int) -> None:
    def fetch(index: int) -> int:
        time.sleep(0.002 * (index % 3 == 0))
        return index * index

    assert list(prefetch(fetch, 3, 40, workers)) == [index * index for index in range(3, 40)]
    assert list(prefetch(fetch, 5, 5, workers)) == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_is_raised_at_its_turn(workers: int) -> None:
    def fetch(index: int) -> int:
        if index == 5:
            raise MemoryError("five")
        return index

    batches = prefetch(fetch, 0, 100, workers)
    assert list(islice(batches, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(MemoryError, match="five"):
        next(batches)
    assert list(batches) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetch_reads_no_further_than_its_depth_and_ends_its_threads(workers: int) -> None:
    started: list[int] = []
    before = threading.active_count()
    batches = prefetch(lambda index: started.append(index), 0, 10**9, workers, depth=4)
    for _ in range(10):
        next(batches)
    time.sleep(0.05)
    assert len(started) <= 10 + 5
    assert isinstance(batches, Iterator)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_workers_means_no_thread() -> None:
    names = set(prefetch(lambda _: threading.current_thread().name, 0, 5, 0))
    assert names == {threading.current_thread().name}


class Clock:
    """Says what time it is, and lets it pass."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def fetch(self, seconds: float) -> float:
        self.now += seconds
        if seconds == 7:
            raise MemoryError
        return seconds


def test_the_share_of_time_that_training_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since the last call, of which there need be none; time waited for what then fails counts, too."""
    clock = Clock()
    monkeypatch.setattr("pipeline.collate.time.perf_counter", clock)
    ahead = Waiting(map(clock.fetch, [1.0, 0.0, 2.0, 5.0, 7.0]))
    shares = []
    for waited, worked, asked in [(1.0, 3.0, True), (0.0, 4.0, True), (2.0, 1.0, False), (5.0, 8.0, True)]:
        assert next(ahead) == waited
        clock.now += worked
        shares += [ahead.share()] if asked else []
    assert shares == [1 / 4, 0, 7 / 16]
    with pytest.raises(MemoryError):
        next(ahead)
    clock.now += 7
    assert ahead.share() == 1 / 2
    assert ahead.total == 15 / 38
    with pytest.raises(StopIteration):
        next(ahead)


# Damage: the rest is in tests/promises/test_absence_promise.py


def ruin(manifest: Manifest, member: int) -> None:
    path = Path(manifest.directory) / manifest.shards[int(manifest.shard[member])].name
    data = bytearray(path.read_bytes())
    data[int(manifest.block[member]) * 512] ^= 1
    path.write_bytes(data)


class Hesitant(set[int]):
    """A set that lets other threads run before it answers."""

    def __contains__(self, item: object) -> bool:
        answer = super().__contains__(item)
        time.sleep(0.002)
        return answer


def test_threads_share_one_account_of_the_damage(tmp_path: Path) -> None:
    """A scarce pool brings the same damaged member to several threads at a time: one line, and no row uncounted."""
    manifest = make(tmp_path / "d", 40, complete=True)
    pairing = Pairing(view="split", fraction=0.05, composition="balanced", complete_share=0.5)
    stream = stream_of(manifest, 20, pairing)
    (complete,) = [pool.samples for pool in stream.views[0].pools if pool.name == "complete"]
    assert len(complete) == 2
    ruin(manifest, int(manifest.first[complete[0]]))
    collate = Collator([manifest], MODALITIES, tmp_path / "q.jsonl", budget=1.0)
    collate._seen = Hesitant()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        batches = list(prefetch(lambda step: collate(stream.global_batch(step)), 0, 100, 4, depth=16))
    finally:
        sys.setswitchinterval(interval)
    lines = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [(line["key"], line["modality"]) for line in lines] == [(manifest.key(complete[0]), "image")]
    hurt = sum(int((batch.weight_B == 0).sum()) for batch in batches)
    assert collate.rows_read == 2000
    assert collate.rows_damaged == hurt
    assert 480 < hurt < 600  # half of the complete rows, and the sample's image alone


@pytest.mark.parametrize(
    ("budget", "damaged", "stops"), [(0.0, 0, False), (0.0, 1, True), (0.001, 1, False), (0.001, 2, True)]
)
def test_the_budget_counts_rows(tmp_path: Path, budget: float, damaged: int, stops: bool) -> None:
    """A share of the rows read, of at least a thousand, so that one damaged row does not end a short run."""
    manifest = make(tmp_path / "d", 40, complete=True)
    for sample in range(damaged):
        ruin(manifest, int(manifest.first[sample]))
    collate = Collator([manifest], MODALITIES, tmp_path / "q.jsonl", budget)
    (refs,) = in_order(manifest, "train", NAMES, 40)
    if stops:
        with pytest.raises(UserError, match=rf"{damaged} damaged rows among the first 40, .*q\.jsonl") as said:
            collate(refs)
        assert "inspect" in str(said.value)
    else:
        collate(refs)


def test_without_a_quarantine_file_none_is_named(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 10, complete=True)
    ruin(manifest, 0)
    with pytest.raises(UserError) as said:
        Collator([manifest], MODALITIES)(next(in_order(manifest, "train", NAMES, 10)))
    assert "None" not in str(said.value)


def test_bytes_that_do_not_fit_the_run_s_modality_are_damage(tmp_path: Path) -> None:
    """Checksums hold, but the run knows fewer classes, or fewer levels: never a silently wrong value."""
    manifest = make(tmp_path / "d", 20, complete=True)
    run = {"image": Image(height=2, width=3, levels=16), "tag": Label(classes=1000), "label": Label(classes=5)}
    collate = Collator([manifest], run, tmp_path / "q.jsonl", budget=1.0)
    batch = collate(next(in_order(manifest, "train", NAMES, 20)))
    wrong = [number % 10 >= 5 for number in range(20)]
    assert (batch.weight_B.numpy() == 0).tolist() == wrong
    assert not batch.present_BM[wrong].any()
    assert batch.values["label"].tolist() == [number % 10 for number in range(20) if number % 10 < 5]
    assert batch.values["image"].shape[0] == 10
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "q.jsonl").read_text().splitlines()}
    assert len(reasons) == 5
    assert all("expected 0 to 4" in reason for reason in reasons)
