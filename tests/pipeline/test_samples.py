"""The stream in place of a WebDataset: the same dictionaries, in the stream's order, with any workers and ranks."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from infra.errors import UserError
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.pairing import view
from pipeline.samples import Samples
from pipeline.settings import Pairing
from pipeline.stream import Stream
from pipeline.writing import write
from tests.infra.servers import Faulty
from tests.pipeline.tiny import MODALITIES, NAMES, given, held, make, samples, value

SPLIT = Pairing(view="split", fraction=0.5)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("samples") / "d", 60, shard_bytes=16_000)


@pytest.fixture
def mine(tmp_path: Path) -> Manifest:
    """One to be damaged."""
    return make(tmp_path / "d", 60, shard_bytes=16_000)


def batches(dataset: Samples, workers: int, size: int, count: int | None = None, **more: Any) -> list[list[dict]]:
    loader = DataLoader(dataset, size, num_workers=workers, collate_fn=list, **more)
    return list(islice(loader, count))


def flat(many: Iterable[Iterable[dict]]) -> list[dict]:
    return [one for some in many for one in some]


def flip(manifest: Manifest, member: int) -> None:
    path = Path(manifest.directory) / manifest.shards[int(manifest.shard[member])].name
    data = bytearray(path.read_bytes())
    data[int(manifest.block[member]) * BLOCK] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("epochs", [2, None])
def test_batches_do_not_depend_on_the_workers(tiny: Manifest, workers: int, epochs: int | None) -> None:
    dataset = Samples(tiny.directory, pairing=SPLIT, batch=16, seed=5, epochs=epochs)
    count = None if epochs else 11
    alone = batches(dataset, 0, 16, count)
    assert len(alone) == (120 // 16 if epochs else 11)
    assert batches(dataset, workers, 16, count) == alone


def test_a_pickle_holds_no_manifest(tiny: Manifest) -> None:
    dataset = Samples(tiny.directory, pairing=Pairing(view="keep", keep=0.5), batch=20, epochs=1)
    assert len(pickle.dumps(dataset)) < 20_000
    assert list(pickle.loads(pickle.dumps(dataset))) == list(dataset)


@pytest.mark.slow
def test_workers_that_are_spawned(mine: Manifest) -> None:
    flip(mine, 0)
    dataset = Samples(mine.directory, pairing=SPLIT, batch=20, epochs=3)
    with pytest.warns(UserWarning, match="the row is left out"):
        alone = flat(batches(dataset, 0, 20))
    lost = dataset.damaged
    found = flat(batches(dataset, 2, 20, multiprocessing_context="spawn"))
    assert sorted(one["__row__"] for one in found) == [one["__row__"] for one in alone]
    assert dataset.damaged == 2 * lost > 0, "spawned workers count where their parent looks"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_get_contiguous_parts_of_each_batch(tiny: Manifest, world: int) -> None:
    alone = batches(Samples(tiny.directory, batch=16, epochs=2), 0, 16)
    ranks = [Samples(tiny.directory, batch=16, epochs=2, rank=rank, world=world) for rank in range(world)]
    assert {(len(one), one.share) for one in ranks} == {(7 * 16 // world, 16 // world)}
    for step, parts in enumerate(zip(*(batches(one, 2, one.share) for one in ranks), strict=True)):
        assert flat(parts) == alone[step]


def test_rank_and_world_are_those_of_torch_distributed(tiny: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(Samples(tiny.directory, batch=16, epochs=1, rank=1, world=4))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert list(Samples(tiny.directory, batch=16, epochs=1)) == expected
    assert len(list(Samples(tiny.directory, batch=16, epochs=1, rank=0, world=1))) == 48


@pytest.mark.parametrize("workers", [0, 3])
def test_a_resumed_stream_goes_on_where_it_was(tiny: Manifest, workers: int) -> None:
    whole = batches(Samples(tiny.directory, batch=12, seed=1, epochs=2), 0, 12)
    resumed = Samples(tiny.directory, batch=12, seed=1, epochs=2, start=4)
    assert len(resumed) == (len(whole) - 4) * 12
    assert batches(resumed, workers, 12) == whole[4:]
    resumed.start = 7
    assert batches(resumed, workers, 12) == whole[7:]


@pytest.mark.parametrize("pairing", [Pairing(), SPLIT, Pairing(view="keep-one", fraction=0.2)])
def test_the_order_is_that_of_training(tiny: Manifest, pairing: Pairing) -> None:
    shown = view(tiny, "train", NAMES, pairing, 3, 10)
    refs = Stream([shown], MODALITIES, 3).rows(np.arange(30))
    found = list(islice(Samples(tiny.directory, pairing=pairing, seed=3, batch=10), 30))
    assert [one["__key__"] for one in found] == tiny.keys(refs.sample_B)
    assert [one["__row__"] for one in found] == list(range(30))
    for one, member_M in zip(found, refs.member_BM, strict=True):
        there = {name.split(".")[0] for name in one if not name.startswith("__")}
        assert there == {name for name, member in zip(NAMES, member_M, strict=True) if member >= 0}
        shard = tiny.shards[int(tiny.shard[member_M.max()])].name
        assert one["__url__"] == f"{tiny.directory}/{shard}"


def test_dictionaries_are_those_of_a_plain_webdataset(tmp_path: Path) -> None:
    entries = list(samples(40))
    for entry in entries:
        if "tag" in entry.source:
            entry.source["tag"] = entry.source["tag"][0]
    write(tmp_path / "d", given("single", MODALITIES, entries), 16_000)
    manifest = open_manifest(tmp_path / "d")
    urls = [f"{manifest.directory}/{shard.name}" for shard in manifest.shards]
    plain = {one["__key__"]: one for one in wds.WebDataset(urls, shardshuffle=False)}
    filled = [number for number in range(40) if held(number)]
    assert len(plain) == len(filled)
    ours = {one["__key__"]: one for one in islice(Samples(manifest.directory, batch=5), len(filled))}
    assert set(ours) == set(plain)
    for key, one in ours.items():
        for name in set(one) | set(plain[key]):
            if name not in ("__row__", "__local_path__"):
                assert one[name] == plain[key][name], (key, name)


def test_instances_take_turns_under_one_name(tiny: Manifest) -> None:
    seen: dict[str, set[bytes]] = {}
    for one in islice(Samples(tiny.directory, modalities=["tag"], batch=6), 600):
        assert [name for name in one if not name.startswith("__")] == ["tag.cls"]
        seen.setdefault(one["__key__"], set()).add(one["tag.cls"])
    assert len(seen) == sum("tag" in held(number) for number in range(60))
    for key, found in seen.items():
        tags = value(key, "tag")
        assert found == {str(int(tag)).encode() for tag in tags}


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_pipeline_of_webdataset(tiny: Manifest, workers: int) -> None:
    only = Samples(tiny.directory, modalities=["image", "label"], batch=8, epochs=1)
    pipeline = wds.DataPipeline(
        only, wds.decode(), wds.to_tuple("__key__", "image.npy", "label.cls", missing_is_error=False)
    )
    found = flat(DataLoader(pipeline, 8, num_workers=workers, collate_fn=list))
    assert [one[0] for one in found] == [one["__key__"] for one in only]
    assert len(found) == 56
    for key, image, label in found:
        names = held(int(key.split("/")[1]))
        assert (image is not None, label is not None) == ("image" in names, "label" in names)
        assert image is None or np.array_equal(image, value(key, "image"))
        assert label is None or label == int(value(key, "label"))


@pytest.mark.parametrize("workers", [0, 3])
def test_a_damaged_row_is_left_out_whole_and_counted(mine: Manifest, workers: int) -> None:
    intact = list(Samples(mine.directory, batch=10, epochs=2))
    sample = next(number for number in range(60) if len(held(number)) == 3)
    key = mine.key(sample)
    flip(mine, int(mine.first[sample]))
    dataset = Samples(mine.directory, batch=10, epochs=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = flat(batches(dataset, workers, 10))
    assert sorted(one["__row__"] for one in found) == [one["__row__"] for one in intact if one["__key__"] != key]
    assert all(one == intact[one["__row__"]] for one in found)
    assert dataset.damaged == len(intact) - len(found) > 0
    if not workers:  # theirs go to stderr
        assert f"{key} image: checksum differs" in str(said[0].message)
        assert f"{mine.shards[int(mine.shard[mine.first[sample]])].name} at byte" in str(said[0].message)
        assert found == [one for one in intact if one["__key__"] != key]


def test_warnings_end_and_counting_goes_on(mine: Manifest) -> None:
    for member in range(0, len(mine.size), 3):
        flip(mine, member)
    dataset = Samples(mine.directory, batch=10, epochs=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = list(dataset)
    assert dataset.damaged == 120 - len(found) > 25
    assert 15 <= len(said) <= 25


@pytest.mark.parametrize(("workers", "epochs"), [(0, None), (2, None), (0, 1)])
def test_nothing_but_damage_is_an_error(mine: Manifest, workers: int, epochs: int | None) -> None:
    for shard in mine.shards:
        (Path(mine.directory) / shard.name).unlink()
    dataset = Samples(mine.directory, batch=10, epochs=epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"all of \d+ rows are damaged; run `pairstream inspect"):
            batches(dataset, workers, 10)


def test_another_working_directory(tiny: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(Path(tiny.directory).parent)
    dataset = Samples("d", epochs=1, batch=10)
    monkeypatch.chdir(tmp_path)
    assert len(list(dataset)) == 60
    assert dataset.directory == tiny.directory


def test_a_url(tiny: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also in workers that are forked from a process that has been reading."""
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    expected = list(Samples(tiny.directory, pairing=SPLIT, batch=10, epochs=1))
    with closing(Faulty({path.name: path.read_bytes() for path in Path(tiny.directory).iterdir()})) as server:
        dataset = Samples(server.url, pairing=SPLIT, batch=10, epochs=1)
        alone = list(dataset)
        assert flat(batches(dataset, 2, 10)) == alone
        for one, other in zip(alone, expected, strict=True):
            assert one["__url__"] == f"{server.url}/{Path(other['__url__']).name}"
            assert one | {"__url__": ""} == other | {"__url__": ""}


def test_length(tiny: Manifest) -> None:
    dataset = Samples(tiny.directory, batch=25, epochs=1.5)
    assert len(dataset) == len(list(dataset)) == 75  # 90 rows are three whole steps
    assert len(Samples(tiny.directory, batch=25, epochs=1, start=9)) == 0
    with pytest.raises(TypeError, match="endless"):
        len(Samples(tiny.directory))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch 0: choose"),
        ({"start": -1}, "start -1"),
        ({"batch": 10, "rank": 0, "world": 4}, "4 ranks cannot share"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"epochs": 1}, "1 epochs of 60 samples are not one step of 100 rows"),
        ({"split": "trian"}, "no split 'trian'"),
        ({"modalities": ["imgae"]}, "no modality 'imgae'"),
    ],
)
def test_what_cannot_be_is_refused_at_once(tiny: Manifest, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Samples(tiny.directory, **options)
