"""What a shard is; its members read by offset, verified.

A shard is a plain tar with members KEY.MODALITY.EXT (KEY.MODALITY.N.EXT where a modality has several instances):
`wds.WebDataset(urls)` reads it with the same keys and members. `pipeline.writing` writes them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from pipeline.manifest import BLOCK, MEMBER, Manifest

SPLITS = ("train", "val", "test")
KEY = re.compile(r"(?!__)[A-Za-z0-9_\-]+(/[A-Za-z0-9_\-]+)*")  # webdataset skips what is below a folder __x__
NAME = re.compile(r"[a-z0-9][a-z0-9_\-]*")  # webdataset lowers capitals and drops members that begin with _
MODALITIES = 64
"""How many modalities a data set may have: a pattern of presence is one 64-bit integer."""
NAME_BYTES = 100
"""Room for KEY.MODALITY.EXT in a tar header; longer names need extra blocks, which `verify` would not see."""
INDEXED = "indexed"
"""Corpus of a manifest over tars that somebody else made."""
OPEN_SHARDS = 256
"""Shards that a reader keeps open; processes may hold 1,024 files by default."""
ROW = np.dtype([(f.name, f.type.to_pandas_dtype()) for f in MEMBER])
"""One member's row of the manifest."""
UNREADABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors that a damaged or missing shard gives; any other (too many open files, ...) is no matter of the data."""


class Corrupt(Exception):
    """A member whose bytes do not match their declaration; never to be taken for a missing modality."""


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
    key, stem = f"{table.key(row)}.", info.name.removeprefix("./")
    if table.corpus == INDEXED:  # somebody else's names, of which this block may hold the beginning only
        named = stem.startswith(key) or key.startswith(stem)
    else:
        named = stem.startswith(f"{key}{name}.")
    if not named or info.size != int(table.size[member]):
        raise Corrupt(f"tar header names {info.name} with {info.size} bytes")


def quarantine(path: Path, entries: list[dict[str, str | int]]) -> None:
    """Append damaged members to a JSON-lines file."""
    with path.open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
