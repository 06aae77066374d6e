"""Shards are plain WebDataset tars, whole or not there; the manifest says what they hold, and notices any change."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from infra.errors import UserError
from modalities import Label
from pipeline import shards
from pipeline.corpora import prepare
from pipeline.manifest import BLOCK, MEMBER, NAME, Described, Manifest, Shard, check_shards, open_manifest
from pipeline.manifest import write as write_manifest
from pipeline.shards import Corrupt, Reader, Sample, quarantine, verify, write
from tests.pipeline.tiny import MODALITIES, NAMES, held, make, samples, value

LABEL = {"label": Label(classes=10)}


def one(key: str, split: str = "train", label: int = 3) -> Sample:
    return Sample(key, split, {"label": np.asarray(label)})


def everything(manifest: Manifest) -> dict[str, dict[str, bytes]]:
    """{key: {member: bytes}} by way of the manifest."""
    reader, extension = Reader(manifest), {n: d.extension for n, d in manifest.modalities.items()}
    names, result = list(manifest.modalities), {}
    for row in range(len(manifest)):
        mine = range(int(manifest.first[row]), int(manifest.first[row + 1]))
        found: dict[str, list[bytes]] = {}
        for member in mine:
            found.setdefault(names[int(manifest.modality[member])], []).append(reader.read(member))
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
    found = manifest.members(rows, columns, np.zeros(len(rows), np.uint64))
    for row, members in zip(rows, found, strict=True):
        for name, member in zip(["label", "image"], members, strict=True):
            assert (member >= 0) == (name in held(row))
            if member >= 0:
                assert manifest.first[row] <= member < manifest.first[row + 1]
                assert NAMES[manifest.modality[member]] == name


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 5)
    manifest = make(tmp_path / "d", 60, shard_bytes=1)
    before = len(os.listdir("/proc/self/fd"))
    reader = Reader(manifest)
    for member in range(len(manifest.size)):
        reader.read(member)
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    del reader
    assert len(manifest.shards) > 50


def test_threads_that_push_each_other_s_files_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    manifest = make(tmp_path / "d", 60, shard_bytes=1)
    reader, members = Reader(manifest), list(range(len(manifest.size)))
    alone = [reader.read(member) for member in members]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(reader.read, members * 20)) == alone * 20
    finally:
        sys.setswitchinterval(interval)


# Writing


def test_an_error_among_the_samples_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield from samples(10)
        raise RuntimeError("raw file is broken")

    with pytest.raises(RuntimeError, match="raw file is broken"):
        write(tmp_path / "d", "tiny", MODALITIES, broken(), 1)
    assert os.listdir(tmp_path) == []
    (tmp_path / "d").mkdir()
    with pytest.raises(RuntimeError):
        write(tmp_path / "d", "tiny", MODALITIES, broken(), 1)
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == []


def test_a_raw_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        (tmp_path / "raw.csv").read_text()
        yield from samples(1)

    with pytest.raises(UserError, match=r"raw\.csv: No such file"):
        write(tmp_path / "d", "tiny", MODALITIES, broken())
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_in_use_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("d", "d.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "d", "tiny", MODALITIES, samples(3))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="exists"):
        write(tmp_path / "file", "tiny", MODALITIES, samples(3))
    with pytest.raises(UserError, match="file: File exists"):
        write(tmp_path / "file" / "below", "tiny", MODALITIES, samples(3))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "d.partial/mine", "d/mine", "file",
    ]  # fmt: skip


def test_empty_directories_links_and_dots_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    write(tmp_path / "link", "tiny", MODALITIES, samples(3))
    assert len(open_manifest(tmp_path / "empty")) == 3
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="working directory"):
        write(Path(), "tiny", MODALITIES, samples(3))
    write(Path("../above/./x"), "tiny", MODALITIES, samples(3))
    assert len(open_manifest(tmp_path / "above" / "x")) == 3


def test_what_a_killed_prepare_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.partial").mkdir()
    (tmp_path / "d.partial" / "train-000000.tar").write_bytes(b"half")
    make(tmp_path / "d", 5)
    assert os.listdir(tmp_path) == ["d"]


BAD_KEYS = ["", "a b", "a.b", "ä", "/a", "a/", "a//b", "../a", "a\n", "__a__/b", "__x", "k" * 91]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_webdataset_would_not_give_back_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as said:
        write(tmp_path / "d", "bad", LABEL, [one("good"), one(key)])
    assert repr(key) in str(said.value) or key in str(said.value)
    assert os.listdir(tmp_path) == []


def test_long_and_deep_keys_are_read_back(tmp_path: Path) -> None:
    keys = ["a", "a/b", "A", "a-b_c/D/0", "k" * 90, "/".join(["folders"] * 11), "x/__y__/z", "x__"]
    write(tmp_path / "d", "deep", LABEL, [one(key) for key in keys])
    manifest = open_manifest(tmp_path / "d")
    assert verify(manifest, range(len(keys))) == []
    url = str(tmp_path / "d" / "train-000000.tar")
    assert [sample["__key__"] for sample in webdataset.WebDataset(url, shardshuffle=False)] == keys


BAD_SAMPLES: dict[str, tuple[list[Sample], list[str]]] = {
    "twice": ([one("a"), one("b"), one("a")], ["two samples", "'a'"]),
    "twice, in two splits": ([one("a"), one("a", "val")], ["two samples", "'a'"]),
    "value": ([one("a", label=10)], ["a, modality label", "10"]),
    "one of several": ([Sample("a", "train", {"label": [np.asarray(1), np.asarray(-1)]})], ["a, modality label"]),
    "split": ([one("a", "holdout")], ["a is in split 'holdout'", "train"]),
    "modality": ([Sample("a", "train", {"colour": np.asarray(1)})], ["a has 'colour'", "label"]),
    "none": ([], ["no samples"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_samples_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    rows, words = BAD_SAMPLES[case]
    with pytest.raises(UserError) as said:
        write(tmp_path / "d", "bad", LABEL, rows)
    assert all(word in str(said.value) for word in words)
    assert os.listdir(tmp_path) == []


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    sample = Sample("a", "train", {"image": np.zeros((3, 3))})
    with pytest.raises(UserError, match=r"a, modality image: .*\(3, 3\)"):
        write(tmp_path / "d", "bad", MODALITIES, [sample])


@pytest.mark.parametrize("name", ["_hidden", "Top", "a.b", "a/b", "", "ä"])
def test_modality_names_that_webdataset_would_change_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="modality"):
        write(tmp_path / "d", "bad", {name: Label(classes=10)}, [Sample("a", "train", {name: np.asarray(1)})])


def test_64_modalities_and_no_more(tmp_path: Path) -> None:
    def corpus(count: int) -> tuple[dict[str, Label], list[Sample]]:
        names = [f"m{i}" for i in range(count)]
        return {n: Label(classes=2) for n in names}, [Sample("a", "train", {names[-1]: np.asarray(1)})]

    write(tmp_path / "d", "many", *corpus(64))
    assert open_manifest(tmp_path / "d").patterns(range(1)).tolist() == [2**63]
    with pytest.raises(UserError, match="at most 64"):
        write(tmp_path / "e", "many", *corpus(65))


def test_prepare_keeps_what_is_whole_and_refuses_what_is_not(digits_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "digits"
    shutil.copytree(digits_dir, data)
    before = {p.name: p.stat().st_mtime_ns for p in data.iterdir()}
    assert prepare("digits", data) == open_manifest(digits_dir).fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in data.iterdir()} == before
    (data / "val-000000.tar").unlink()
    with pytest.raises(UserError, match="not empty"):
        prepare("digits", data)
    with pytest.raises(UserError, match="digits"):
        prepare("digit", tmp_path / "other")


# Reading and damage of the manifest


def test_directories_without_a_manifest(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "holds no manifest"), (tmp_path / "nowhere", "is no directory")):
        with pytest.raises(UserError, match=words):
            open_manifest(path)


@pytest.mark.parametrize("cut", [0, 1, 8, 100, 1400, 5000, -1, -8, -300, -2000])
def test_a_half_written_manifest(digits_dir: Path, tmp_path: Path, cut: int) -> None:
    whole = (digits_dir / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:cut] if cut else b"")
    with pytest.raises(UserError, match="not a readable manifest"):
        open_manifest(tmp_path)


@pytest.mark.parametrize("garbage", [b"x" * 5000, b"\0" * 5000, b"ARROW1\0\0" + b"y" * 999 + b"ARROW1"])
def test_garbage_is_no_manifest(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / NAME).write_bytes(garbage)
    with pytest.raises(UserError, match="not a readable manifest"):
        open_manifest(tmp_path)


def other_table(path: Path, meta: Callable[[dict[str, object]], object]) -> None:
    """Rewrite a manifest with other metadata."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    changed = json.loads(table.schema.metadata[b"pairstream"])
    result = meta(changed)
    schema = table.schema.with_metadata({b"pairstream": json.dumps(changed if result is None else result).encode()})
    data = pa.table(table.columns, schema=schema).to_batches()
    with pa.OSFile(str(path) + ".new", "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in data:
            writer.write_batch(batch)
    os.replace(str(path) + ".new", path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.update(version=99), "version 99"),
        (lambda meta: meta.pop("shards"), "not a readable"),
        (lambda meta: [1], "not a readable"),
        (lambda meta: meta.update(splits=[1]), "not a readable"),
        (lambda meta: meta["splits"].update(train=[0, 1200]), "fingerprint differs"),
        (lambda meta: meta["shards"].reverse(), "fingerprint differs"),
        (lambda meta: meta.update(modalities=dict(reversed(meta["modalities"].items()))), "fingerprint differs"),
    ],
)
def test_other_metadata_is_noticed(
    digits_dir: Path, tmp_path: Path, change: Callable[[dict[str, object]], object], words: str
) -> None:
    shutil.copy(digits_dir / NAME, tmp_path)
    other_table(tmp_path / NAME, lambda meta: None)
    open_manifest(tmp_path)
    other_table(tmp_path / NAME, change)
    with pytest.raises(UserError, match=words):
        open_manifest(tmp_path)


