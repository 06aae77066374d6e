"""Promise 3: absence is declared, never inferred: damage to a shard can never pass for a missing modality."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.indexing import index
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.pairing import view
from pipeline.rules import Rules
from pipeline.settings import Pairing
from pipeline.shards import Corrupt, Reader
from pipeline.stream import Stream, in_order
from pipeline.verifying import verify
from tests.pipeline.tiny import MODALITIES, NAMES, fits, held, make


def payloads(manifest: Manifest) -> list[bytes]:
    """Each member's bytes as they lie on disk now (shorter, or none, where the shard ends or is no file)."""
    whole = {}
    for number, shard in enumerate(manifest.shards):
        path = Path(manifest.directory) / shard.name
        whole[number] = path.read_bytes() if path.is_file() else b""
    starts = manifest.block.astype(int) * BLOCK
    return [whole[s][a : a + n] for s, a, n in zip(manifest.shard, starts, manifest.size, strict=True)]


def row_of(manifest: Manifest) -> np.ndarray:
    """The sample that each member belongs to."""
    return np.repeat(np.arange(len(manifest)), np.diff(manifest.first))


def check_batch(batch: Batch, samples: np.ndarray, hurt: set[int], quarantined: bool = True) -> None:
    """Rows of hurt samples weigh nothing and hold nothing; all others are whole and hold what they should."""
    for place, (key, sample) in enumerate(zip(batch.keys, samples.tolist(), strict=True)):
        number = int(key.split("/")[1]) if key else 0
        expected = [] if sample < 0 or sample in hurt else held(number)
        assert [n for n, present in zip(NAMES, batch.present_BM[place], strict=True) if present] == expected
        assert batch.weight_B[place] == float(bool(expected))
    for column, name in enumerate(NAMES):
        assert batch.rows_of[name].tolist() == np.flatnonzero(batch.present_BM[:, column]).tolist()
        assert len(batch.values[name]) == max(1, len(batch.rows_of[name]))
        for place, value in zip(batch.rows_of[name], batch.values[name], strict=False):
            assert fits(batch.keys[place], name, value.numpy())


def prove(
    manifest: Manifest, intact: list[bytes], file: Path, splits: tuple[str, ...] = ("train", "val", "test")
) -> set[int]:
    """Read everything: rows, quarantine file and `verify` agree with the bytes on disk. Returns the damaged members."""
    now = payloads(manifest)
    damaged = {member for member, (one, other) in enumerate(zip(now, intact, strict=True)) if one != other}
    owner, reader = row_of(manifest), Collator([manifest], MODALITIES, file, budget=1.0)
    reported = set()
    for split in splits:
        for refs in in_order(manifest, split, NAMES, 4):
            hurt = {int(owner[m]) for m in damaged if m in refs.member_BM}
            check_batch(reader(refs), refs.sample_B, hurt)
            reader(refs)  # once more: the quarantine file does not grow
            reported |= damaged & set(refs.member_BM.ravel().tolist())
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    places = {(str(line["shard"]), int(line["offset"])): line for line in lines}
    assert len(places) == len(lines) == len(reported)
    for member in reported:
        line = places[manifest.shards[manifest.shard[member]].name, int(manifest.block[member]) * BLOCK]
        assert line["key"] == manifest.key(owner[member])
        assert line["modality"] == NAMES[manifest.modality[member]]
        assert line["reason"]
    found = {(str(d["shard"]), int(d["offset"])) for d in verify(manifest)}
    must = {(manifest.shards[manifest.shard[m]].name, int(manifest.block[m]) * BLOCK) for m in damaged}
    assert must <= found
    return damaged


# What happens to files


def member_of(manifest: Manifest, sample: int, name: str) -> int:
    """The first member of a sample's modality."""
    first, last = manifest.first[sample], manifest.first[sample + 1]
    return int(first + np.flatnonzero(manifest.modality[first:last] == NAMES.index(name))[0])


