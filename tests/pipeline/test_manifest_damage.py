"""A manifest that is not what was written is refused with a sentence: no byte of it may change unseen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import UserError
from pipeline.manifest import MEMBER, NAME, Described, Manifest, Shard, open_manifest
from pipeline.writing.manifest import write_manifest
from tests.pipeline.tiny import make


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
