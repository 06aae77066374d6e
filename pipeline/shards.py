"""Write WebDataset shards; read members by offset, verified.

A shard is a plain tar with members KEY.MODALITY.EXT (KEY.MODALITY.N.EXT where a modality has several instances),
written by webdataset's own writer: `wds.WebDataset(urls)` reads it with the same keys and members.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from infra.errors import UserError
from modalities import Modality
from pipeline import manifest as manifests
from pipeline.manifest import BLOCK, MEMBER, Described, Manifest, Shard

SPLITS = ("train", "val", "test")
KEY = re.compile(r"(?!__)[A-Za-z0-9_\-]+(/[A-Za-z0-9_\-]+)*")  # webdataset skips what is below a folder __x__
NAME = re.compile(r"[a-z0-9][a-z0-9_\-]*")  # webdataset lowers capitals and drops members that begin with _
MODALITIES = 64
"""How many modalities a data set may have: a pattern of presence is one 64-bit integer."""
NAME_BYTES = 100
"""Room for KEY.MODALITY.EXT in a tar header; longer names need extra blocks, which `verify` would not see."""
OPEN_SHARDS = 256
"""Shards that a reader keeps open; processes may hold 1,024 files by default."""
UNREADABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors that a damaged or missing shard gives; any other (too many open files, ...) is no matter of the data."""
ROW = np.dtype([(f.name, f.type.to_pandas_dtype()) for f in MEMBER])


@dataclass(frozen=True)
class Sample:
    """One sample of a corpus: values by modality; a modality that is not named is declared missing.

    A list holds several instances of one modality (10 captions of a picture).
    """

    key: str
    split: str
    values: Mapping[str, np.ndarray | list[np.ndarray]]


class Corrupt(Exception):
    """A member whose bytes do not match their declaration; never to be taken for a missing modality."""


@dataclass
class _Writer:
    """The open shard of one split, and the rows that it has taken so far."""

    directory: Path
    split: str
    number: int = 0
    keys: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    members: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    tar: object | None = None

    def add(self, key: str, members: dict[str, tuple[int, bytes]], shard_bytes: int) -> None:
        import webdataset

        if self.tar is None:
            path = self.directory / f"{self.split}-{self.number:06d}.tar"
            # A fixed time and owner: the same samples give the same bytes.
            self.tar = webdataset.TarWriter(str(path), encoder=False, mtime=0)
        stream = self.tar.tarstream  # type: ignore[attr-defined]
        for name in sorted(members):
            modality, data = members[name]
            block = stream.offset // BLOCK + 1
            self.tar.write({"__key__": key, name: data})  # type: ignore[attr-defined]
            self.members.append((modality, self.number, block, len(data), xxhash.xxh3_64_intdigest(data)))
        self.keys.append(key)
        self.counts.append(len(members))
        if stream.offset >= shard_bytes:
            self.close_shard()

    def close_shard(self) -> None:
        if self.tar is not None:
            self.tar.close()  # type: ignore[attr-defined]
            path = self.directory / f"{self.split}-{self.number:06d}.tar"
            self.shards.append(Shard(path.name, path.stat().st_size))
            self.number, self.tar = self.number + 1, None


def write(
    out: Path,
    corpus: str,
    modalities: Mapping[str, Modality],
    samples: Iterable[Sample],
    shard_bytes: int = 256 * 2**20,
) -> str:
    """Write samples as shards of about `shard_bytes` and their manifest into `out`; returns the fingerprint.

    Everything is written into a sibling directory and renamed at the end, so `out` is whole or not there. Raises
    UserError for a duplicate or unusable key, a value that does not fit its modality, or a place that cannot be
    written.
    """
    out = out.resolve()
    if out == Path.cwd():
        raise UserError(f"{out} is the working directory: choose a directory below it for --out")
    partial = out.with_name(out.name + ".partial")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out} exists and is not empty: choose another --out, or remove it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            fingerprint = _write_into(partial, corpus, modalities, samples, shard_bytes)
            os.replace(partial, out)  # an empty directory gives way, any other refuses
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot prepare {out}: {error.filename or 'writing'}: {error.strerror or error}") from None
    return fingerprint


def _write_into(
    directory: Path, corpus: str, modalities: Mapping[str, Modality], samples: Iterable[Sample], shard_bytes: int
) -> str:
    number = {name: index for index, name in enumerate(modalities)}
    if len(number) > MODALITIES:
        raise UserError(f"corpus {corpus}: {len(number)} modalities, a data set holds at most {MODALITIES}")
    for name in modalities:
        if not NAME.fullmatch(name):
            raise UserError(
                f"corpus {corpus}: modality {name!r}: use small letters, digits, '_' and '-' only, no '_' first"
            )
    writers = {split: _Writer(directory, split) for split in SPLITS}
    try:
        for key, split, members in _encoded(corpus, modalities, samples):
            writers[split].add(key, members, shard_bytes)
    finally:
        for writer in writers.values():
            writer.close_shard()
    return _finish(directory, corpus, modalities, [w for w in writers.values() if w.keys])


