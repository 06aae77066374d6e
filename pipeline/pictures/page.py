"""A page: panels of tiles with their words, laid out in pixels from the upper left corner.

A tile is magnified by a whole number, or scaled down where it is too large; nothing is stretched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.sheet import DARK, GREY

TITLE, HEADING, TEXT = 15, 13, 11
"""Sizes of letters."""
LINE, EDGE, APART, GAP = 14, 16, 28, 3
"""Height of a line of text, width of the margin, and between panels and between tiles."""
NAME = 170
"""Width of a row's name, at most."""
LARGEST = 900_000
"""Bytes of a file of all colours."""
LITTLE = 24
"""Side of a tile, at least."""
LEAST, WIDE = 480, 1900
"""Width of a page, without its margins: at least, and for which `side_for` chooses tiles."""


@cache
def font(size: int = TEXT, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The letters that come with matplotlib, which know Greek and Vietnamese ones too."""
    from matplotlib import get_data_path

    file = Path(get_data_path()) / f"fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def cut(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """One line's beginning that is no wider than this."""
    if letters.getlength(text) <= width:
        return text
    kept = min(len(text), int(width))  # a letter is wider than a pixel
    while kept and letters.getlength(text[:kept].rstrip() + "…") > width:
        kept -= 1
    return text[:kept].rstrip() + "…"


def wrapped(text: str, width: float, letters: ImageFont.FreeTypeFont, most: int) -> list[str]:
    """At most so many lines that are no wider than this; what is left over is cut off."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [cut(line, width, letters) for line in lines]


def side_for(across: int, panels: int, longest: Sequence[int], most: int) -> int:
    """Side of a tile with which so many panels of so many tiles each fit beside each other.

    `longest` are the longer sides of what is drawn: the panels' tiles shall be of about the same size.
    """
    room = (WIDE - (panels - 1) * APART) // panels - NAME
    most = max(LITTLE, min(most, room // across - GAP))

    def alike(side: int) -> tuple[float, int]:
        drawn = [min(side, side // pixels * pixels or side) for pixels in longest]
        return min(drawn) / max(drawn), min(drawn)

    return max(range(most * 3 // 4, most + 1), key=alike)


class Element(Protocol):
    """What stands on a page."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""

    def draw(self, page: Image.Image, x: int, y: int) -> None:
        """With its upper left corner here."""


@dataclass(frozen=True)
class Tile:
    """A picture (Y, X, 3) from 0 to 1, or none, and a line beneath it."""

    pixels: np.ndarray | None
    words: str = ""
    colour: str = "black"


@dataclass(frozen=True)
class Panel:
    """Rows of tiles under a title, with names of the rows at their left and of the columns above them."""

    title: str
    rows: Sequence[Sequence[Tile]]
    side: int
    """The longer side of a tile, at most."""
    names: Sequence[str] = ()
    heads: Sequence[str] = ()
    apart: Collection[int] = ()
    """The numbers of rows above which there is more space."""

    @property
    def size(self) -> tuple[int, int]:
        width = self._left + max(len(row) for row in self.rows) * (self._column + GAP) - GAP
        return max(width, round(font(HEADING, True).getlength(self.title))), self._top + sum(self._heights)

    def draw(self, page: Image.Image, x: int, y: int) -> None:
        pen = ImageDraw.Draw(page)
        pen.text((x, y), self.title, "black", font(HEADING, True))
        middles = [
            x + self._left + place * (self._column + GAP) + self._column / 2 for place in range(len(self.rows[0]))
        ]
        for head, middle in zip(self.heads, middles, strict=False):
            pen.text((middle, y + self._top - LINE), cut(head, self._column, font()), GREY, font(), anchor="ma")
        y += self._top
        for number, (row, high) in enumerate(zip(self.rows, self._heights, strict=True)):
            picture = high - GAP - self._words - self._more(number)
            if self.names:
                name = wrapped(self.names[number], self._left - 2 * GAP, font(), max(1, picture // LINE))
                for place, line in enumerate(name):
                    top = y + (picture - LINE * len(name)) / 2 + LINE * place
                    pen.text((x + self._left - 2 * GAP, top), line, DARK, font(), anchor="ra")
            for tile, middle in zip(row, middles, strict=False):
                if tile.pixels is not None:
                    drawn = Image.fromarray(scaled(tile.pixels, self.side))
                    page.paste(drawn, (round(middle - drawn.width / 2), y + (picture - drawn.height) // 2))
                words = cut(tile.words, self._column, font())
                pen.text((middle, y + picture + 1), words, tile.colour, font(), anchor="ma")
            y += high

    @cached_property
    def _left(self) -> int:
        widest = max((font().getlength(name) for name in self.names), default=-2 * GAP)
        return min(NAME, round(widest)) + 2 * GAP

    @cached_property
    def _top(self) -> int:
        return LINE + GAP + (LINE if any(self.heads) else 0) + GAP

    @cached_property
    def _column(self) -> int:
        return max(scaled_size(tile.pixels, self.side)[0] for row in self.rows for tile in row)

    @cached_property
    def _words(self) -> int:
        return LINE + 1 if any(tile.words for row in self.rows for tile in row) else 0

    @cached_property
    def _heights(self) -> list[int]:
        """Of each row, all that belongs to it counted."""
        return [
            max(scaled_size(tile.pixels, self.side)[1] for tile in row) + self._words + GAP + self._more(number)
            for number, row in enumerate(self.rows)
        ]

    def _more(self, number: int) -> int:
        return 2 * GAP if number + 1 in self.apart else 0


@dataclass(frozen=True)
class Chart:
    """Pixels (Y, X, 3) of bytes as they are."""

    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]

    def draw(self, page: Image.Image, x: int, y: int) -> None:
        page.paste(Image.fromarray(self.pixels), (x, y))


def line_width(line: Sequence[Element]) -> int:
    """Of elements beside each other."""
    return sum(element.size[0] for element in line) + APART * (len(line) - 1)


@dataclass(frozen=True)
class Page:
    """Lines of elements beside each other under a title, and lines of text below them."""

    title: str
    lines: Sequence[Sequence[Element]]
    notes: Sequence[str] = ()

    def image(self) -> Image.Image:
        """The page as a picture."""
        width = max(LEAST, *map(line_width, self.lines))
        heights = [max(element.size[1] for element in line) for line in self.lines]
        title = wrapped(self.title, width, font(TITLE, True), 3)
        notes = [line for note in self.notes for line in wrapped(note, width, font(), 2)]
        high = EDGE + (TITLE + 5) * len(title) + EDGE // 2 + LINE * len(notes) + EDGE
        high += sum(tall + APART // 2 for tall in heights)
        page = Image.new("RGB", (width + 2 * EDGE, high), "white")
        pen, y = ImageDraw.Draw(page), EDGE
        for text in title:
            pen.text((EDGE, y), text, "black", font(TITLE, True))
            y += TITLE + 5
        y += EDGE // 2
        for line, tall in zip(self.lines, heights, strict=True):
            x = EDGE
            for element in line:
                element.draw(page, x, y)
                x += element.size[0] + APART
            y += tall + APART // 2
        for text in notes:
            pen.text((EDGE, y), text, DARK, font())
            y += LINE
        return page

    def save(self, file: Path) -> None:
        """As a PNG, of 256 colours where it would be larger than LARGEST: a third of the bytes of photographs."""
        image, whole = self.image(), BytesIO()
        image.save(whole, "PNG")
        if whole.tell() > LARGEST:
            image.quantize(256).save(file, optimize=True)
        else:
            file.write_bytes(whole.getvalue())


def scaled_size(pixels: np.ndarray | None, side: int) -> tuple[int, int]:
    """(width, height) that `scaled` makes; of no picture a square."""
    if pixels is None:
        return side, side
    high, wide = pixels.shape[:2]
    scale = max(side // max(high, wide), min(1.0, side / max(high, wide)))
    return max(1, round(wide * scale)), max(1, round(high * scale))


def scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bytes (Y, X, 3) of levels (y, x, 3) from 0 to 1, in a whole multiple of their size or scaled down to the side."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    if max(levels.shape[:2]) > side:
        return np.asarray(Image.fromarray(levels).resize(scaled_size(pixels, side), Image.Resampling.LANCZOS))
    return levels.repeat(side // max(levels.shape[:2]), 0).repeat(side // max(levels.shape[:2]), 1)
