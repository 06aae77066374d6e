"""Writing that has reached the disk."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file that nobody can find half of, whenever this process is killed. Raises OSError."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text)
    os.replace(part, path)


def sync_to_disk(path: Path) -> None:
    """fsync a file, or a directory after something in it was made or renamed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
