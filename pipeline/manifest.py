"""Which samples the shards hold: declared modalities, where their bytes lie, and checksums.

One memory-mapped Arrow IPC file, `manifest.arrow`. Beyond the key, a sample costs 4 bytes and a member 22: a tar
member's bytes start at a multiple of 512, so a 32-bit block number reaches 2 TiB into a shard.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from infra.errors import UserError
from infra.storage import is_remote, open_directory
from modalities import Modality
from pipeline.order import mix

NAME = "manifest.arrow"
VERSION = 1
BLOCK = 512
PIECE = 2**22
"""Bytes of the file that are hashed at a time."""
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

    def __init__(self, table: pa.Table, mapped: pa.Buffer, file: Path, directory: str) -> None:
        if not table.schema.equals(SCHEMA):
            raise ValueError("its columns are not a manifest's")
        meta = json.loads(table.schema.metadata[b"pairstream"])
        self.directory = directory
        """Where the shards lie: a path or a URL."""
        self._mapped, self._file = mapped, file
        self.corpus: str = meta["corpus"]
        self.fingerprint: str = meta["fingerprint"]
        self.splits: dict[str, range] = {name: range(*bounds) for name, bounds in meta["splits"].items()}
        self.modalities: dict[str, Described] = {
            name: Described(entry["extension"], None if entry["shape"] is None else tuple(entry["shape"]))
            for name, entry in meta["modalities"].items()
        }
        self.shards: list[Shard] = [Shard(**entry) for entry in meta["shards"]]
        self.files: dict[str, str] = meta.get("files", {})
        """Checksums (xxh3, 128 bits) of the small files beside the shards, by name."""
        self.member_of: dict[str, str] = {}
        """Which member holds a modality whose name is another's: several of a run may lie in one (`reading`)."""
        self._meta: dict[str, Any] = meta
        self._keys: pa.Array = table.column("key").chunk(0)
        members: pa.ListArray = table.column("members").chunk(0)
        if self._keys.null_count or members.null_count:
            raise ValueError("a sample without a key or members")
        _, bounds, text = self._keys.buffers()
        self._key_bounds, self._key_text = np.frombuffer(bounds, np.int32), memoryview(text or b"")
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

    def keys(self, rows: range | np.ndarray) -> list[str]:
        """The keys of these samples."""
        if isinstance(rows, range):
            return list(self._keys.slice(rows.start, len(rows)).to_pylist())
        bounds, text = self._key_bounds, self._key_text
        return [str(text[a:b], "utf-8") for a, b in zip(bounds[rows].tolist(), bounds[rows + 1].tolist(), strict=True)]

    def rows(self, split: str, keys: Collection[str]) -> dict[str, int]:
        """The samples of a split that have these keys, those that there are. All keys of the split are looked at: there
        is no index."""
        there, wanted = self.split(split), pa.array(list(keys), pa.string())
        found = pc.index_in(self._keys.slice(there.start, len(there)), value_set=wanted)
        return {
            wanted[found[row].as_py()].as_py(): there[row] for row in pc.indices_nonzero(found.is_valid()).to_pylist()
        }

    def damaged_files(self) -> dict[str, str]:
        """Small files beside the shards that are missing, or others than were written, with the reason."""
        damaged = {}
        for name in self.files:
            try:
                self.file(name)
            except UserError as error:
                damaged[name] = str(error)
        return damaged

    def split(self, name: str) -> range:
        """The samples of one split. Raises UserError where the data has no such split."""
        if name not in self.splits:
            raise UserError(f"{self.directory}: no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def column(self, names: Sequence[str], partly: bool = False) -> list[int]:
        """The manifest's number of each named modality. Raises UserError for one that the shards do not hold; with
        `partly` its number is -1."""
        known = list(self.modalities)
        members = [self.member_of.get(name, name) for name in names]
        for name in members:
            if name not in known and not partly:
                raise UserError(f"{self.directory}: the shards hold no modality {name!r}, only {', '.join(known)}")
        return [known.index(name) if name in known else -1 for name in members]

    def reading(self, modalities: Mapping[str, Modality]) -> Manifest:
        """This manifest, which from now on knows in which members these modalities lie."""
        self.member_of = {name: modality.member(name) for name, modality in modalities.items()}
        return self

    def file(self, name: str) -> bytes:
        """A small file beside the shards. Raises UserError where it is missing or another than was written."""
        try:
            data = open_directory(self.directory).whole(name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.directory}/{name} cannot be read ({error.strerror}); run `pairstream prepare` again"
            ) from None
        if xxhash.xxh3_128_hexdigest(data) != self.files.get(name):
            raise UserError(
                f"{self.directory}/{name} is not what was written with these shards; run `pairstream prepare` again"
            )
        return data

    def patterns(self, rows: range) -> np.ndarray:
        """One unsigned integer per sample; bit m says that modality m is declared present (at most 64)."""
        first = self.first[rows.start : rows.stop + 1].astype(np.int64)
        window = np.uint64(1) << self.modality[first[0] : first[-1]].astype(np.uint64)
        result = np.zeros(len(rows), np.uint64)
        filled = first[:-1] < first[1:]
        if filled.any():
            result[filled] = np.bitwise_or.reduceat(window, (first[:-1] - first[0])[filled])
        return result

    def members(self, rows: np.ndarray, columns: Sequence[int], choice: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """(len(rows), len(columns)): the member to read of each sample and modality, -1 where there is none.

        A modality's n instances take turns, beginning with one that the hash `choice` (uint64, one per row) picks: all
        appear in turns 0 … n - 1, and again in the next n. A column of -1 is a modality that these shards do not hold.
        """
        first, last = self.first[rows].astype(np.int64), self.first[rows + 1].astype(np.int64)
        counts = last - first
        owner = np.repeat(np.arange(len(rows)), counts)
        member = np.arange(len(owner)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        kind = self.modality[member]
        result = np.full((len(rows), len(columns)), -1, np.int64)
        if not len(member):
            return result
        begins = np.ones(len(member), bool)  # of a modality's instances within a sample: they lie side by side
        begins[1:] = (owner[1:] != owner[:-1]) | (kind[1:] != kind[:-1])
        start = np.flatnonzero(begins)
        instances = np.diff(start, append=len(member))
        owner, kind = owner[start], kind[start]
        if (instances > 1).any():
            instances = instances.astype(np.uint64)
            cycle, turn_in_cycle = np.divmod(turn[owner].astype(np.uint64), instances)
            pick = (mix(mix(choice[owner] + kind) ^ cycle) % instances + turn_in_cycle) % instances
            start = start + pick.astype(np.int64)
        for position, column in enumerate(columns):
            mine = kind == column
            result[owner[mine], position] = member[start[mine]]
        return result

    @cached_property
    def damaged_shards(self) -> dict[str, str]:
        """Shards whose file is missing or has another size than declared, with the reason.

        Of remote data none: asking for each of thousands of files would take minutes, and reading finds out.
        """
        damaged = {}
        for shard in self.shards if not is_remote(self.directory) else ():
            path = Path(self.directory) / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                damaged[shard.name] = (
                    "no such file" if size is None else f"{size:,} bytes, the manifest says {shard.bytes:,}"
                )
        return damaged

    def calculated_fingerprint(self) -> str:
        """The fingerprint of the table as it is now; differs from `fingerprint` when the manifest was changed."""
        columns = [pa.py_buffer(getattr(self, name)) for name in ("first", *MEMBER.names)]
        return fingerprint_of(self._meta, self._read([*self._keys.buffers()[1:], *columns]))

    def _read(self, buffers: list[pa.Buffer]) -> Iterator[memoryview]:
        """The bytes of parts of the mapped file, by plain reads: what is mapped would stay resident once touched."""
        piece = memoryview(bytearray(PIECE))
        with self._file.open("rb", buffering=0) as file:
            for buffer in buffers:
                left = buffer.size
                if left:  # an empty one lies nowhere
                    file.seek(buffer.address - self._mapped.address)
                while left:
                    got = file.readinto(piece[: min(left, PIECE)])
                    if not got:
                        return
                    left -= got
                    yield piece[:got]


def fingerprint_of(meta: dict[str, Any], columns: Iterable[Any]) -> str:
    """By which data are known: a digest of what a manifest says of them, the keys and the members' columns."""
    digest = xxhash.xxh3_128()
    named = {name: value for name, value in meta.items() if name != "fingerprint"}
    digest.update(json.dumps(named).encode())  # in its own order, which numbers the modalities
    for data in columns:
        digest.update(data)
    return digest.hexdigest()


DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, pa.ArrowSerializationError)
"""What Arrow and the parts of a table raise where a file is no manifest."""


def open_manifest(directory: str | Path) -> Manifest:
    """Open the manifest of a data directory (a path or a URL). Raises UserError where there is none, or not what was
    written.

    Its fingerprint is calculated anew (0.1 s for 10 million members): a manifest with a damaged byte would take members
    away from samples, which must never pass for missing modalities.
    """
    path = _whole(directory)
    try:
        mapped = pa.memory_map(str(path)).read_buffer()
        table = pa.ipc.open_file(mapped).read_all()
        table.validate()  # Arrow aborts the process on lengths that make no sense
        meta = json.loads(table.schema.metadata[b"pairstream"])
        if meta["version"] != VERSION:
            raise UserError(f"{path}: manifest version {meta['version']}, this pairstream reads {VERSION}")
        manifest = Manifest(table, mapped, path, str(directory))
        changed = manifest.calculated_fingerprint() != manifest.fingerprint
    except DAMAGE as error:
        raise UserError(f"{path}: not a readable manifest ({error}); run `pairstream prepare` again") from None
    if changed:
        raise UserError(
            f"{path}: changed since it was written, its fingerprint differs; run `pairstream prepare` again"
        )
    return manifest


class NoData(UserError):
    """There is no manifest, where others may be damaged, or out of reach."""


def _whole(directory: str | Path) -> Path:
    """The manifest's file here, or a copy of a remote one. Raises UserError where there is none."""
    if is_remote(directory):
        try:
            return open_directory(directory).whole(NAME)
        except FileNotFoundError:
            raise NoData(f"{directory} holds no {NAME}: is the address right, was the data copied whole?") from None
    path = Path(directory) / NAME
    if not path.is_file():
        there = Path(directory).is_dir()
        state = "holds no manifest (empty, or preparing it was cut off)" if there else "is no directory"
        raise NoData(f"{directory} {state}: run `pairstream prepare CORPUS --out {directory}`")
    return path


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