def flip(manifest: Manifest, path: Path, start: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    data[start + size - 1] ^= 128
    path.write_bytes(data)


def exchange(manifest: Manifest, path: Path, start: int, size: int) -> None:
    """The bytes of two members of the same modality and size, each whole in the other's place."""
    shard = [s.name for s in manifest.shards].index(path.name)
    data = bytearray(path.read_bytes())
    kind = manifest.modality[(manifest.shard == shard) & (manifest.block == start // BLOCK)][0]
    like = (manifest.shard == shard) & (manifest.modality == kind) & (manifest.size == size)
    for other in (manifest.block[like].astype(int) * BLOCK).tolist():
        if data[other : other + size] != data[start : start + size]:
            data[other : other + size], data[start : start + size] = (
                data[start : start + size],
                data[other : other + size],
            )
            break
    path.write_bytes(data)


def cut(by: int, header: bool = False) -> Callable[[Manifest, Path, int, int], None]:
    def at(manifest: Manifest, path: Path, start: int, size: int) -> None:
        os.truncate(path, start - (BLOCK if header else 0) + by)

    return at


def shift(manifest: Manifest, path: Path, start: int, size: int) -> None:
    """One block inserted: everything behind it stands in another member's place."""
    data = path.read_bytes()
    path.write_bytes(data[: start - BLOCK] + bytes(BLOCK) + data[start - BLOCK :])


def directory(manifest: Manifest, path: Path, start: int, size: int) -> None:
    path.unlink()
    path.mkdir()


def pipe(manifest: Manifest, path: Path, start: int, size: int) -> None:
    path.unlink()
    os.mkfifo(path)


def another(manifest: Manifest, path: Path, start: int, size: int) -> None:
    shutil.copy(Path(manifest.directory) / f"train-00000{int(path.stem == 'train-000000')}.tar", path)


DAMAGE: dict[str, Callable[[Manifest, Path, int, int], object]] = {
    "flipped bit": flip,
    "exchanged payloads": exchange,
    "cut in a header": cut(200, header=True),
    "cut before a header": cut(0, header=True),
    "cut before a payload": cut(0),
    "cut in a payload": lambda m, path, start, size: os.truncate(path, start + size - 1),
    "cut at the end of a payload's block": cut(BLOCK),
    "shifted by a block": shift,
    "nothing left": lambda m, path, *_: path.write_bytes(b""),
    "gone": lambda m, path, *_: path.unlink(),
    "garbage": lambda m, path, *_: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
    "zeros": lambda m, path, *_: path.write_bytes(bytes(path.stat().st_size)),
    "directory": directory,
    "pipe": pipe,
    "another shard": another,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(("sample", "name"), [(0, "image"), (15, "tag"), (21, "label"), (22, "label")])
def test_damage_never_passes_for_absence(tmp_path: Path, how: str, sample: int, name: str) -> None:
    manifest = make(tmp_path / "d", 40, shard_bytes=16_000)
    intact, member = payloads(manifest), member_of(manifest, sample, name)
    path = tmp_path / "d" / manifest.shards[manifest.shard[member]].name
    start, size = int(manifest.block[member]) * BLOCK, int(manifest.size[member])
    DAMAGE[how](manifest, path, start, size)
    damaged = prove(open_manifest(tmp_path / "d"), intact, tmp_path / "q.jsonl")
    assert damaged
    if how not in ("cut at the end of a payload's block", "another shard"):  # which may leave this member as it was
        assert member in damaged
    if how == "flipped bit":
        assert damaged == {member}
        found = verify(manifest)
        assert [(d["key"], d["modality"], d["offset"]) for d in found] == [(manifest.key(sample), name, start)]
    if how == "exchanged payloads":
        assert len(damaged) == 2


def test_a_hurt_row_is_not_shown_as_an_unpaired_one(tmp_path: Path) -> None:
    """A pair that lost its label must not train as an image alone; as `only image` its row is whole."""
    manifest = make(tmp_path / "d", 40, complete=True)
    pairing = Pairing(view="split", fraction=0.5)
    stream = Stream([view(manifest, "train", NAMES, pairing, 0, 20)], MODALITIES, 0)
    pools = {pool.name: pool.samples for pool in stream.views[0].pools}
    pair, single = int(pools["complete"][3]), int(pools["only label"][3])
    for sample in (pair, single):
        member = member_of(manifest, sample, "label")
        flip(manifest, tmp_path / "d" / "train-000000.tar", int(manifest.block[member]) * BLOCK, 1)
    collate = Collator([manifest], MODALITIES, tmp_path / "q.jsonl", budget=1.0)
    seen: dict[str, set[tuple[str, float]]] = {manifest.key(pair): set(), manifest.key(single): set()}
    for step in range(12):
        batch = collate(stream.global_batch(step))
        for key, present, weight in zip(batch.keys, batch.present_BM, batch.weight_B.tolist(), strict=True):
            if key in seen:
                seen[key].add(("+".join(n for n, p in zip(NAMES, present, strict=True) if p), weight))
    assert seen[manifest.key(pair)] == {("", 0.0)}
    assert seen[manifest.key(single)] == {("", 0.0), ("image", 1.0), ("tag", 1.0)}


def test_an_empty_member_of_a_missing_shard_is_damaged(tmp_path: Path) -> None:
    """No bytes are what the manifest declares, but nobody has seen that they are there."""
    with tarfile.open(tmp_path / "train.tar", "w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    index([tmp_path], tmp_path, Rules.read(["txt=caption"]), workers=1)
    assert Reader([open_manifest(tmp_path)]).read(np.array([0])) == [b""]
    (tmp_path / "train.tar").unlink()
    (found,) = Reader([open_manifest(tmp_path)]).read(np.array([0]))
    assert isinstance(found, Corrupt)


def test_over_the_budget_the_run_stops_with_a_sentence(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 40, shard_bytes=16_000)
    (tmp_path / "d" / manifest.shards[0].name).unlink()
    collate = Collator([manifest], MODALITIES, tmp_path / "q.jsonl", budget=0.001)
    with pytest.raises(UserError, match=r"damaged rows among the first .* train\.damage = 0\.001 .*q\.jsonl"):
        list(map(collate, in_order(manifest, "train", NAMES, 4)))
    assert (tmp_path / "q.jsonl").read_text().count("\n") >= 2


# Anything at all


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("absence") / "d", 9, shard_bytes=8000)


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "cut", "insert", "delete", "swap", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([1, 2, 100, 200, BLOCK, 3 * BLOCK]) | st.integers(1, 2000),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def mutate(data: bytearray, kind: str, at: int, to: int, length: int, byte: int) -> None:
    if kind == "flip" and data:
        data[at] ^= byte or 1
    elif kind == "write":
        data[at : at + length] = bytes([byte]) * len(data[at : at + length])
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = bytes([byte]) * length
    elif kind == "delete":
        del data[at : at + length]
    elif kind == "swap":
        low, high = sorted((at, to))
        length = min(length, high - low, len(data) - high)
        one, other = data[low : low + length], data[high : high + length]
        data[low : low + length], data[high : high + length] = other, one
    elif kind == "copy":
        piece = data[at : at + length]
        data[to : to + len(piece)] = piece[: max(0, len(data) - to)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), MUTATIONS)
def test_no_mutation_of_a_shard_makes_a_partial_row(
    pristine: Manifest, tmp_path: Path, data: st.DataObject, mutations: list[tuple[str, float, float, int, bool]]
) -> None:
    intact = payloads(pristine)
    victim = data.draw(st.sampled_from(pristine.shards[:-2]))  # of the training split
    path = Path(pristine.directory) / victim.name
    original = path.read_bytes()
    changed, file = bytearray(original), tmp_path / "q.jsonl"
    used = int(original.rstrip(b"\0").__len__()) + 2  # tar files end in a lot of zeros
    for kind, at, to, length, on_a_block in mutations:
        unit = BLOCK if on_a_block else 1
        places = [int(where * min(used, len(changed))) // unit * unit for where in (at, to)]
        mutate(changed, kind, *places, length, int(at * 256))
    file.unlink(missing_ok=True)
    try:
        path.write_bytes(changed)
        prove(open_manifest(pristine.directory), intact, file, ("train",))
    finally:
        path.write_bytes(original)


def members_of(manifest: Manifest, shard: int) -> list[slice]:
    """Where each member lies in a shard: its header, and its bytes in whole blocks."""
    mine = manifest.shard == shard
    blocks, sizes = manifest.block[mine].tolist(), manifest.size[mine].tolist()
    return [slice((b - 1) * BLOCK, (b - (-n // BLOCK)) * BLOCK) for b, n in sorted(zip(blocks, sizes, strict=True))]


def resize(header: bytearray, size: int) -> bytearray:
    """A tar header that is whole, and gives its member another size."""
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


def wreck(data: bytearray, kind: str, one: slice, other: slice, at: int) -> None:
    """Damage that knows where members lie; `at` is a byte within the member, its header included."""
    place = one.start + at % (one.stop - one.start)
    if kind == "cut":
        del data[place:]
    elif kind == "cut at a block":
        del data[place // BLOCK * BLOCK :]
    elif kind == "flip":
        data[place : place + 1] = bytes([data[place] ^ (at % 255 + 1)]) if place < len(data) else b""
    elif kind == "swap":
        low, high = sorted((one, other), key=lambda member: member.start)
        if low != high:
            data[low.start : high.stop] = data[high] + data[low.stop : high.start] + data[low]
    elif kind == "size":
        header = slice(one.start, one.start + BLOCK)
        if len(data[header]) == BLOCK:
            data[header] = resize(data[header], at)
    elif kind == "duplicate":
        data[other.start : other.start + one.stop - one.start] = data[one]
    elif kind == "double":
        data[other.start : other.start] = data[one]
    elif kind == "garbage":
        data[place:] = np.random.default_rng(at).bytes(len(data[place:]))
    elif kind == "garbage in a member":
        data[place : one.stop] = np.random.default_rng(at).bytes(len(data[place : one.stop]))


WRECKS = ["cut", "cut at a block", "flip", "swap", "size", "duplicate", "double", "garbage", "garbage in a member"]
PLACES = st.integers(0, 2000) | st.integers(BLOCK, BLOCK + 200) | st.integers(BLOCK, BLOCK + 2)
FATES = {"gone": lambda path: path.unlink(), "directory": lambda path: (path.unlink(), path.mkdir())}


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 100),
    st.lists(st.tuples(st.sampled_from(WRECKS), *[st.integers(0, 100)] * 2, PLACES), min_size=1, max_size=3),
    st.sampled_from([None] * 9 + list(FATES)),
)
def test_no_mutation_of_two_thousand_makes_a_partial_row(
    pristine: Manifest, tmp_path: Path, which: int, wrecks: list[tuple[str, int, int, int]], fate: str | None
) -> None:
    """Cuts at any place, flipped bytes, members swapped, doubled or written over others, wrong sizes, garbage; a
    directory in place of the shard, or nothing."""
    intact, file = payloads(pristine), tmp_path / "q.jsonl"
    shard = which % (len(pristine.shards) - 2)  # of the training split
    path, places = Path(pristine.directory) / pristine.shards[shard].name, members_of(pristine, shard)
    original = path.read_bytes()
    changed = bytearray(original)
    for kind, one, other, at in wrecks:
        wreck(changed, kind, places[one % len(places)], places[other % len(places)], at)
    file.unlink(missing_ok=True)
    try:
        path.write_bytes(changed)
        if fate:
            FATES[fate](path)
        damaged = prove(open_manifest(pristine.directory), intact, file, ("train",))
        if fate:
            assert damaged == set(np.flatnonzero(pristine.shard == shard).tolist())
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(original)