def test_the_same_bytes_under_other_types_are_noticed(tmp_path: Path) -> None:
    """What the fingerprint does not see: signed for unsigned numbers, keys that are declared null."""
    make(tmp_path, 20)
    path = tmp_path / NAME
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    keys, members = (table.column(name).chunk(0) for name in ("key", "members"))

    def rewrite(keys: pa.Array, members: pa.Array, names: tuple[str, str] = ("key", "members")) -> None:
        fields = [pa.field(name, column.type) for name, column in zip(names, (keys, members), strict=True)]
        schema = pa.schema(fields, table.schema.metadata)
        with pa.OSFile(str(path) + ".new", "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.record_batch([keys, members], schema=schema))
        os.replace(str(path) + ".new", path)

    rewrite(keys, members)
    open_manifest(tmp_path)
    signed = [
        members.values.field(n).view(pa.int64() if n == "checksum" else MEMBER.field(n).type) for n in MEMBER.names
    ]
    rewrite(keys, pa.ListArray.from_arrays(members.offsets, pa.StructArray.from_arrays(signed, MEMBER.names)))
    with pytest.raises(UserError, match="its columns are not a manifest's"):
        open_manifest(tmp_path)
    rewrite(keys, members, ("name", "members"))
    with pytest.raises(UserError, match="its columns are not a manifest's"):
        open_manifest(tmp_path)
    bits = pa.py_buffer(b"\xfe" + b"\xff" * 7)  # the first key is null
    rewrite(pa.Array.from_buffers(pa.string(), len(keys), [bits, *keys.buffers()[1:]]), members)
    with pytest.raises(UserError, match="without a key"):
        open_manifest(tmp_path)


@pytest.mark.parametrize("column", ["key", "first", *MEMBER.names])
def test_one_changed_number_changes_the_fingerprint(tmp_path: Path, column: str) -> None:
    def build(name: str) -> Manifest:
        rng = np.random.default_rng(0)
        members = np.zeros(9, [(f.name, f.type.to_pandas_dtype()) for f in MEMBER])
        for field in ("block", "size", "checksum"):
            members[field] = rng.integers(0, 2**20, 9)
        keys, first = ["a", "b", "c"], np.array([0, 3, 6, 9])
        if name == "key":
            keys[1] = "d"
        elif name == "first":
            first[1] = 4
        elif name:
            members[name][4] += 1
        (tmp_path / f"x{name}").mkdir()
        modalities = {"m": Described("cls", ()), "n": Described("cls", ())}
        shard = [Shard("s.tar", 1), Shard("t.tar", 1)]
        write_manifest(tmp_path / f"x{name}", "c", modalities, shard, {"train": range(3)}, keys, first, members)
        return open_manifest(tmp_path / f"x{name}")

    original, other = build(""), build(column)
    assert original.fingerprint != other.fingerprint
    assert original.calculated_fingerprint() == original.fingerprint


def test_no_flipped_bit_of_a_manifest_goes_unseen(digits_dir: Path, tmp_path: Path) -> None:
    """Whatever bit flips, the manifest is refused or its content is untouched; Arrow never takes the process down."""
    original, raw = open_manifest(digits_dir), (digits_dir / NAME).read_bytes()

    def content(manifest: Manifest) -> list[object]:
        columns = [getattr(manifest, name).tobytes() for name in ("first", *MEMBER.names)]
        kinds = [getattr(manifest, name).dtype for name in ("first", *MEMBER.names)]
        layout = [list(manifest.modalities.items()), list(manifest.splits.items()), manifest.shards, manifest.corpus]
        return [columns, kinds, layout, manifest.keys(range(len(manifest)))]

    truth, rng, refused = content(original), np.random.default_rng(1), 0
    head, tail, anywhere = (
        rng.integers(0, 1500, 200),
        len(raw) - rng.integers(1, 2500, 200),
        rng.integers(0, len(raw), 150),
    )
    flips = [(int(at), 1 << int(rng.integers(8))) for at in np.concatenate([head, tail, anywhere])]
    flips += [(at, 128) for at in range(1100, 1500)]  # lengths that become negative
    for position, bit in flips:
        data = bytearray(raw)
        data[position] ^= bit
        (tmp_path / NAME).write_bytes(data)
        try:
            manifest = open_manifest(tmp_path)
        except UserError:
            refused += 1
        else:
            assert content(manifest) == truth
    assert refused > 250


# Damage of shards


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_verify_finds_exactly_the_damaged_members(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 30, shard_bytes=9000)
    rows = range(len(manifest))
    assert verify(manifest, rows) == []
    row_of = np.repeat(np.arange(len(manifest)), np.diff(manifest.first))
    hurt = {}
    for member, where in ((0, "payload"), (11, "name"), (20, "payload"), (33, "checksum of header"), (40, "payload")):
        start = int(manifest.block[member]) * BLOCK
        at = {"payload": start + int(manifest.size[member]) - 1, "name": start - BLOCK + 3}.get(
            where, start - BLOCK + 150
        )
        flip(tmp_path / "d" / manifest.shards[int(manifest.shard[member])].name, at)
        reason = "checksum differs" if where == "payload" else "tar header damaged"
        hurt[(manifest.key(row_of[member]), NAMES[manifest.modality[member]], start)] = reason
    found = {(d["key"], d["modality"], d["offset"]): str(d["reason"]) for d in verify(manifest, rows)}
    assert set(found) == set(hurt)
    assert all(found[where].startswith(reason) for where, reason in hurt.items())
    labels = [where for where in hurt if where[1] == "label"]
    assert len(verify(manifest, rows, ["label"])) == len(labels)
    assert verify(manifest, range(row_of[11] + 1, row_of[20])) == []


def test_verify_finds_headers_that_name_another_member(tmp_path: Path) -> None:
    """Two headers exchanged: every checksum holds by offset, but plain WebDataset would mix up the samples."""
    write(tmp_path / "d", "two", LABEL, [one("a", label=1), one("b", label=2)])
    path = tmp_path / "d" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[:512], data[1024:1536] = data[1024:1536], data[:512]
    path.write_bytes(data)
    found = verify(open_manifest(tmp_path / "d"), range(2))
    assert [str(d["reason"]) for d in found] == [
        "tar header names b.label.cls with 1 bytes", "tar header names a.label.cls with 1 bytes",
    ]  # fmt: skip


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


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
    reader = Reader(manifest)
    for member in range(len(manifest.size)):
        if manifest.shard[member] == victim:
            with pytest.raises(Corrupt):
                reader.read(member)
        else:
            reader.read(member)
    assert {d["shard"] for d in verify(manifest, range(len(manifest)))} == {name}
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
    write(tmp_path / "d", "cut", LABEL, [one(f"{number}") for number in range(40)])
    manifest = open_manifest(tmp_path / "d")
    reader = Reader(manifest)
    last = len(manifest.size) - 1
    assert bytes(reader.read(last)) == b"3"
    os.truncate(tmp_path / "d" / "train-000000.tar", 100)
    with pytest.raises(Corrupt, match="shard ends at byte"):
        reader.read(last)


def test_errors_of_the_machine_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path / "d", 10)

    def too_many(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        Reader(manifest).read(0)
    monkeypatch.undo()

    def no_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(os, "pread", no_memory)
    with pytest.raises(MemoryError):
        Reader(manifest).read(0)


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
    reader, rows = Reader(manifest), np.repeat(np.arange(len(manifest)), np.diff(manifest.first))
    assert len(where) == len(manifest.size)
    for member, row in enumerate(rows):
        entry = reader.locate(int(row), member)
        extension = manifest.modalities[str(entry["modality"])].extension
        name, size = where[(str(entry["shard"]), int(entry["offset"]))]
        assert name == f"{entry['key']}.{entry['modality']}.{extension}"
        assert size == manifest.size[member]
