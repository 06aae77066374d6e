"""`verify` finds what is damaged, and nothing else: by checksums, by tar headers and by the shards' sizes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipeline import verifying
from pipeline.corpora.corpus import Entry
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.verifying import foreign_shards, verify
from pipeline.writing import write
from tests.infra.servers import Faulty
from tests.pipeline import tiny
from tests.pipeline.tiny import LABEL, NAMES, make, to_directory, to_loop, to_pipe

Place = tuple[str, str, int]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def shard_of(manifest: Manifest, member: int) -> Path:
    return Path(manifest.directory) / manifest.shards[int(manifest.shard[member])].name


def place(manifest: Manifest, member: int) -> Place:
    """(key, modality, offset) of a member."""
    row = int(np.searchsorted(manifest.first, member, side="right")) - 1
    return manifest.key(row), NAMES[manifest.modality[member]], int(manifest.block[member]) * BLOCK


def reasons(manifest: Manifest, workers: int = 1) -> dict[Place, str]:
    found = verify(manifest, workers)
    assert all(set(d) == {"shard", "key", "modality", "offset", "reason"} for d in found)
    return {(str(d["key"]), str(d["modality"]), int(d["offset"])): str(d["reason"]) for d in found}


@pytest.fixture(params=["at once", "in small pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in small pieces":
        for name, value in (("MEMBERS", 7), ("BYTES", 3000), ("STRETCH", 1536), ("GAP", 0)):
            monkeypatch.setattr(verifying, name, value)


# Which members


@pytest.mark.usefixtures("pieces")
def test_exactly_the_damaged_members_are_found(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 30, shard_bytes=9000)
    assert reasons(manifest) == {}
    hurt = {}
    for member, where in ((0, "payload"), (11, "name"), (20, "payload"), (33, "checksum of header"), (40, "payload")):
        start = int(manifest.block[member]) * BLOCK
        last = start + int(manifest.size[member]) - 1
        at = {"payload": last, "name": start - BLOCK + 3}.get(where, start - BLOCK + 150)
        flip(shard_of(manifest, member), at)
        hurt[place(manifest, member)] = "checksum differs" if where == "payload" else "tar header damaged"
    found = reasons(manifest)
    assert list(found) == list(hurt), "these and no others, by row"
    assert all(found[where].startswith(reason) for where, reason in hurt.items())


# Which shards


REPLACED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "shard cannot be read: "),
    "directory": (to_directory, "shard cannot be read: "),
    "pipe": (to_pipe, "shard cannot be read: "),
    "endless link": (to_loop, "shard cannot be read: "),
    "empty": (lambda path: path.write_bytes(b""), "shard ends at byte "),
    "zeros of the same size": (lambda path: path.write_bytes(b"\0" * path.stat().st_size), "checksum differs"),
    "a block too many": (lambda path: path.write_bytes(path.read_bytes() + bytes(BLOCK)), "shard is longer than the "),
    "a byte too few": (lambda path: os.truncate(path, path.stat().st_size - 1), "shard is shorter than the "),
}


@pytest.mark.parametrize("how", REPLACED)
@pytest.mark.usefixtures("pieces")
def test_every_member_of_a_replaced_shard_is_reported(tmp_path: Path, how: str) -> None:
    manifest = make(tmp_path / "d", 30, shard_bytes=9000)
    path = shard_of(manifest, 15)
    replace, reason = REPLACED[how]
    replace(path)
    found = reasons(manifest)
    mine = np.flatnonzero(manifest.shard == manifest.shard[15]).tolist()
    assert list(found) == [place(manifest, member) for member in mine]
    assert all(said.startswith(reason) for said in found.values()), found


def test_in_a_shard_that_was_cut_the_whole_members_are_told_from_the_others(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 30, shard_bytes=9000)
    mine = np.flatnonzero(manifest.shard == manifest.shard[15]).tolist()
    middle = mine[len(mine) // 2]
    os.truncate(shard_of(manifest, 15), int(manifest.block[middle]) * BLOCK)
    found = reasons(manifest)
    assert set(found) == {place(manifest, member) for member in mine}
    for member in mine:
        before = manifest.block[member] < manifest.block[middle]
        assert found[place(manifest, member)].startswith("shard is shorter" if before else "shard ends at byte")


def test_a_shard_of_another_data_set_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """Same size, same names: only the bytes are others."""
    sizes = []
    for name, shift in (("d", 0), ("other", 1)):
        entries = [Entry(f"{n:04d}", "train", {"label": np.asarray((n + shift) % 10)}) for n in range(40)]
        write(tmp_path / name, tiny.given(name, LABEL, entries), 10_000)
        sizes.append([path.stat().st_size for path in sorted((tmp_path / name).glob("*.tar"))])
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) > 3
    shards = [f"train-{number:06d}.tar" for number in range(4)]
    shutil.copy(tmp_path / "other" / shards[1], tmp_path / "d" / shards[1])
    (tmp_path / "d" / shards[2]).unlink()
    flip(tmp_path / "d" / shards[3], BLOCK)
    manifest = open_manifest(tmp_path / "d")
    damage = verify(manifest)
    assert {d["shard"] for d in damage} == set(shards[1:])
    assert foreign_shards(manifest, damage) == [shards[1]]
    assert foreign_shards(manifest, []) == []


# How


def test_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path / "d", 40, shard_bytes=9000)
    for member in (3, 12, 50):
        flip(shard_of(manifest, member), int(manifest.block[member]) * BLOCK)
    shard_of(manifest, 25).unlink()
    monkeypatch.setattr(verifying, "MEMBERS", 9)
    alone = verify(manifest, 1)
    assert len({d["shard"] for d in alone}) > 2
    assert verify(manifest, 2) == alone


@pytest.mark.usefixtures("pieces")
def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    manifest, told = make(tmp_path / "d", 40), []
    verify(manifest, 1, lambda done, total: told.append((done, total)))
    expected = int(manifest.size.sum()) + BLOCK * len(manifest.size)
    assert {total for _, total in told} == {expected}
    assert all(one < other for one, other in pairwise(done for done, _ in told))
    assert told[-1][0] == expected


def test_a_member_larger_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path / "d", 20)
    monkeypatch.setattr(verifying, "BYTES", 100)
    flip(shard_of(manifest, 5), int(manifest.block[5]) * BLOCK)
    assert list(reasons(manifest)) == [place(manifest, 5)]


def test_samples_without_members(tmp_path: Path) -> None:
    write(tmp_path / "d", tiny.given("none", LABEL, [Entry("a", "train", {}), Entry("b", "train", {})]))
    assert verify(open_manifest(tmp_path / "d")) == []


def test_a_url_and_what_its_cache_got_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged in the node's copy alone is fetched again, once; what is damaged on the server is reported."""
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    local = make(tmp_path / "d", 40, shard_bytes=16_000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with closing(Faulty({path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()})) as server:
        manifest = open_manifest(server.url)
        assert verify(manifest, 2) == []
        victim, lost = manifest.shards[0].name, manifest.shards[2].name
        for block in (tmp_path / "cache").rglob("*.block"):
            if block.stat().st_size == manifest.shards[0].bytes:
                flip(block, int(manifest.block[0]) * BLOCK)
                flip(block, int(manifest.block[4]) * BLOCK - BLOCK)
        server.gets.clear()
        assert verify(manifest) == []
        assert set(server.gets.values()) == {1}
        shutil.rmtree(tmp_path / "cache")
        broken = bytearray(server.files[victim])
        broken[int(manifest.block[3]) * BLOCK] ^= 1
        server.files[victim] = bytes(broken)
        del server.files[lost]
        gone = np.flatnonzero(manifest.shard == 2).tolist()
        found = reasons(manifest)
        assert set(found) == {place(local, member) for member in [3, *gone]}
        assert found[place(local, 3)] == "checksum differs"
        assert found[place(local, gone[0])] == "shard cannot be read: no such file"


def test_a_process_that_is_killed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path / "d", 20)
    monkeypatch.setattr(verifying, "MEMBERS", 9)
    monkeypatch.setattr(verifying, "_begin", os._exit)  # called with no number: it fails
    with pytest.raises(UserError, match="a process that verifies shards was killed"):
        verify(manifest, 2)
