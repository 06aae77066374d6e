"""One foreign tar, read once from end to end: where its members lie, their checksums, and where it is damaged.

Python's tarfile ends without a word at a garbage header or at the end of a file that was cut; here both are damage.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import xxhash

from pipeline.manifest import BLOCK

CHUNK = 2**20
LARGEST = 2**32
"""What the manifest's 32-bit numbers of blocks and of bytes stay below."""
PARTS = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and extension, as webdataset splits them
META = re.compile(r"__[^/]*__($|[/.])")  # webdataset's own: it skips __x__/…, and means no sample by __x__.json
ZEROS_AT_END = tarfile.RECORDSIZE + 2 * BLOCK
"""More zeros than that at a tar's end were never written by tar: a file that was reserved, but not filled."""
MALFORMED = (tarfile.TarError, ValueError, OverflowError, LookupError)
"""What tarfile raises on bytes that are no header."""

Find = Callable[[str], tuple[int, str] | None]
"""From an extension to the number of its modality and the name of the instance; None where no rule names it."""


class Member(NamedTuple):
    """A member that a rule names; `offset` is where its bytes begin."""

    modality: int
    instance: str
    offset: int
    size: int
    checksum: int


class Run(NamedTuple):
    """Adjacent members of one key, also where no rule names any of them."""

    key: str
    offset: int
    members: list[Member]


class Damage(Exception):
    """Where a tar stops being one; `name` is that of a member whose bytes are cut."""

    def __init__(self, offset: int, reason: str, name: str = "") -> None:
        super().__init__(offset, reason)
        self.offset, self.reason, self.name = offset, reason, name


@dataclass
class Scan:
    """What one tar holds, up to its damage where it has one."""

    runs: list[Run] = field(default_factory=list)
    unnamed: Counter[str] = field(default_factory=Counter)
    """Members that no rule names, by extension."""
    refused: list[tuple[str, int, str]] = field(default_factory=list)
    """(key, offset, reason) of members that a rule names and no manifest can hold."""
    damage: tuple[str, int, str] | None = None
    """(key of the sample that was open, or "", offset, reason)."""


def scan(path: Path, find: Find) -> Scan:
    """Read a tar; only members that a rule names are read whole. Raises OSError where it cannot be read."""
    result, size = Scan(), path.stat().st_size
    with path.open("rb") as file:
        try:
            for info in _members(file, size):
                _add(result, info, file, find)
        except Damage as damage:
            parts = None if META.match(damage.name) else _parts(damage.name)
            key = parts[0] if parts else result.runs[-1].key if result.runs else ""
            result.damage = (key, damage.offset, damage.reason)
    return result


def _add(result: Scan, info: tarfile.TarInfo, file: BinaryIO, find: Find) -> None:
    if info.isdir() or META.match(info.name):
        return
    parts = _parts(info.name)
    if parts is None:  # webdataset sees no sample in it
        result.unnamed[""] += 1
        return
    key, extension = parts
    if not result.runs or result.runs[-1].key != key:
        result.runs.append(Run(key, info.offset_data, []))
    found = find(extension)
    if found is None:
        result.unnamed[extension] += 1
    elif not info.isreg() or info.issparse():
        result.refused.append((key, info.offset_data, f".{extension} is a link or has holes: no bytes of its own"))
    elif info.size >= LARGEST or info.offset_data // BLOCK >= LARGEST:
        result.refused.append((key, info.offset_data, f".{extension} has 4 GiB or more, or lies beyond 2 TiB"))
    else:
        checksum = _checksum(file, info)
        result.runs[-1].members.append(Member(*found, info.offset_data, info.size, checksum))


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members whose bytes are all there. Raises Damage unless the tar ends as tars do."""
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.size < 0 or tar.offset <= at:
                    raise Damage(at, "a tar header that leads backwards")
                if tar.offset > size:
                    raise Damage(info.offset, f"cut off inside a member: it needs {tar.offset:,} bytes", info.name)
                yield info
                tar.members = []  # type: ignore[attr-defined]  # it would remember them all
                at = tar.offset
    except MALFORMED as error:
        raise Damage(at, f"tar header damaged: {error}" if size else "an empty file") from None
    _check_end(file, at, size)


def _check_end(file: BinaryIO, at: int, size: int) -> None:
    """A tar ends with two blocks of zeros, and nothing but zeros follows."""
    file.seek(at)
    head = file.read(2 * BLOCK)
    if any(head[:BLOCK]):
        raise Damage(at, "no tar header" if len(head) >= BLOCK else "cut off inside a tar header")
    if len(head) < 2 * BLOCK:
        raise Damage(at, "the end-of-archive mark is missing: cut off behind a member")
    if size - at > ZEROS_AT_END:
        raise Damage(at, f"{size - at:,} bytes behind the end-of-archive mark: overwritten, or several tars in one")
    if any(head) or any(file.read()):
        raise Damage(at, "data behind the end-of-archive mark: overwritten, or several tars in one")


def _checksum(file: BinaryIO, info: tarfile.TarInfo) -> int:
    digest, missing = xxhash.xxh3_64(), info.size
    file.seek(info.offset_data)
    while missing:
        chunk = file.read(min(missing, CHUNK))
        if not chunk:
            raise Damage(info.offset, "the file became shorter while it was read", info.name)
        digest.update(chunk)
        missing -= len(chunk)
    return digest.intdigest()


def _parts(name: str) -> tuple[str, str] | None:
    """Key and extension, which webdataset makes lower case; a leading "./" names the same file as none."""
    printable = name.encode("utf-8", "backslashreplace").decode()
    match = PARTS.fullmatch(printable.removeprefix("./"))
    return (match.group(1), match.group(2).lower()) if match else None
