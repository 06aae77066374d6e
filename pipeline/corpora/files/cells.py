"""From the cells of a user's tables, or from files, to the values of a modality.

A reader makes a value of one cell (of several, where a modality has a column for each element), and raises Unusable
with the reason where it cannot. What is there is never taken for absent.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import Unusable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from pipeline.tokenizers import Tokenizer

Cells = Sequence[Any]
Reader = Callable[[Cells], np.ndarray]
YES, NO = ("1", "true", "yes"), ("0", "false", "no")
WHOLE = {"1.0": "1", "0.0": "0"}
"""How pandas writes whole numbers of a column in which some are missing."""


def missing(cell: Any) -> bool:
    """Whether a cell is declared empty: no value, an empty text, or a picture of `datasets` of which nothing is there.

    A file that is there and holds nothing is not: it was cut off.
    """
    if isinstance(cell, dict):
        return all(part is None for part in cell.values())
    return cell is None or (isinstance(cell, str) and not cell.strip())


def text(cell: Any) -> str:
    """A cell as text. Raises Unusable."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # whole numbers among which some are missing
    if isinstance(cell, float) and not math.isfinite(cell):
        raise Unusable(f"{cell} is no number")
    if isinstance(cell, bytes | str):
        data = cell if isinstance(cell, bytes) else cell.encode("utf-8", "surrogateescape")
        try:
            cell = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Unusable("the text is no UTF-8") from None
        if not cell.strip():
            raise Unusable("nothing is in it")
    if not isinstance(cell, str | int | float):
        raise Unusable(f"expected a text, got {type(cell).__name__}")
    return str(cell)


# Readers


@dataclass(frozen=True)
class ReadPicture:
    """A picture, in bytes or at a path, as uint8 (height, width) or (height, width, 3).

    It is turned as its EXIF says, laid on white where it is transparent, and scaled: a pixel is the mean of what it
    covers, or interpolated where the picture is smaller than asked for. By Pillow: OpenCV would fill up what a file
    that was cut off lacks.
    """

    folder: Path
    height: int
    width: int
    channels: int
    fit: str

    def __call__(self, cells: Cells) -> np.ndarray:
        from PIL import Image, ImageOps

        size = self.width, self.height
        data, what = self._bytes(cells[0])
        try:
            with Image.open(BytesIO(data)) as picture:
                flat = _eight_bits(ImageOps.exif_transpose(picture), "L" if self.channels == 1 else "RGB")
        except Image.DecompressionBombError as error:
            raise Unusable(f"{what} no picture to be opened: {error}") from None
        except DAMAGED_PICTURE:
            raise Unusable(f"{what} no readable picture") from None
        smaller = flat.width >= self.width and flat.height >= self.height
        method = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        fitted = ImageOps.fit(flat, size, method) if self.fit == "crop" else flat.resize(size, method)
        return np.asarray(fitted)

    def _bytes(self, cell: Any) -> tuple[bytes, str]:
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        if isinstance(cell, bytes):
            return cell, f"{len(cell):,} bytes that are"
        path = text(cell)
        return _file(self.folder, path), f"{path} is"


def _file(folder: Path, path: str) -> bytes:
    """A file that a cell names. Raises Unusable."""
    try:
        return (folder / path.strip()).read_bytes()
    except (OSError, ValueError) as error:
        raise Unusable(f"{path}: {getattr(error, 'strerror', error)}") from None


DAMAGED_PICTURE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)
"""What Pillow raises where bytes are no picture, or not a whole one."""


def _eight_bits(picture: Picture, mode: str) -> Picture:
    from PIL import Image

    if picture.mode == "F":
        raise Unusable("levels that are no whole numbers, of which none is known to be white")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise Unusable("levels of 32 bits, of which none is known to be white")
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert(mode)
    if picture.has_transparency_data:
        drawn = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    return picture.convert(mode)


@dataclass(frozen=True)
class ReadLabel:
    """The number of a class."""

    numbers: dict[str, int]

    def __call__(self, cells: Cells) -> np.ndarray:
        name = text(cells[0]).strip()
        if name not in self.numbers:
            raise Unusable(f"{name!r} is none of the {len(self.numbers)} classes")
        return np.asarray(self.numbers[name])


@dataclass(frozen=True)
class ReadFlags:
    """Attributes with a column each, as uint8 (count,)."""

    def __call__(self, cells: Cells) -> np.ndarray:
        return np.array([self._flag(text(cell).strip().lower()) for cell in cells], np.uint8)

    def _flag(self, word: str) -> int:
        word = WHOLE.get(word, word)
        if word not in (*YES, *NO):
            raise Unusable(f"{word!r} is neither {', '.join(YES)} nor {', '.join(NO)}")
        return int(word in YES)


@dataclass(frozen=True)
class ReadNames:
    """Attributes by the names of those that apply, as uint8 (count,)."""

    numbers: dict[str, int]
    separator: str

    def __call__(self, cells: Cells) -> np.ndarray:
        flags = np.zeros(len(self.numbers), np.uint8)
        for name in names_in(cells[0], self.separator):
            if name not in self.numbers:
                raise Unusable(f"{name!r} is none of the {len(self.numbers)} attributes")
            flags[self.numbers[name]] = 1
        return flags


def names_in(cell: Any, separator: str) -> list[str]:
    """The attributes that a cell names: those of a list, or between separators. Raises Unusable."""
    parts = [text(part) for part in cell] if isinstance(cell, list) else text(cell).split(separator)
    return [part.strip() for part in parts if part.strip()]


@dataclass(frozen=True)
class ReadWords:
    """The tokens (length,) of a text."""

    tokenizer: Tokenizer
    length: int

    def __call__(self, cells: Cells) -> np.ndarray:
        tokens, _ = self.tokenizer.encode([text(cells[0])], self.length)
        return tokens[0]


@dataclass(frozen=True)
class ReadNumbers:
    """A vector of float32 (count,): a list, numbers in a text, a .npy file or the path of one, or a column for each."""

    folder: Path
    count: int
    """0: any number of them."""

    def __call__(self, cells: Cells) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):
                vector = np.asarray(self._numbers(cells)).astype(np.float32)
        except (ValueError, TypeError, OverflowError):
            raise Unusable("what is there are no numbers") from None
        if vector.ndim != 1 or len(vector) != (self.count or len(vector)) or not len(vector):
            raise Unusable(f"expected {self.count or 'some'} numbers, got {' x '.join(map(str, vector.shape))}")
        if not np.isfinite(vector).all():
            raise Unusable("numbers that are not finite in 32 bits")
        return vector

    def _numbers(self, cells: Cells) -> Any:
        if len(cells) > 1:
            return [float(text(cell)) for cell in cells]
        (cell,) = cells
        if isinstance(cell, str) and cell.strip().endswith(".npy"):
            cell = _file(self.folder, text(cell))
        if isinstance(cell, bytes) and cell.startswith(b"\x93NUMPY"):
            return _npy(cell)
        if isinstance(cell, list):
            return [np.nan if part is None else part for part in cell]
        return [float(word) for word in text(cell).strip().strip("[]()").replace(",", " ").replace(";", " ").split()]


def _npy(data: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise Unusable(f"no readable .npy file ({error})") from None
