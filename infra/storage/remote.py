"""A data directory behind a URL: fetched in blocks, which the node's cache keeps."""

from __future__ import annotations

import contextlib
import errno
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.storage.cache import Cache
from infra.storage.claims import Claim
from infra.storage.requests import AT_ONCE, Requests

BLOCK_BYTES = 1 << 20
POLL_SECONDS = 0.02
"""How often to look for what another process is fetching."""
PATIENCE_SECONDS = 120.0
"""How long to wait for that; a process that was stopped must not stop the others."""
CHANGES = 3
"""How often a file may change while it is copied."""
VERSION_MARKS = ("ETag", "Last-Modified", "LastModified", "mtime", "created", "Content-MD5", "Digest", "VersionId")
"""What storages tell of a file's version."""

Block = tuple[str, int]
"""The name of a file and the number of a block in it."""
Uses = list[tuple[int, int, int, int]]
"""Where bytes of a block are wanted: (number of the range, number of its piece, begin and end in the block)."""


class Remote:
    """The files below a URL. Safe to share among threads, and usable after a fork."""

    def __init__(self, place: str) -> None:
        """Raises UserError for a URL of an unknown kind, a package that is not installed or an unusable cache."""
        self.place = place.rstrip("/")
        self._requests = Requests(self.place)
        self._cache = Cache.from_environment()
        self._lengths: dict[str, dict[str, int]] = {}

    @property
    def retries(self) -> int:
        """Requests that were made again after a passing fault."""
        return self._requests.retries

    def size(self, name: str) -> int | None:
        """Bytes of the file, asked anew; None where there is none. Raises UserError on a lasting fault."""
        return self.sizes([name])[0]

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """`size` of many files, asked for at once."""
        return [self._length(name, info) for name, info in zip(names, self._requests.infos(names), strict=True)]

    def whole(self, name: str) -> Path:
        """A copy of the file in the node's cache; fetched anew where the storage tells no version of it.

        Raises FileNotFoundError, and UserError on a lasting fault of the storage or the cache.
        """
        for _ in range(CHANGES):
            with contextlib.suppress(_Changed):
                return self._copy(name, self._state(name))
        raise UserError(f"{self._requests.url(name)} changed {CHANGES} times while it was read; start again later")

    def read(
        self, names: Sequence[str], starts: Sequence[int], sizes: Sequence[int], version: str
    ) -> list[bytes | OSError]:
        """The bytes of many ranges; an OSError in place of those of a missing file. Raises UserError as above."""
        lengths = self._learnt(names, version)
        pieces: list[list[bytes]] = []
        wanted: dict[Block, Uses] = {}
        place, cached = self.place, self._cache.read
        for name, start, size in zip(names, starts, sizes, strict=True):
            length = lengths.get(name, 0)
            stop, found = min(start + size, length), list[bytes]()
            for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES) if start < stop else 0):
                first = number * BLOCK_BYTES
                begin, end = max(start - first, 0), min(stop - first, BLOCK_BYTES)
                key = (place, version, name, number, BLOCK_BYTES)
                piece = cached(key, min(length - first, BLOCK_BYTES), begin, end - begin)
                if piece is None:
                    wanted.setdefault((name, number), []).append((len(pieces), len(found), begin, end))
                found.append(piece or b"")
            pieces.append(found)
        missing = self._fetch(wanted, pieces, lengths, version) if wanted else set()
        return [
            b"".join(found)
            if name in lengths and name not in missing
            else FileNotFoundError(errno.ENOENT, "no such file", self._requests.url(name))
            for name, found in zip(names, pieces, strict=True)
        ]

    def forget(self, name: str, start: int, size: int, version: str) -> None:
        """Drop the blocks of a range, so that it is fetched again. Raises UserError where the cache is unusable."""
        self._lengths.get(version, {}).pop(name, None)
        for number in range(start // BLOCK_BYTES, (start + size - 1) // BLOCK_BYTES + 1):
            self._cache.drop(self._cache.path(self._key(name, number, version), "block"))

    def _fetch(
        self, wanted: dict[Block, Uses], pieces: list[list[bytes]], lengths: dict[str, int], version: str
    ) -> set[str]:
        """Fill the empty pieces, `wanted` being used up. Returns the files that turned out to be missing.

        A block that another thread or process is fetching is waited for, with no claim held: nobody waits in a ring.
        """
        missing: set[str] = set()

        def deliver(block: Block, data: bytes) -> None:
            for number, piece, begin, end in wanted.pop(block):
                pieces[number][piece] = data[begin:end]

        progress = time.monotonic()
        while wanted:
            alone = time.monotonic() - progress > PATIENCE_SECONDS
            with contextlib.ExitStack() as claims:
                own: list[tuple[Block, int, Claim | None]] = []
                for block in list(wanted):
                    name, number = block
                    size = min(lengths[name] - number * BLOCK_BYTES, BLOCK_BYTES)
                    key = self._key(name, number, version)
                    claim = self._cache.claim(self._cache.path(key, "block"))
                    if claim:
                        claims.callback(claim.release)
                    if claim or alone:
                        own.append((block, size, claim))
                    elif data := self._cache.read(key, size, 0, size):
                        deliver(block, data)
                        progress = time.monotonic()
                    if len(own) == AT_ONCE:
                        break
                ranges = [(name, number * BLOCK_BYTES, size) for (name, number), size, _ in own]
                for (block, size, claim), answer in zip(own, self._requests.ranges(ranges), strict=True):
                    if isinstance(answer, FileNotFoundError):
                        missing.add(block[0])
                        deliver(block, b"")
                        continue
                    if claim:
                        self._cache.store(claim, [answer], size)
                    deliver(block, answer)
            if own:
                progress = time.monotonic()
            elif wanted:
                time.sleep(POLL_SECONDS)
        return missing

    def _copy(self, name: str, state: tuple[int, list[str]]) -> Path:
        """Where the copy of that version of a file lies. Raises _Changed where it is another version by now."""
        size, marks = state
        marks = marks or [uuid.uuid4().hex]
        began = time.monotonic()
        while True:
            path = self._cache.path((self.place, name, size, *marks), "whole")
            if self._cache.held(path, size):
                return path
            claim = self._cache.claim(path)
            if claim:
                try:
                    self._cache.store(claim, self._content(name, state), size)
                finally:
                    claim.release()
            elif time.monotonic() - began > PATIENCE_SECONDS:
                marks, began = [uuid.uuid4().hex], time.monotonic()  # a copy of our own
            else:
                time.sleep(POLL_SECONDS)

    def _content(self, name: str, state: tuple[int, list[str]]) -> Iterator[bytes]:
        size = state[0]
        blocks = [(name, start, min(BLOCK_BYTES, size - start)) for start in range(0, size, BLOCK_BYTES)]
        for first in range(0, len(blocks), AT_ONCE):
            for answer in self._requests.ranges(blocks[first : first + AT_ONCE]):
                if isinstance(answer, FileNotFoundError):
                    raise answer
                yield answer
        if self._state(name) != state:
            raise _Changed

    def _state(self, name: str) -> tuple[int, list[str]]:
        """The size of a file and the marks of its version, as the storage tells them. Raises FileNotFoundError."""
        info = self._requests.infos([name])[0]
        size = self._length(name, info)
        if size is None or not isinstance(info, dict):
            raise FileNotFoundError(errno.ENOENT, "no such file", self._requests.url(name))
        return size, [f"{mark}={info[mark]}" for mark in VERSION_MARKS if info.get(mark)]

    def _learnt(self, names: Sequence[str], version: str) -> dict[str, int]:
        """The lengths of those of the files that there are, asked for once."""
        known = self._lengths.setdefault(version, {})
        lengths = {name: known.get(name) for name in dict.fromkeys(names)}
        unknown = [name for name, length in lengths.items() if length is None]
        if unknown:
            lengths.update(zip(unknown, self.sizes(unknown), strict=True))
        found = {name: length for name, length in lengths.items() if length is not None}
        if unknown:
            known.update(found)
        return found

    def _length(self, name: str, info: dict[str, Any] | FileNotFoundError) -> int | None:
        if isinstance(info, FileNotFoundError) or info["type"] != "file":
            return None
        if info["size"] is None:
            raise UserError(
                f"{self._requests.url(name)}: the server does not say how long the file is (Content-Length); "
                "use a server that does (nginx, S3, ...), or copy the data to a local directory"
            )
        return int(info["size"])

    def _key(self, name: str, number: int, version: str) -> tuple[object, ...]:
        return self.place, version, name, number, BLOCK_BYTES


class _Changed(Exception):
    """The file is another version than when its copying began."""
