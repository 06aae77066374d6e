"""Which samples the shards hold: declared modalities, where their bytes lie, and checksums.

One memory-mapped Arrow IPC file, `manifest.arrow`. Beyond the key, a sample costs 4 bytes and a member 22: a tar
member's bytes start at a multiple of 512, so a 32-bit block number reaches 2 TiB into a shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from infra.errors import UserError
from pipeline.order import mix

NAME = "manifest.arrow"
VERSION = 1
BLOCK = 512
MEMBER = pa.struct(
    [
        ("modality", pa.uint16()),
        ("shard", pa.uint32()),
        ("block", pa.uint32()),
        ("size", pa.uint32()),
        ("checksum", pa.uint64()),
    ]
)
SCHEMA = pa.schema([("key", pa.string()), ("members", pa.list_(MEMBER))])


@dataclass(frozen=True)
class Described:
    """What the shards hold of one modality; a run's modality of that name must agree."""

    extension: str
    shape: tuple[int, ...] | None
    """None where nobody knows: the run's modality decides."""


@dataclass(frozen=True)
class Shard:
    """One tar file beside the manifest; `bytes` is its size."""

    name: str
    bytes: int


class Manifest:
    """A data directory's table of samples. Rows of a split are contiguous and lie in storage order.

    `first` (N+1) holds where a sample's members begin; the member columns are `modality`, `shard`, `block`, `size`
    (bytes) and `checksum` (xxh3, 64 bits), sorted by modality within a sample. All are views of the mapped file.
    """

    def __init__(self, table: pa.Table, directory: Path) -> None:
        if not table.schema.equals(SCHEMA):
            raise ValueError("its columns are not a manifest's")
        meta = json.loads(table.schema.metadata[b"pairstream"])
        self.directory = directory
        self.corpus: str = meta["corpus"]
        self.fingerprint: str = meta["fingerprint"]
        self.splits: dict[str, range] = {name: range(*bounds) for name, bounds in meta["splits"].items()}
        self.modalities: dict[str, Described] = {
            name: Described(entry["extension"], None if entry["shape"] is None else tuple(entry["shape"]))
            for name, entry in meta["modalities"].items()
        }
        self.shards: list[Shard] = [Shard(**entry) for entry in meta["shards"]]
        self._meta: dict[str, Any] = meta
        self._keys: pa.Array = table.column("key").chunk(0)
        members: pa.ListArray = table.column("members").chunk(0)
        if self._keys.null_count or members.null_count:
            raise ValueError("a sample without a key or members")
        self.first: np.ndarray = members.offsets.to_numpy()
        for name in ("modality", "shard", "block", "size", "checksum"):
            setattr(self, name, members.values.field(name).to_numpy())

    modality: np.ndarray
    shard: np.ndarray
    block: np.ndarray
    size: np.ndarray
    checksum: np.ndarray

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        """The key of one sample."""
        return str(self._keys[int(row)].as_py())

    def keys(self, rows: range) -> list[str]:
        """The keys of a contiguous range of samples."""
        return list(self._keys.slice(rows.start, len(rows)).to_pylist())

    def split(self, name: str) -> range:
        """The samples of one split. Raises UserError where the data has no such split."""
        if name not in self.splits:
            raise UserError(f"{self.directory}: no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def column(self, names: Sequence[str]) -> list[int]:
        """The manifest's number of each named modality. Raises UserError for one that the shards do not hold."""
        known = list(self.modalities)
        for name in names:
            if name not in known:
                raise UserError(f"{self.directory}: the shards hold no modality {name!r}, only {', '.join(known)}")
        return [known.index(name) for name in names]

    def patterns(self, rows: range) -> np.ndarray:
        """One unsigned integer per sample; bit m says that modality m is declared present (at most 64)."""
        first = self.first[rows.start : rows.stop + 1].astype(np.int64)
        window = np.uint64(1) << self.modality[first[0] : first[-1]].astype(np.uint64)
        result = np.zeros(len(rows), np.uint64)
        filled = first[:-1] < first[1:]
        if filled.any():
            result[filled] = np.bitwise_or.reduceat(window, (first[:-1] - first[0])[filled])
        return result

    def members(self, rows: np.ndarray, columns: Sequence[int], choice: np.ndarray) -> np.ndarray:
        """(len(rows), len(columns)): the member to read of each sample and modality, -1 where there is none.

        Where a modality has several instances, the hash `choice` (uint64, one per row) picks one of them.
        """
        first, last = self.first[rows].astype(np.int64), self.first[rows + 1].astype(np.int64)
        counts = last - first
        owner = np.repeat(np.arange(len(rows)), counts)
        member = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[owner]
        kind = self.modality[member]
        result = np.full((len(rows), len(columns)), -1, np.int64)
        for position, column in enumerate(columns):
            own, which = owner[kind == column], member[kind == column]
            held, start, instances = np.unique(own, return_index=True, return_counts=True)
            pick = mix(choice[held] + np.uint64(column)) % instances.astype(np.uint64)
            result[held, position] = which[start + pick.astype(np.int64)]
        return result

    @cached_property
    def damaged_shards(self) -> dict[str, str]:
        """Shards whose file is missing or has another size than declared, with the reason."""
        damaged = {}
        for shard in self.shards:
            path = self.directory / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                damaged[shard.name] = (
                    "no such file" if size is None else f"{size:,} bytes, the manifest says {shard.bytes:,}"
                )
        return damaged

    def calculated_fingerprint(self) -> str:
        """The fingerprint of the table as it is now; differs from `fingerprint` when the manifest was changed."""
        return _fingerprint(self._meta, self._keys, self.first, [getattr(self, n) for n in MEMBER.names])


def _fingerprint(meta: dict[str, Any], keys: pa.Array, first: np.ndarray, members: list[np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    named = {name: value for name, value in meta.items() if name != "fingerprint"}
    digest.update(json.dumps(named).encode())  # in its own order, which numbers the modalities
    for buffer in keys.buffers()[1:]:
        digest.update(buffer)
    for array in (first, *members):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write(
    directory: Path,
    corpus: str,
    modalities: dict[str, Described],
    shards: list[Shard],
    splits: dict[str, range],
    keys: Sequence[str] | pa.StringArray,
    first: np.ndarray,
    members: np.ndarray | Mapping[str, np.ndarray],
) -> str:
    """Write the manifest by rename and return its fingerprint.

    `first` has len(keys)+1 entries; `members` holds MEMBER's columns, as a structured array or by name.
    """
    meta: dict[str, Any] = {
        "version": VERSION,
        "corpus": corpus,
        "modalities": {n: {"extension": d.extension, "shape": d.shape} for n, d in modalities.items()},
        "shards": [{"name": shard.name, "bytes": shard.bytes} for shard in shards],
        "splits": {name: [rows.start, rows.stop] for name, rows in splits.items()},
    }
    columns = [np.ascontiguousarray(members[name]) for name in MEMBER.names]
    key_array = keys if isinstance(keys, pa.Array) else pa.array(keys, pa.string())
    first = first.astype(np.int32)
    meta["fingerprint"] = _fingerprint(meta, key_array, first, columns)
    struct = pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(MEMBER))
    lists = pa.ListArray.from_arrays(pa.array(first), struct)
    schema = SCHEMA.with_metadata({b"pairstream": json.dumps(meta).encode()})
    partial = directory / (NAME + ".tmp")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([key_array, lists], schema=schema))
    os.replace(partial, directory / NAME)
    return str(meta["fingerprint"])


DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, pa.ArrowSerializationError)
"""What Arrow and the parts of a table raise where a file is no manifest."""


