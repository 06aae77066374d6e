"""The node's cache of what was fetched: a bounded directory of files that all its processes share.

A file appears there whole, by rename. Whoever fetches one holds the lock of its `.part` file, which dies with the
process. The file `usage` holds the sum of all sizes, so that only evicting has to look at the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from infra.errors import UserError
from infra.storage.claims import Claim, claim, drop_abandoned, unlock
from infra.storage.local import OpenFile

DIRECTORY, BYTES = "PAIRSTREAM_CACHE", "PAIRSTREAM_CACHE_BYTES"
DEFAULT_BYTES = 20 << 30
SMALLEST_BYTES = 1 << 20
OPEN_FILES = 256
"""Cached files that a process keeps open; fewer where they would be a large share of a small cache."""
TOUCH_SECONDS = 60.0
"""How often a file in use is marked as used."""
HANDED_OUT_SECONDS = 60.0
"""A whole file is not evicted for so long: whoever got its path has still to open it."""
STALE_SECONDS = 3600.0
"""After this a `.part` file that nobody holds is what a killed process left."""
OURS = re.compile(r"[0-9a-f]{40}\.(block|whole|part)")
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MATTER_OF_THE_CACHE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
T = TypeVar("T")


class CachedFile(OpenFile):
    """An open file of the cache; `touched` is when it was last marked as used."""

    touched = float("-inf")


class Cache:
    """Safe to share among threads. Methods raise UserError where the directory cannot be used."""

    def __init__(self, directory: Path, bound: int) -> None:
        self.directory, self.bound = directory, bound
        kept_open = min(OPEN_FILES, bound // (16 * SMALLEST_BYTES))
        self._file = lru_cache(kept_open)(self._open)
        with self._usable(), self._usage():
            pass

    @classmethod
    def from_environment(cls) -> Cache:
        """The cache that PAIRSTREAM_CACHE and PAIRSTREAM_CACHE_BYTES describe. Raises UserError for a bad value."""
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        directory = os.environ.get(DIRECTORY) or os.path.join(home, "pairstream")
        return cls(Path(os.path.abspath(os.path.expanduser(directory))), _bound(os.environ.get(BYTES) or ""))

    def path(self, key: tuple[object, ...], kind: str) -> Path:
        """Where the file of a key lies; `kind` is "block" or "whole"."""
        name = blake2b(repr(key).encode(), digest_size=20).hexdigest()
        return self.directory / name[:2] / f"{name}.{kind}"

    def read(self, key: tuple[object, ...], size: int, start: int, count: int) -> bytes | None:
        """`count` bytes of a block that should have `size` bytes; None where the cache does not hold it whole."""
        try:
            file = self._file(key, size)
            if time.monotonic() - file.touched > TOUCH_SECONDS:
                self._touch(file)
            data = os.pread(file.descriptor, count, start)
        except OSError as error:
            if error.errno in NO_MATTER_OF_THE_CACHE:
                raise
            if error.errno == errno.ENOENT:
                return None
            data = b""  # a disk that fails: what it holds can be fetched again
        if len(data) == count:
            return data
        self.drop(self.path(key, "block"))
        return None

    def held(self, path: Path, size: int) -> bool:
        """Whether a file lies there whole; marks it as used."""
        with self._usable():
            try:
                if path.stat().st_size == size:
                    os.utime(path)
                    return True
                path.unlink()
            except FileNotFoundError:
                pass
        return False

    def drop(self, path: Path) -> None:
        """Let a file go: it turned out to be damaged."""
        with self._usable():
            path.unlink(missing_ok=True)
        self._file.cache_clear()

    def claim(self, path: Path) -> Claim | None:
        """The right to fetch a file; None where another has it, or where the file has just appeared."""
        with self._usable():
            return self._making_room(lambda: claim(path))

    def store(self, claimed: Claim, pieces: Iterable[bytes], size: int) -> None:
        """Write a claimed file of `size` bytes and release it; the least recently used give way to it."""
        with self._usable():
            self._making_room(lambda: self._reserve(size))
            os.ftruncate(claimed.descriptor, 0)
        for piece in pieces:
            with self._usable():
                self._write(claimed.descriptor, piece)
        with self._usable():
            self._making_room(claimed.store)

    def _open(self, key: tuple[object, ...], size: int) -> CachedFile:
        path = self.path(key, "block")
        file = CachedFile(path)
        if os.fstat(file.descriptor).st_size != size:  # cut off by a crash of the machine
            path.unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, "not the whole block", str(path))
        return file

    def _touch(self, file: CachedFile) -> None:
        file.touched = time.monotonic()
        if os.fstat(file.descriptor).st_nlink:
            os.utime(file.descriptor)
        else:  # evicted: as long as it is open it takes room that nobody counts
            self._file.cache_clear()

    def _write(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._making_room(lambda: os.write(descriptor, rest)) :]  # noqa: B023  (called at once)

    @contextlib.contextmanager
    def _usage(self) -> Iterator[int]:
        """The descriptor of the sum of all sizes, locked: one process at a time counts and evicts."""
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / "usage", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            unlock(descriptor)

    def _reserve(self, size: int) -> None:
        """Count a file in before it is written, so that all together stay below the bound."""
        with self._usage() as usage:
            text = os.pread(usage, 8, 0)
            used = int.from_bytes(text, "little") if len(text) == 8 else self._evict(self.bound)
            if used + size > self.bound:
                used = self._evict(max(0, self.bound - max(size, self.bound // 16)))
            os.pwrite(usage, (used + size).to_bytes(8, "little"), 0)

    def _evict(self, target: int | None) -> int:
        """Delete the least recently used until `target` bytes are left (None: half); how many are left."""
        now, total, files = time.time(), 0, []
        for entry in _entries(self.directory):
            with contextlib.suppress(FileNotFoundError):  # stored, dropped or evicted meanwhile
                found = entry.stat()
                total += found.st_size
                age, kind = now - found.st_mtime, entry.name.rpartition(".")[2]
                if (kind == "block") or (kind == "whole" and age > HANDED_OUT_SECONDS):
                    files.append((found.st_mtime_ns, found.st_size, entry.path))
                elif kind == "part" and age > STALE_SECONDS and drop_abandoned(entry.path):
                    total -= found.st_size
        target = total // 2 if target is None else target
        for _, size, path in sorted(files):
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _making_room(self, action: Callable[[], T]) -> T:
        """Do it; where the disk is full, once more after half of the cache went. Raises OSError."""
        try:
            return action()
        except OSError as error:
            if error.errno not in FULL:
                raise
        self._file.cache_clear()  # what is open keeps its room
        with self._usage() as usage:
            os.pwrite(usage, self._evict(None).to_bytes(8, "little"), 0)
        return action()

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Errors of the directory as a sentence for the user."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_MATTER_OF_THE_CACHE:
                raise
            if error.errno in FULL:
                raise UserError(
                    f"{self.directory}: the disk of the cache is full ({error.strerror}); free space there, set "
                    f"{DIRECTORY} to a directory elsewhere, or lower {BYTES} (now {self.bound:,})"
                ) from None
            raise UserError(
                f"{self.directory} cannot hold the cache of fetched data ({error.strerror}); "
                f"set {DIRECTORY} to a directory on a local disk that you may write to"
            ) from None


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """The cache's own files, whatever else lies in its directory."""
    for folder in os.scandir(directory):
        if len(folder.name) == 2 and folder.is_dir():
            with contextlib.suppress(FileNotFoundError):
                yield from (entry for entry in os.scandir(folder) if OURS.fullmatch(entry.name))


def _bound(text: str) -> int:
    """Bytes from an integer or, say, 20G. Raises UserError."""
    if not text:
        return DEFAULT_BYTES
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    number = int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ") if match else 0
    if number < SMALLEST_BYTES:
        raise UserError(f"{BYTES} is {text!r}: give a number of bytes of at least 1M, such as 21474836480 or 20G")
    return number
