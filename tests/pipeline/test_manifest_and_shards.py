"""Shards are plain WebDataset tars, read by offset; the manifest says what they hold."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from infra.errors import UserError
from infra.storage import local
from pipeline.manifest import MEMBER, NAME, Manifest, check_shards, open_manifest
from pipeline.shards import Corrupt, Reader, quarantine
from pipeline.writing import write
from tests.pipeline.tiny import LABEL, NAMES, given, held, make, one, read, to_directory, to_loop, to_pipe, value


def everything(manifest: Manifest) -> dict[str, dict[str, bytes]]:
    """{key: {member: bytes}} by way of the manifest."""
    reader, extension = Reader([manifest]), {n: d.extension for n, d in manifest.modalities.items()}
    names, result = list(manifest.modalities), {}
    for row in range(len(manifest)):
        mine = range(int(manifest.first[row]), int(manifest.first[row + 1]))
        found: dict[str, list[bytes]] = {}
        for member in mine:
            found.setdefault(names[int(manifest.modality[member])], []).append(read(reader, member))
        result[manifest.key(row)] = {
            f"{name}.{i}.{extension[name]}" if name == "tag" else f"{name}.{extension[name]}": data
            for name, instances in found.items()
            for i, data in enumerate(instances)
        }
    return result


@pytest.mark.parametrize("shard_bytes", [1, 5000, 2**20])
def test_plain_webdataset_reads_the_same(tmp_path: Path, shard_bytes: int) -> None:
    manifest = make(tmp_path / "d", 40, shard_bytes)
    urls = [str(tmp_path / "d" / shard.name) for shard in manifest.shards]
    plain = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        assert sample["__key__"] not in plain
        plain[sample["__key__"]] = {name: data for name, data in sample.items() if not name.startswith("__")}
    assert plain == {key: members for key, members in everything(manifest).items() if members}


def test_webdataset_decodes_arrays_and_integers(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 20)
    urls = [str(tmp_path / "d" / shard.name) for shard in manifest.shards]
    count = 0
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        key = sample["__key__"]
        names = held(int(key.split("/")[1]))
        if "image" in names:
            assert np.array_equal(sample["image.npy"], value(key, "image"))
        if "tag" in names:
            tags = value(key, "tag")
            assert [sample[f"tag.{i}.cls"] for i in range(len(tags))] == [int(tag) for tag in tags]
        if "label" in names:
            assert sample["label.cls"] == int(value(key, "label"))
        count += 1
    assert count == 28 - 5  # those that hold nothing at all have no member to be seen by


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "a", 30, 4000)
    make(tmp_path / "b", 30, 4000)
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b"))
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_member_costs_22_bytes_and_a_sample_4(digits_dir: Path) -> None:
    manifest = open_manifest(digits_dir)
    members, rows = len(manifest.size), len(manifest)
    assert members == 3 * rows
    assert sum(getattr(manifest, name).nbytes for name in MEMBER.names) == 22 * members
    assert manifest.first.nbytes == 4 * (rows + 1)
    table = pa.ipc.open_file(pa.memory_map(str(digits_dir / NAME))).read_all()
    keys = table.column("key").nbytes
    assert keys <= rows * (len("digit0000") + 4) + 4  # Arrow's own offsets belong to the keys
    assert table.column("members").nbytes <= 22 * members + 4 * (rows + 1)
    assert (digits_dir / NAME).stat().st_size < keys + 22 * members + 4 * rows + 8192


def test_patterns_and_uneven_shards(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 40, shard_bytes=1)  # one sample a shard
    assert {len(np.unique(manifest.shard[a:b])) for a, b in pairwise(manifest.first)} <= {
        0,
        1,
    }
    for split, rows in manifest.splits.items():
        expected = [sum(1 << NAMES.index(name) for name in held(number)) for number in range(len(rows))]
        assert manifest.patterns(rows).tolist() == expected
        assert manifest.keys(rows) == [f"{split}/{number:04d}" for number in range(len(rows))]
        assert manifest.patterns(range(rows.start + 1, rows.stop - 1)).tolist() == expected[1:-1]
    assert manifest.patterns(range(0)).tolist() == []
    members = [manifest.modality[a:b].tolist() for a, b in pairwise(manifest.first)]
    assert all(one == sorted(one) for one in members)


def test_members_of_any_rows_in_any_order(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 40)
    rows = np.array([7, 0, 39, 7, 1, 20])
    columns = manifest.column(["label", "image"])
    found = manifest.members(rows, columns, np.zeros(len(rows), np.uint64), rows)
    for row, members in zip(rows, found, strict=True):
        for name, member in zip(["label", "image"], members, strict=True):
            assert (member >= 0) == (name in held(row))
            if member >= 0:
                assert manifest.first[row] <= member < manifest.first[row + 1]
                assert NAMES[manifest.modality[member]] == name


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "OPEN_FILES", 5)
    manifest = make(tmp_path / "d", 60, shard_bytes=1)
    before = len(os.listdir("/proc/self/fd"))
    reader = Reader([manifest])
    for member in range(len(manifest.size)):
        read(reader, member)
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    del reader
    assert len(manifest.shards) > 50


def test_threads_that_push_each_other_s_files_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "OPEN_FILES", 1)
    manifest = make(tmp_path / "d", 60, shard_bytes=1)
    reader, members = Reader([manifest]), list(range(len(manifest.size)))
    alone = [read(reader, member) for member in members]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda member: read(reader, member), members * 20)) == alone * 20
    finally:
        sys.setswitchinterval(interval)


# Damage of shards


REPLACED: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "directory": to_directory,
    "pipe": to_pipe,
    "endless link": to_loop,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(7000)),
    "zeros of the same size": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
}


@pytest.mark.parametrize("how", REPLACED)
def test_a_replaced_shard_is_corrupt_and_nothing_else(tmp_path: Path, how: str) -> None:
    manifest = make(tmp_path / "d", 30, shard_bytes=9000)
    victim = int(manifest.shard[15])
    name = manifest.shards[victim].name
    REPLACED[how](tmp_path / "d" / name)
    reader = Reader([manifest])
    for member in range(len(manifest.size)):
        if manifest.shard[member] == victim:
            with pytest.raises(Corrupt):
                read(reader, member)
        else:
            read(reader, member)
    share = (manifest.shard == victim).mean()
    if how.startswith("zeros"):
        check_shards(manifest, 0.0)  # sizes agree: it is the checksums' turn
    else:
        assert set(manifest.damaged_shards) == {name}
        with pytest.raises(UserError, match=f"does not match its manifest: {name}"):
            check_shards(manifest, share * 0.99)
        check_shards(manifest, share)


def test_a_shard_cut_off_while_it_is_open(tmp_path: Path) -> None:
    """Under a memory map this would be SIGBUS."""
    write(tmp_path / "d", given("cut", LABEL, [one(f"{number}") for number in range(40)]))
    manifest = open_manifest(tmp_path / "d")
    reader = Reader([manifest])
    last = len(manifest.size) - 1
    assert bytes(read(reader, last)) == b"3"
    os.truncate(tmp_path / "d" / "train-000000.tar", 100)
    with pytest.raises(Corrupt, match="shard ends at byte"):
        read(reader, last)


def test_errors_of_the_machine_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path / "d", 10)

    def too_many(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        read(Reader([manifest]), 0)
    monkeypatch.undo()

    def no_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(os, "pread", no_memory)
    with pytest.raises(MemoryError):
        read(Reader([manifest]), 0)


def test_quarantine_appends_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    quarantine(path, [{"key": "a"}])
    quarantine(path, [{"key": "b"}, {"key": "c"}])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_offsets_are_those_of_the_tar(digits_dir: Path) -> None:
    manifest = open_manifest(digits_dir)
    where = {}
    for shard in manifest.shards:
        with tarfile.open(digits_dir / shard.name) as tar:
            where |= {(shard.name, info.offset_data): (info.name, info.size) for info in tar}
    reader, rows = Reader([manifest]), np.repeat(np.arange(len(manifest)), np.diff(manifest.first))
    assert len(where) == len(manifest.size)
    for member, row in enumerate(rows):
        entry = reader.locate(int(row), member)
        extension = manifest.modalities[str(entry["modality"])].extension
        name, size = where[(str(entry["shard"]), int(entry["offset"]))]
        assert name == f"{entry['key']}.{entry['modality']}.{extension}"
        assert size == manifest.size[member]


def test_rows_are_found_by_key(digits_dir: Path) -> None:
    manifest = open_manifest(digits_dir)
    test, train = manifest.split("test"), manifest.split("train")
    wanted = {manifest.key(row): row for row in (test[0], test[7], test[-1])}
    assert manifest.rows("test", [*wanted, manifest.key(train[3]), "nothing"]) == wanted
    assert manifest.rows("train", []) == {}