def open_manifest(directory: Path) -> Manifest:
    """Open a data directory's manifest. Raises UserError where there is none, or not what was written.

    Its fingerprint is calculated anew (0.1 s for 10 million members): a manifest with a damaged byte would take members
    away from samples, which must never pass for missing modalities.
    """
    path = directory / NAME
    if not path.is_file():
        state = (
            "is no directory" if not directory.is_dir() else "holds no manifest (empty, or preparing it was cut off)"
        )
        raise UserError(f"{directory} {state}: run `pairstream prepare CORPUS --out {directory}`")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()  # Arrow aborts the process on lengths that make no sense
        meta = json.loads(table.schema.metadata[b"pairstream"])
        if meta["version"] != VERSION:
            raise UserError(f"{path}: manifest version {meta['version']}, this pairstream reads {VERSION}")
        manifest = Manifest(table, directory)
    except DAMAGE as error:
        raise UserError(f"{path}: not a readable manifest ({error}); run `pairstream prepare` again") from None
    if manifest.calculated_fingerprint() != manifest.fingerprint:
        raise UserError(
            f"{path}: changed since it was written, its fingerprint differs; run `pairstream prepare` again"
        )
    return manifest


def check_shards(manifest: Manifest, budget: float) -> None:
    """Raise UserError where more than `budget` (a share) of the members lie in missing or resized shards."""
    damaged = manifest.damaged_shards
    if not damaged:
        return
    counts = np.bincount(manifest.shard, minlength=len(manifest.shards))
    hit = [shard.name in damaged for shard in manifest.shards]
    share = counts[hit].sum() / max(1, counts.sum())
    if share > budget:
        name, reason = next(iter(damaged.items()))
        raise UserError(
            f"{manifest.directory} does not match its manifest: {name}: {reason} "
            f"({len(damaged)} of {len(hit)} shards); run `pairstream inspect {manifest.directory} --verify`, "
            "then prepare it again"
        )
