"""Every member of a data directory against its manifest: its checksum, and the tar header in front of it.

Shards are read once, in storage order and long stretches, and compared many members at a time. Only what differs there
is looked at one by one, to find the reason.
"""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing import get_context, parent_process
from threading import Thread

import numpy as np
import xxhash

from infra.errors import UserError
from infra.storage import open_directory
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.shards import GAP, INDEXED, POOL, Reader

Damage = dict[str, str | int]
Piece = tuple[int, int]
"""Members start … stop - 1 of the manifest."""
WORTH = 2**30
"""Bytes that are worth a process more: one verifies them in the time that another takes to start."""
MEMBERS, BYTES = 2**14, 2**25
"""Members, and bytes, that are looked at together."""
STRETCH = 2**22
"""Bytes after which a read of neighbouring members begins anew."""
CONTENT = ("checksum differs", "tar header ")
"""What the reasons begin with where a shard can be read and holds other bytes."""


def verify(
    manifest: Manifest, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, str | int]]:
    """Every damaged member, by row: {"shard", "key", "modality", "offset", "reason"}, the offset in bytes; then the
    small files beside the shards that are missing or others than were written, as shards of no key.

    A member is damaged where its bytes have another checksum, where the tar header in front of it does not name it as a
    file of its size (plain WebDataset goes by that), and where its shard is missing or longer or shorter than declared.
    `workers` processes read (0: one per core, where there is enough for them to do; a script that asks for several
    needs the usual `if __name__ == "__main__"`); `progress` is told the bytes that are done, and all bytes. Of a URL it
    is the node's copies that are verified, where it has some. Raises UserError where the storage does not answer.
    """
    pieces = list(_pieces(manifest))
    total = _bytes(manifest, 0, len(manifest.size))
    workers = min(workers or min(len(os.sched_getaffinity(0)), 1 + total // WORTH), len(pieces))
    check = Check(manifest)
    results = _in_processes(manifest, pieces, workers) if workers > 1 else map(check, pieces)
    reasons: dict[int, str] = {}
    done = 0
    for piece, found in zip(pieces, results, strict=True):
        reasons |= found
        done += _bytes(manifest, *piece)
        if progress:
            progress(done, total)
    for number, reason in _resized(manifest).items():
        own = check.own(np.flatnonzero(manifest.shard == number))
        reasons = dict.fromkeys(own.tolist(), reason) | reasons
    reader, members = Reader([manifest]), sorted(reasons)
    rows = np.searchsorted(manifest.first, members, side="right") - 1
    damage = [reader.locate(int(r), m) | {"reason": reasons[m]} for r, m in zip(rows, members, strict=True)]
    return damage + [
        {"shard": name, "key": "", "modality": "", "offset": 0, "reason": reason}
        for name, reason in manifest.damaged_files().items()
    ]


def foreign_shards(manifest: Manifest, damage: list[dict[str, str | int]]) -> list[str]:
    """The shards that hold nothing of what the manifest declares, though they can be read: another data set's?"""
    names = [shard.name for shard in manifest.shards]
    hurt = dict.fromkeys(names, 0)
    for entry in damage:
        hurt[str(entry["shard"])] = hurt.get(str(entry["shard"]), 0) + str(entry["reason"]).startswith(CONTENT)
    own = Check(manifest).own(np.arange(len(manifest.size)))
    counts = np.bincount(manifest.shard[own], minlength=len(names)).tolist()
    return [name for name, count in zip(names, counts, strict=True) if count and hurt[name] == count]


def _bytes(manifest: Manifest, start: int, stop: int) -> int:
    """Bytes of these members and their headers."""
    return int(manifest.size[start:stop].sum(dtype=np.int64)) + BLOCK * (stop - start)


def _pieces(manifest: Manifest) -> Iterator[Piece]:
    """All members, cut after MEMBERS of them or about BYTES."""
    for start in range(0, len(manifest.size), MEMBERS):
        size = manifest.size[start : start + MEMBERS].astype(np.int64)
        part = np.cumsum(size + BLOCK) // BYTES
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(size)]
        yield from ((start + one, start + other) for one, other in pairwise(cuts))


def _resized(manifest: Manifest) -> dict[int, str]:
    """Why which shards, by number, have another size than declared; one that cannot be read is not among them."""
    used = np.flatnonzero(np.bincount(manifest.shard, minlength=len(manifest.shards))).tolist()
    shards = [manifest.shards[number] for number in used]
    last = [shard.bytes - 1 for shard in shards]  # and the byte behind it, which must not be there
    ends = open_directory(manifest.directory).read(
        [shard.name for shard in shards], last, [2] * len(shards), manifest.fingerprint
    )
    return {
        number: f"shard is {'longer' if len(end) else 'shorter'} than the {shard.bytes:,} bytes that were written"
        for number, shard, end in zip(used, shards, ends, strict=True)
        if not isinstance(end, OSError) and len(end) != 1
    }


class Check:
    """Finds the damaged members of a piece: {member: reason}."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._directory = open_directory(manifest.directory)
        self._shards, self._modalities = [shard.name for shard in manifest.shards], list(manifest.modalities)
        pool = manifest.splits.get(POOL, range(0))
        self._pool = np.arange(manifest.first[pool.start], manifest.first[pool.stop])
        self._places = np.sort(self._place(self._pool))

    def _place(self, members: np.ndarray) -> np.ndarray:
        return self.manifest.shard[members].astype(np.uint64) << np.uint64(32) | self.manifest.block[members]

    def own(self, members: np.ndarray) -> np.ndarray:
        """Without those that only refer to a member of a sample of the pool: they are verified there."""
        if not len(self._places):
            return members
        place = self._place(members)
        found = np.minimum(np.searchsorted(self._places, place), len(self._places) - 1)
        its_own = (members >= self._pool[0]) & (members <= self._pool[-1])
        return members[its_own | (self._places[found] != place)]

    def __call__(self, piece: Piece) -> dict[int, str]:
        table, members = self.manifest, self.own(np.arange(*piece))
        if not len(members):
            return {}
        members = members[np.lexsort((table.block[members], table.shard[members]))]
        shard, size = table.shard[members], table.size[members].astype(np.int64)
        start = (table.block[members].astype(np.int64) - 1) * BLOCK  # of the header
        stop = start + BLOCK + size
        begins = np.ones(len(members), bool)
        begins[1:] = (shard[1:] != shard[:-1]) | (start[1:] > stop[:-1] + GAP)
        begins[1:] |= start[1:] // STRETCH != start[:-1] // STRETCH
        first = np.flatnonzero(begins)
        length = np.maximum.reduceat(stop, first) - start[first]
        names = [self._shards[number] for number in shard[first].tolist()]
        stretches = self._directory.read(names, start[first].tolist(), length.tolist(), table.fingerprint)
        named, suspects = self._names(members), dict[int, bytes]()
        for stretch, one, end in zip(stretches, first.tolist(), [*first[1:].tolist(), len(members)], strict=True):
            part = slice(one, end)
            suspects |= self._suspects(stretch, start[part] - start[one], members[part], named[part])
        return self._again(suspects) if suspects else {}

    def _suspects(
        self, stretch: bytes | OSError, within: np.ndarray, members: np.ndarray, named: list[bytes]
    ) -> dict[int, bytes]:
        """Which members of a stretch, whose headers begin at `within`, seem to be damaged: {member: of `named`}."""
        if isinstance(stretch, OSError):
            return dict(zip(members.tolist(), named, strict=True))
        size, suspects = self.manifest.size[members].astype(np.int64), dict[int, bytes]()
        whole = _whole(stretch, within, size, self.manifest.checksum[members], named)
        for index in np.flatnonzero(~whole).tolist():
            member, begin = int(members[index]), int(within[index])
            if self._reason(member, named[index], stretch[begin : begin + BLOCK + int(size[index])]):
                suspects[member] = named[index]
        return suspects

    def _again(self, suspects: dict[int, bytes]) -> dict[int, str]:
        """Why which of these members, that begin with these names, are damaged also when read past the cache."""
        table, members = self.manifest, np.array(list(suspects))
        names = [self._shards[number] for number in table.shard[members].tolist()]
        starts = ((table.block[members].astype(np.int64) - 1) * BLOCK).tolist()
        sizes = (table.size[members].astype(np.int64) + BLOCK).tolist()
        for name, start, size in zip(names, starts, sizes, strict=True):
            self._directory.forget(name, start, size, table.fingerprint)
        found = self._directory.read(names, starts, sizes, table.fingerprint)
        reasons = {m: self._reason(m, n, held) for (m, n), held in zip(suspects.items(), found, strict=True)}
        return {member: reason for member, reason in reasons.items() if reason}

    def _names(self, members: np.ndarray) -> list[bytes]:
        """What each member's name in the tar begins with."""
        table = self.manifest
        rows = np.searchsorted(table.first, members, side="right") - 1
        keys = table.keys(rows)
        if table.corpus == INDEXED:  # somebody else's names
            return [f"{key}.".encode() for key in keys]
        kinds = [self._modalities[number] for number in table.modality[members].tolist()]
        return [f"{key}.{kind}.".encode() for key, kind in zip(keys, kinds, strict=True)]

    def _reason(self, member: int, named: bytes, held: bytes | OSError) -> str:
        """What is wrong with a header and the bytes behind it; nothing where only the header's form is a rare one."""
        table = self.manifest
        start, size = int(table.block[member]) * BLOCK, int(table.size[member])
        if isinstance(held, OSError):
            return f"shard cannot be read: {held.strerror}"
        if len(held) < BLOCK + size:
            return f"shard ends at byte {start - BLOCK + len(held):,}, the member needs {start + size:,}"
        if xxhash.xxh3_64_intdigest(held[BLOCK:]) != table.checksum[member]:
            return "checksum differs"
        try:
            info = tarfile.TarInfo.frombuf(held[:BLOCK], "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            return f"tar header damaged: {error}"
        if not info.isreg():
            return f"tar header says that {info.name} is no file"
        name, wanted = info.name.removeprefix("./"), named.decode()
        cut = table.corpus == INDEXED and wanted.startswith(name)  # a long name stands in blocks in front of this one
        right = (name.startswith(wanted) or cut) and info.size == size
        return "" if right else f"tar header names {info.name} with {info.size} bytes"


def _whole(
    stretch: bytes, within: np.ndarray, size: np.ndarray, checksum: np.ndarray, named: list[bytes]
) -> np.ndarray:
    """Which members of a stretch, whose headers begin at `within`, are surely what they should be.

    A header of a rare form (a name with a prefix, a size that is no plain octal number) is in doubt.
    """
    blocks = len(stretch) // BLOCK
    there = within + BLOCK + size <= len(stretch)
    header = np.frombuffer(stretch, np.uint8, blocks * BLOCK).reshape(blocks, BLOCK)[within[there] // BLOCK]
    whole = np.zeros(len(within), bool)
    whole[there] = _plain(header, size[there])
    data, begins, digest = memoryview(stretch), (within + BLOCK).tolist(), xxhash.xxh3_64_intdigest
    sizes, sums = size.tolist(), checksum.tolist()
    for index in np.flatnonzero(whole).tolist():
        begin, name = begins[index], named[index]
        right = data[begin - BLOCK : begin - BLOCK + len(name)] == name
        whole[index] = right and digest(data[begin : begin + sizes[index]]) == sums[index]
    return whole


def _plain(header: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which of these headers, (n, BLOCK) bytes, are surely of ordinary files of these sizes with ASCII names."""
    total = header.sum(1, dtype=np.int64) - header[:, 148:156].sum(1, dtype=np.int64) + 8 * ord(" ")
    plain = (_octal(header[:, 148:154]) == total) & (header[:, 154] == 0)
    plain &= (_octal(header[:, 124:135]) == size) & np.isin(header[:, 135], (0, ord(" ")))
    plain &= (header[:, 156] == ord("0")) & (header[:, 345] == 0)
    return plain & (header[:, :100] < 128).all(1)


def _octal(digits: np.ndarray) -> np.ndarray:
    """The numbers that digits of base 8 write, -1 where one of them is none."""
    values = digits.astype(np.int64) - ord("0")
    numbers = values @ 8 ** np.arange(digits.shape[1])[::-1]
    return np.where(((values >= 0) & (values < 8)).all(1), numbers, -1)


# In processes


def _in_processes(manifest: Manifest, pieces: list[Piece], workers: int) -> Iterator[dict[int, str]]:
    """What is damaged in each piece, in their order."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (manifest.directory,)) as pool:
        try:
            yield from pool.map(_in_worker, pieces)
        except BrokenProcessPool:
            raise UserError(
                "a process that verifies shards was killed: is there too little memory? try --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_check: Check


def _begin(directory: str) -> None:
    global _check
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent stops us

    def follow() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # it was killed: nobody waits for us

    Thread(target=follow, daemon=True).start()
    _check = Check(open_manifest(directory))


def _in_worker(piece: Piece) -> dict[int, str]:
    return _check(piece)
