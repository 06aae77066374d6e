"""Files of a data directory, which is local or a URL; what was fetched from a URL is kept in the node's cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Directory(Protocol):
    """Where a data directory's files are read from. Safe to share among threads."""

    place: str
    """The path or the URL, without a slash at its end."""

    @property
    def retries(self) -> int:
        """Requests that were made again after a passing fault; always 0 where the directory is local."""

    def whole(self, name: str) -> Path:
        """A local path to the whole file: itself, or a copy in the node's cache, to be opened within a minute.

        Raises FileNotFoundError where there is no such file, UserError on a lasting fault of the storage.
        """

    def size(self, name: str) -> int | None:
        """Bytes of the file; None where there is none, or no regular one. Raises UserError on a lasting fault."""

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """`size` of many files, asked for at once."""

    def read(
        self, names: Sequence[str], starts: Sequence[int], sizes: Sequence[int], version: str
    ) -> list[bytes | OSError]:
        """The bytes of many ranges, in that order; fewer than asked for where a file ends.

        An OSError stands in place of the bytes of a file that is missing or unreadable. `version` names the data:
        cached blocks of another version are never used. Raises UserError on a lasting fault of the storage.
        """

    def forget(self, name: str, start: int, size: int, version: str) -> None:
        """Drop what the cache holds of a range whose bytes turned out to be damaged."""


def is_remote(place: str | Path) -> bool:
    """Whether a data directory is a URL."""
    return "://" in str(place)


def absolute(place: str | Path) -> str:
    """The same place for a process in another working directory."""
    return str(place) if is_remote(place) else os.path.abspath(place)


def open_directory(place: str | Path) -> Directory:
    """The files of a path or a URL. Nothing is read yet.

    Raises UserError for a URL of an unknown kind, one whose package is not installed, or an unusable cache.
    """
    if is_remote(place):
        from infra.storage.remote import Remote  # fsspec takes its time

        return Remote(str(place))
    from infra.storage.local import Local

    return Local(place)
