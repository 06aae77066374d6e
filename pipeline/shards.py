"""What a shard is; its members read by offset, verified.

A shard is a plain tar with members KEY.MODALITY.EXT (KEY.MODALITY.N.EXT where a modality has several instances):
`wds.WebDataset(urls)` reads it with the same keys and members. `pipeline.writing` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from infra.storage import open_directory
from pipeline.manifest import BLOCK, MEMBER, Manifest

POOL = "pool"
"""Samples that are stored for others to refer to (`Entry.links`); no run reads them by themselves."""
SPLITS = ("train", "val", "test", POOL)
KEY = re.compile(r"(?!__)[A-Za-z0-9_\-]+(/[A-Za-z0-9_\-]+)*")  # webdataset skips what is below a folder __x__
NAME = re.compile(r"[a-z0-9][a-z0-9_\-]*")  # webdataset lowers capitals and drops members that begin with _
MODALITIES = 64
"""How many modalities a data set may have: a pattern of presence is one 64-bit integer."""
NAME_BYTES = 100
"""Room for KEY.MODALITY.EXT in a tar header; longer names need extra blocks, which `verify` would not see."""
INDEXED = "indexed"
"""Corpus of a manifest over tars that somebody else made."""
ROW = np.dtype([(f.name, str(f.type)) for f in MEMBER])
"""One member's row of the manifest."""
GAP = 4096
"""Bytes between two wanted members that are read along with them: cheaper than a second read."""
STRETCH = 2**20
"""Bytes after which a read of neighbouring members begins anew."""


class Corrupt(Exception):
    """A member whose bytes do not match their declaration; never to be taken for a missing modality."""


class Reader:
    """Members of one or several manifests' shards, verified. Safe to share among threads.

    Samples and members are numbered through the manifests, in their order: with one manifest, as in it. Plain reads,
    not a mapped file: a shard cut off under a mapping, or a disk that fails, would kill the process.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.manifests = list(manifests)
        self.first_sample = np.cumsum([0, *(len(manifest) for manifest in manifests)])
        self.first_member = np.cumsum([0, *(len(manifest.size) for manifest in manifests)])
        self._directories = [open_directory(manifest.directory) for manifest in manifests]

    @property
    def retries(self) -> int:
        """How often remote storage had to be asked again."""
        return sum(getattr(directory, "retries", 0) for directory in self._directories)

    def read(self, members: np.ndarray) -> list[bytes | Corrupt]:
        """The bytes of these members in this order; Corrupt instead where they are not what the manifest declares.

        Raises UserError where the storage does not answer.
        """
        if not len(members):
            return []
        if len(self.manifests) == 1:
            return self._read(0, members)
        result: list[bytes | Corrupt] = [b""] * len(members)
        source = np.searchsorted(self.first_member, members, side="right") - 1
        for number in np.unique(source).tolist():
            mine = np.flatnonzero(source == number)
            data = self._read(number, members[mine] - self.first_member[number])
            for index, one in zip(mine.tolist(), data, strict=True):
                result[index] = one
        return result

    def _read(self, source: int, members: np.ndarray) -> list[bytes | Corrupt]:
        table = self.manifests[source]
        where = np.lexsort((table.block[members], table.shard[members]))  # in storage order: neighbours in one read
        ordered = members[where]
        shard, size, sums = table.shard[ordered], table.size[ordered].astype(np.int64), table.checksum[ordered]
        start = table.block[ordered].astype(np.int64) * BLOCK
        begins = _stretches(shard, start, start + size)
        first, stretch = np.flatnonzero(begins), np.cumsum(begins) - 1
        offset = start[first]
        length = np.maximum.reduceat(start + size, first) - offset
        names = [table.shards[number].name for number in shard[first].tolist()]
        read = self._directories[source].read(names, offset.tolist(), length.tolist(), table.fingerprint)
        errors = {number: one for number, one in enumerate(read) if isinstance(one, OSError)}
        held = [b"" if isinstance(one, OSError) else one for one in read] if errors else read
        begin = start - offset[stretch]
        cuts = zip(stretch.tolist(), begin.tolist(), (begin + size).tolist(), strict=True)
        data: list[Any] = [held[number][a:b] for number, a, b in cuts]
        found = list(map(xxhash.xxh3_64_intdigest, data))
        if errors or found != sums.tolist():
            wrong = (np.array(found, np.uint64) != sums) | np.isin(stretch, list(errors))
            for index in np.flatnonzero(wrong).tolist():
                error = errors.get(int(stretch[index]))
                reason = f"shard cannot be read: {error.strerror}" if error else None
                data[index] = Corrupt(reason) if reason else self._again(source, int(ordered[index]))
        result: list[Any] = [None] * len(data)
        for place, one in zip(where.tolist(), data, strict=True):
            result[place] = one
        return result

    def _again(self, source: int, member: int) -> bytes | Corrupt:
        """A member whose bytes were not right, once more past the cache, which may be what is damaged."""
        table, directory = self.manifests[source], self._directories[source]
        name, start = table.shards[int(table.shard[member])].name, int(table.block[member]) * BLOCK
        size = int(table.size[member])
        directory.forget(name, start, size, table.fingerprint)
        data = directory.read([name], [start], [size], table.fingerprint)[0]
        if isinstance(data, OSError):
            return Corrupt(f"shard cannot be read: {data.strerror}")
        if len(data) != size:
            return Corrupt(f"shard ends at byte {start + len(data):,}, the member needs {start + size:,}")
        return data if xxhash.xxh3_64_intdigest(data) == table.checksum[member] else Corrupt("checksum differs")

    def keys(self, samples: np.ndarray) -> list[str]:
        """The key of each sample; "" for a negative number, which is padding."""
        if len(self.manifests) == 1 and (not len(samples) or samples.min() >= 0):
            return self.manifests[0].keys(samples)
        result = [""] * len(samples)
        source = np.searchsorted(self.first_sample, samples, side="right") - 1
        for number in np.unique(source[samples >= 0]).tolist():
            mine = np.flatnonzero(source == number)
            found = self.manifests[number].keys(samples[mine] - self.first_sample[number])
            for index, key in zip(mine.tolist(), found, strict=True):
                result[index] = key
        return result

    def directory(self, member: int) -> str:
        """The data directory that holds a member."""
        return self.manifests[int(np.searchsorted(self.first_member, member, side="right")) - 1].directory

    def locate(self, sample: int, member: int) -> dict[str, str | int]:
        """Where a member lies, in words: for the quarantine file and for error messages."""
        source = int(np.searchsorted(self.first_member, member, side="right")) - 1
        table, member = self.manifests[source], member - int(self.first_member[source])
        shard = table.shards[int(table.shard[member])].name
        return {
            "shard": f"{table.directory}/{shard}" if source else shard,
            "key": table.key(sample - int(self.first_sample[source])),
            "modality": list(table.modalities)[int(table.modality[member])],
            "offset": int(table.block[member]) * BLOCK,
        }


def _stretches(shard: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which members, in storage order, begin a read of their own: neighbours share one."""
    begins = np.ones(len(start), bool)
    begins[1:] = (shard[1:] != shard[:-1]) | (start[1:] > end[:-1] + GAP)
    first = np.flatnonzero(begins)
    if (np.maximum.reduceat(end, first) - start[first]).max() > STRETCH:  # cut long ones
        part = (start - start[first][np.cumsum(begins) - 1]) // STRETCH
        begins[1:] |= part[1:] != part[:-1]
    return begins


def quarantine(path: Path, entries: list[dict[str, str | int]]) -> None:
    """Append damaged members to a JSON-lines file."""
    with path.open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
