"""A data directory on this machine, read with plain reads.

Not mapped: a shard cut off under a mapping, or a disk that fails, would kill the process.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from infra.errors import UserError

OPEN_FILES = 256
"""Files kept open; processes may hold 1,024 by default."""
UNREADABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors that a damaged or missing file gives; any other (too many open files, ...) is no matter of the data."""


class OpenFile:
    """A file open for reading; closed when nobody reads it any more."""

    def __init__(self, path: str | Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Local:
    """A directory's files. Safe to share among threads."""

    retries = 0

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self._directory = Path(place)
        self._file = lru_cache(OPEN_FILES)(self._open)

    def _open(self, name: str) -> OpenFile:
        path = self._directory / name
        if not path.is_file():  # a pipe would wait for ever
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return OpenFile(path)

    def whole(self, name: str) -> Path:
        """The file's own path. Raises FileNotFoundError where there is no regular file of that name."""
        if self.size(name) is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self._directory / name))
        return self._directory / name

    def size(self, name: str) -> int | None:
        """Bytes of the file; None where there is no regular one. Raises UserError where nobody may look."""
        path = self._directory / name
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; mend that and start again") from None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """`size` of many files."""
        return [self.size(name) for name in names]

    def read(
        self, names: Sequence[str], starts: Sequence[int], sizes: Sequence[int], version: str
    ) -> list[bytes | OSError]:
        """The bytes of many ranges; an OSError in place of those of an unreadable file. Raises any other OSError."""
        results: list[bytes | OSError] = []
        open_file, pread = self._file, os.pread
        for name, start, size in zip(names, starts, sizes, strict=True):
            try:
                file = open_file(name)  # held while it is read: another thread may push it out of the cache
                data = pread(file.descriptor, size, start)
                while 0 < len(data) < size:  # the file's end; or more than 2 GiB, which no single read returns
                    more = pread(file.descriptor, size - len(data), start + len(data))
                    if not more:
                        break
                    data += more
                results.append(data)
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                results.append(error)
        return results

    def forget(self, name: str, start: int, size: int, version: str) -> None:
        """Nothing: there is no cache."""
