"""What corpora of official files share: JPEGs in tars, texts packed by xz or not, splits where none are official."""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infra.errors import UserError
from pipeline.corpora.corpus import by_hash

SPLITS = ("train", "val", "test")
END = b"\xff\xd9"
"""How a JPEG ends; no compressed picture has these bytes within (ITU-T T.81, B.1.1.5)."""


class Picture(NamedTuple):
    """Where the bytes of a picture are."""

    file: str
    """A JPEG, or a tar of them."""
    offset: int = -1
    """In a tar, where its bytes begin; negative for a file of its own."""
    size: int = 0


def in_tars(files: Iterable[Path], key: Callable[[str], str]) -> dict[str, Picture]:
    """The JPEGs in tars by `key` of their names without .jpg. Raises UserError for damage, or a key that is twice."""
    from pipeline.scanning import scan

    pictures: dict[str, Picture] = {}
    for path in files:
        found = scan(path, {"jpg": (0, "")}.get)
        if found.damage:
            raise UserError(f"{path} is damaged at byte {found.damage[1]:,} ({found.damage[2]}): fetch it again")
        for run in found.runs:
            for member in run.members:
                name = key(run.key)
                if name in pictures:
                    raise UserError(
                        f"{path} holds {name}.jpg, and so does {pictures[name].file}: take one of them away"
                    )
                pictures[name] = Picture(str(path), member.offset, member.size)
    return pictures


def pixels(picture: Picture, key: str) -> np.ndarray:
    """The picture (height, width, 3), red first, as its rows are stored. Raises UserError where it is not whole."""
    import cv2

    if picture.offset < 0:
        data = Path(picture.file).read_bytes()
    else:
        data = os.pread(_opened(picture.file), picture.size, picture.offset)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if END in data else None
    if decoded is None:
        raise UserError(f"{picture.file}: picture {key} is no whole JPEG ({len(data):,} bytes): fetch it again")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


@lru_cache
def _opened(file: str) -> int:
    """A tar's descriptor, which stays open as long as the process lives."""
    return os.open(file, os.O_RDONLY)


def text(source: Path, name: str, ending: str = ".txt") -> tuple[Path, str]:
    """The one file of that name, whatever follows it before the ending, packed by xz or not; and what it says (UTF-8).

    Raises UserError where there is none or several, or where it cannot be read.
    """
    files = [path for packed in ("", ".xz") for path in sorted(source.glob(f"{name}*{ending}{packed}"))]
    if len(files) != 1:
        names = f"has several: {', '.join(path.name for path in files)}" if files else "has none"
        raise UserError(f"{source}: expected one {name}{ending} or {name}{ending}.xz, but it {names}")
    data = files[0].read_bytes()
    try:
        return files[0], (lzma.decompress(data) if files[0].suffix == ".xz" else data).decode("utf-8-sig")
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise UserError(f"{files[0]} cannot be read ({error}): it was cut off or damaged, fetch it again") from None


def divided(keys: Iterable[str], seed: int) -> dict[str, str]:
    """The split of each key: 80 % train, 10 % val, 10 % test by their hashes."""
    order = by_hash(keys, seed)
    val, test = len(order) * 8 // 10, len(order) * 9 // 10
    return {key: SPLITS[(place >= val) + (place >= test)] for place, key in enumerate(order)}


def needed(module: str, extra: str) -> Any:
    """A module that only some corpora need. Raises UserError that names the extra which installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"this corpus needs {module} ({error}): pip install 'pairstream[{extra}]'") from None


def frame(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """A picture of these, whose short side is scaled to `side`: its height and width then, and the row and column at
    which its middle (side, side) begins."""
    scale = side / min(height, width)
    height, width = round(height * scale), round(width * scale)
    return height, width, (height - side) // 2, (width - side) // 2