def _encoded(
    corpus: str, modalities: Mapping[str, Modality], samples: Iterable[Sample]
) -> Iterator[tuple[str, str, dict[str, tuple[int, bytes]]]]:
    """Key, split and members {name: (number of the modality, bytes)} of each sample, checked."""
    number = {name: index for index, name in enumerate(modalities)}
    seen: set[str] = set()
    for sample in samples:
        if not KEY.fullmatch(sample.key):
            raise UserError(
                f"corpus {corpus}: key {sample.key!r}: use letters, digits, '_' and '-', '/' between, no '__' first"
            )
        if sample.key in seen:
            raise UserError(f"corpus {corpus}: two samples have the key {sample.key!r}")
        if sample.split not in SPLITS:
            raise UserError(f"corpus {corpus}: {sample.key} is in split {sample.split!r}, not one of {SPLITS}")
        seen.add(sample.key)
        unknown = [name for name in sample.values if name not in number]
        if unknown:
            raise UserError(f"corpus {corpus}: {sample.key} has {unknown[0]!r}, no modality of {', '.join(number)}")
        members: dict[str, tuple[int, bytes]] = {}
        for name in sorted(sample.values, key=number.__getitem__):
            modality, value = modalities[name], sample.values[name]
            instances = value if isinstance(value, list) else [value]
            for instance, one in enumerate(instances):
                infix = f".{instance}" if isinstance(value, list) else ""
                try:
                    data = modality.encode(one)
                except ValueError as error:
                    raise UserError(f"corpus {corpus}: {sample.key}, modality {name}: {error}") from None
                member = f"{name}{infix}.{modality.extension}"
                if len(sample.key) + 1 + len(member) > NAME_BYTES:
                    raise UserError(
                        f"corpus {corpus}: {sample.key}.{member} is a longer name than tar's {NAME_BYTES} letters"
                    )
                members[member] = (number[name], data)
        yield sample.key, sample.split, members


def _finish(directory: Path, corpus: str, modalities: Mapping[str, Modality], writers: list[_Writer]) -> str:
    if not writers:
        raise UserError(f"corpus {corpus}: no samples, nothing written")
    shards: list[Shard] = []
    splits: dict[str, range] = {}
    rows: list[np.ndarray] = []
    keys: list[str] = []
    for writer in writers:
        splits[writer.split] = range(len(keys), len(keys) + len(writer.keys))
        table = np.array(writer.members, ROW)
        table["shard"] += len(shards)
        order = np.lexsort((table["modality"], np.repeat(np.arange(len(writer.keys)), writer.counts)))
        rows.append(table[order])  # webdataset wants members by name, the manifest has them by modality
        shards += writer.shards
        keys += writer.keys
    first = np.concatenate([[0], np.cumsum([count for writer in writers for count in writer.counts])])
    described = {name: Described(m.extension, m.shape) for name, m in modalities.items()}
    return manifests.write(directory, corpus, described, shards, splits, keys, first, np.concatenate(rows))


class _File:
    """An open shard; closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Reader:
    """Members of a data directory's shards, by number. Safe to share among threads.

    Plain reads, not a mapped file: a shard cut off under a mapping, or a disk that fails, would kill the process.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._file = lru_cache(OPEN_SHARDS)(self._open)

    def _open(self, number: int) -> _File:
        path = self.manifest.directory / self.manifest.shards[number].name
        if not path.is_file():  # a pipe would wait for ever
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return _File(path)

    def bytes_at(self, shard: int, start: int, size: int) -> bytes:
        """What a shard holds there; less where it ends. Raises Corrupt when it cannot be read."""
        try:
            file = self._file(shard)  # held while it is read: another thread may push it out of the cache
            return os.pread(file.descriptor, size, start)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise Corrupt(f"shard cannot be read: {error.strerror}") from None

    def read(self, member: int) -> bytes:
        """The bytes of one member. Raises Corrupt when they are not what the manifest declares."""
        table = self.manifest
        start, size = int(table.block[member]) * BLOCK, int(table.size[member])
        data = self.bytes_at(int(table.shard[member]), start, size)
        if len(data) != size:
            raise Corrupt(f"shard ends at byte {start + len(data):,}, the member needs {start + size:,}")
        if xxhash.xxh3_64_intdigest(data) != table.checksum[member]:
            raise Corrupt("checksum differs")
        return data

    def locate(self, row: int, member: int) -> dict[str, str | int]:
        """Where a member lies, in words: for the quarantine file and for error messages."""
        table = self.manifest
        return {
            "shard": table.shards[int(table.shard[member])].name,
            "key": table.key(row),
            "modality": list(table.modalities)[int(table.modality[member])],
            "offset": int(table.block[member]) * BLOCK,
        }


def verify(manifest: Manifest, rows: range, modalities: Sequence[str] | None = None) -> list[dict[str, str | int]]:
    """Every damaged member of these samples: where it lies and the reason; checks headers and checksums."""
    reader, damage = Reader(manifest), []
    columns = set(manifest.column(modalities or list(manifest.modalities)))
    for row in rows:
        for member in range(int(manifest.first[row]), int(manifest.first[row + 1])):
            if int(manifest.modality[member]) not in columns:
                continue
            try:
                reader.read(member)
                _check_header(reader, row, member)
            except Corrupt as error:
                damage.append(reader.locate(row, member) | {"reason": str(error)})
    return damage


def _check_header(reader: Reader, row: int, member: int) -> None:
    """The tar header in front of a member must name it: plain WebDataset readers go by the header."""
    table = reader.manifest
    start = (int(table.block[member]) - 1) * BLOCK
    header = reader.bytes_at(int(table.shard[member]), start, BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise Corrupt(f"tar header damaged: {error}") from None
    name = list(table.modalities)[int(table.modality[member])]
    if not info.name.startswith(f"{table.key(row)}.{name}.") or info.size != int(table.size[member]):
        raise Corrupt(f"tar header names {info.name} with {info.size} bytes")


def quarantine(path: Path, entries: list[dict[str, str | int]]) -> None:
    """Append damaged members to a JSON-lines file."""
    with path.open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
