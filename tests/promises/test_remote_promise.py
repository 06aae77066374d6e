"""Where the shards lie does not show: over HTTP, through faults and a damaged cache, the batches are the local ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import UserError
from infra.storage import remote, requests
from pipeline.batch import Batch
from pipeline.collate import Collator, prefetch
from pipeline.manifest import open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.stream import Share, Stream
from tests.infra.servers import Faulty, FileServer
from tests.pipeline.tiny import MODALITIES, NAMES, make

STEPS = 60


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(requests, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(requests, "LONGEST_DELAY", 0.2)
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "data"
    make(folder, 200, shard_bytes=60_000)
    return folder


@pytest.fixture
def server(local: Path) -> Iterator[Faulty]:
    started = Faulty({path.name: path.read_bytes() for path in local.iterdir()})
    yield started
    started.close()


def batches(place: str | Path, workers: int = 1, collators: list[Collator] | None = None) -> Iterator[Batch]:
    """The first steps of a stream over a data directory."""
    manifest = open_manifest(place)
    share = Share(Stream([view(manifest, "train", NAMES, Pairing(view="split", fraction=0.3), 0, 20)], MODALITIES, 0))
    collate = Collator([manifest], MODALITIES, budget=1.0)
    if collators is not None:
        collators.append(collate)
    return prefetch(lambda step: collate(share(step)), 0, STEPS, workers)


def same(one: Batch, other: Batch) -> bool:
    return (
        one.keys == other.keys
        and np.array_equal(one.present_BM, other.present_BM)
        and torch.equal(one.weight_B, other.weight_B)
        and all(torch.equal(one.values[name], other.values[name]) for name in NAMES)
    )


def all_same(one: Iterator[Batch], other: Iterator[Batch]) -> bool:
    return all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_over_http_are_the_local_ones(local: Path, server: Faulty, workers: int) -> None:
    assert all_same(batches(server.url, workers), batches(local))
    ranges = [count for (name, asked), count in server.gets.items() if name.endswith(".tar") and asked]
    assert ranges
    assert max(ranges) == 1  # each block once, then it is in the cache


def test_faults_that_pass_do_not_show(local: Path, server: Faulty) -> None:
    faults = ["503", "cut", "short", "429"]
    server.fault = lambda number, name: faults[number // 3 % 4] if number % 3 == 1 else ""
    collators: list[Collator] = []
    assert all_same(batches(server.url, 2, collators), batches(local))
    assert collators[0].reader.retries > 0
    assert collators[0].rows_damaged == 0


def test_a_server_that_is_killed_and_comes_back_does_not_show(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server with range requests, stopped and started in mid-read."""
    monkeypatch.setattr(requests, "LONGEST_DELAY", 5.0)  # a process takes seconds to start where others run
    served = FileServer(local, tmp_path)
    served.start()
    try:
        collators: list[Collator] = []
        stream, truth = batches(served.url, 1, collators), batches(local)
        for one, other in islice(zip(stream, truth, strict=True), 1):
            assert same(one, other)
        served.kill()
        back = threading.Timer(0.5, served.start)
        back.start()
        assert all_same(stream, truth)
        back.join()
        assert collators[0].reader.retries > 0
        assert collators[0].rows_damaged == 0
    finally:
        served.kill()


def test_a_server_that_is_gone_stops_the_stream_with_a_sentence(
    server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "LONGEST_DELAY", 0.02)
    stream = batches(server.url)
    next(stream)
    server.fault = lambda number, name: "503"
    with pytest.raises(UserError, match="cannot be read"):
        list(stream)


def test_damage_on_the_server_is_damage_and_no_absence(local: Path, server: Faulty) -> None:
    name = "train-000000.tar"
    server.files[name] = server.files[name][:30_000]
    server.files["train-000001.tar"] = bytes(len(server.files["train-000001.tar"]))
    collators: list[Collator] = []
    truth = {key: present.tolist() for b in batches(local) for key, present in zip(b.keys, b.present_BM, strict=True)}
    hurt = 0
    for batch in batches(server.url, 1, collators):
        for key, present, weight in zip(batch.keys, batch.present_BM, batch.weight_B.tolist(), strict=True):
            assert weight == float(present.any())
            hurt += not weight
            assert key in truth
    assert hurt == collators[0].rows_damaged > 100


def test_a_damaged_cache_is_fetched_again(local: Path, server: Faulty, tmp_path: Path) -> None:
    assert all_same(batches(server.url), batches(local))
    blocks = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == 4096]
    assert len(blocks) > 10
    for path in blocks:
        path.write_bytes(bytes(4096))
    collators: list[Collator] = []
    assert all_same(batches(server.url, 1, collators), batches(local))
    assert collators[0].rows_damaged == 0
