"""Who fetches a file of the cache: the holder of the lock on its `.part` file, which dies with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


class Claim:
    """The right to fetch one file, taken from all other threads and processes until it is released."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor, self.path, self._held = descriptor, path, True

    def store(self) -> None:
        """Give the file its name, then let others have it. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # somebody emptied the cache; it will be fetched again
            os.rename(part_of(self.path), self.path)
        self._held = False
        unlock(self.descriptor)

    def release(self) -> None:
        """Let others have it. What was written and not stored is dropped."""
        if self._held:
            self._held = False
            with contextlib.suppress(OSError):
                os.unlink(part_of(self.path))
            unlock(self.descriptor)


def part_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_suffix(".part")


def claim(path: Path) -> Claim | None:
    """Claim a file; None where another has it, or where it has just appeared. Raises OSError."""
    part = part_of(path)
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(part).st_ino:  # else it was stored or dropped before the lock
            claimed = Claim(descriptor, path)
            if not path.exists():
                return claimed
            claimed.release()
            return None
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def drop_abandoned(part: str) -> bool:
    """Delete a `.part` file unless somebody holds it; whether it was deleted. Raises OSError."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(part)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Unlock and close. Closing alone would not unlock where the process has forked since."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
