"""A few samples with all their modalities in one picture: `pairstream inspect DIR --sheet sheet.png`.

One column per sample, one row per modality. Positions and sizes are pixels from the upper left corner.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import UserError
from modalities import Attributes, Image, Label, Modality
from modalities.text import END, Tokens
from pipeline.manifest import Manifest
from pipeline.order import mix, seed_of
from pipeline.shards import Corrupt, Reader

FORMATS = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""Endings, and what of a file's metadata is left out: the same data give the same bytes."""
MOST = 50
"""Samples of a sheet: with 64 modalities it takes a quarter of a gigabyte to draw them."""
INSTANCES = 2
"""Instances of a modality that are shown; of the others their number."""
CELL, GAP, LINE, SPACE, DPI = 128, 14, 15, 4, 100
"""Pixels of a cell's width, between cells, of a line of text, between instances, of an inch."""
LETTER, LETTERS, LINES = 8, 20, 7
"""Pixels of a bold letter; letters of a line, lines of a text in a cell: what is longer is cut short."""
ELEMENT, MARKED = 21, 12
"""Pixels of a vector's element, at most, and from which on there is room for its number."""
DARK, PALE, GREY, RED = "#33475b", "#e6eaee", "#8a8a8a", "#d00000"

Say = Callable[[np.ndarray], str]
"""What a value reads like: a text's words, a label's name."""
Value = np.ndarray | None
"""None: damaged."""


def check(path: Path, samples: int) -> None:
    """Raise UserError where a sheet of so many samples could not be written to this file."""
    if not 1 <= samples <= MOST:
        raise UserError(f"a sheet of {samples} samples: choose 1 to {MOST}")
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: a sheet is a picture, so choose a name that ends with {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is no directory: make it first, or choose another place")


def draw(
    manifest: Manifest,
    modalities: Mapping[str, Modality],
    texts: Mapping[str, Say],
    path: Path,
    samples: int = 8,
    split: str = "train",
) -> None:
    """Draw samples of a split, with these modalities by name, into a .png, .pdf or .svg.

    `texts` says how values read, where it knows; else a text shows its tokens, a label its number, and attributes show
    which of their numbers apply. Raises UserError for a file that cannot be, before anything is read, and for a split
    or a modality that the shards do not hold.
    """
    check(path, samples)
    manifest.column(list(modalities))
    rows = choose(manifest, split, samples)
    title = f"{manifest.corpus}, {split}: {len(rows):,} of {len(manifest.split(split)):,} samples"
    draw_rows(manifest, modalities, texts, path, rows, title)


def draw_rows(
    manifest: Manifest,
    modalities: Mapping[str, Modality],
    texts: Mapping[str, Say],
    path: Path,
    rows: Sequence[int],
    title: str,
) -> None:
    """Draw these samples, from the left, under a title. Raises UserError as `draw` does."""
    check(path, len(rows))
    columns = manifest.column(list(modalities))
    members = [[_members(manifest, row, column) for row in rows] for column in columns]
    shown = np.concatenate([cell[:INSTANCES] for line in members for cell in line])
    data = dict(zip(shown.tolist(), Reader([manifest]).read(shown), strict=True))
    table = []
    for (name, modality), line in zip(modalities.items(), members, strict=True):
        values = [[_decoded(modality, data[member]) for member in cell[:INSTANCES].tolist()] for cell in line]
        cells = _cells(modality, values, texts.get(name))
        for cell, held in zip(cells, line, strict=True):
            if not len(held):
                cell.append(Words("–", GREY))
            if len(held) > INSTANCES:
                cell.append(Words(f"+{len(held) - INSTANCES}", GREY))
        table.append(cells)
    try:
        _save(title, [manifest.key(row) for row in rows], list(modalities), table, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another place") from None


# Which samples


def choose(manifest: Manifest, split: str, samples: int) -> list[int]:
    """Rows of a split, by pattern of present modalities, the most frequent first: one of each as far as they reach.

    The others are dealt by frequency (D'Hondt's rule); which samples of a pattern, their numbers' hashes say. Raises
    UserError where there is no such split, or nothing in it.
    """
    rows = manifest.split(split)
    if not rows:
        raise UserError(f"{manifest.directory}: split {split!r} holds no samples to show")
    _, kind, counts = np.unique(manifest.patterns(rows), return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")[:samples]
    counts = counts[ranked]
    taken = np.ones(len(ranked), np.int64)
    for _ in range(min(samples, int(counts.sum())) - len(ranked)):
        taken[(counts / (taken + 1)).argmax()] += 1  # below 1 once all are taken
    chosen: list[int] = []
    for pattern, count in zip(ranked, taken.tolist(), strict=True):
        mine = np.flatnonzero(kind == pattern)
        order = np.argpartition(mix(mine.astype(np.uint64) + np.uint64(seed_of("sheet"))), count - 1)
        chosen += (rows.start + np.sort(mine[order[:count]])).tolist()
    return chosen


def _members(manifest: Manifest, row: int, column: int) -> np.ndarray:
    """All instances that a sample has of a modality."""
    first, last = manifest.first[row : row + 2].tolist()
    return first + np.flatnonzero(manifest.modality[first:last] == column)


def _decoded(modality: Modality, data: bytes | Corrupt) -> Value:
    if isinstance(data, Corrupt):
        return None
    try:
        return modality.decode([data])[0]
    except ValueError:
        return None


# What a value looks like


@dataclass(frozen=True)
class Words:
    """Text, wrapped to the width of a cell."""

    text: str
    colour: str = "black"

    @property
    def lines(self) -> list[str]:
        return textwrap.wrap(self.text, LETTERS, max_lines=LINES, placeholder=" …") or ["“”"]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return CELL, LINE * len(self.lines)

    def draw(self, axes: Any, x: float, y: float) -> None:
        for number, line in enumerate(self.lines):
            _write(axes, x + CELL / 2, y + LINE * number, line, color=self.colour)


@dataclass(frozen=True)
class Picture:
    """Pixels (Y, X, 3) in [0, 1], each drawn `scale` wide and high."""

    pixels: np.ndarray
    scale: float
    marks: Sequence[str] = ()
    """Pixels are numbered in these colours, row by row."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        height, width = (max(1, round(side * self.scale)) for side in self.pixels.shape[:2])
        return width, height

    def draw(self, axes: Any, x: float, y: float) -> None:
        width, height = self.size
        how = "nearest" if self.scale >= 1 else "antialiased"
        axes.imshow(self.pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation=how)
        for number, colour in enumerate(self.marks):
            down, right = divmod(number, self.pixels.shape[1])
            across, middle = x + (right + 0.5) * self.scale, y + (down + 0.5) * self.scale - LINE / 2
            _write(axes, across, middle, str(number), color=colour, fontsize=6.5)


Cell = list[Words | Picture]


def _cells(modality: Modality, values: list[list[Value]], say: Say | None) -> list[Cell]:
    """How the values of a modality look in each sample's cell."""
    limit = max((float(np.abs(value).max()) for cell in values for value in cell if value is not None), default=0) or 1

    def look(value: Value) -> Words | Picture:
        if value is None:
            return Words("damaged", RED)
        if say:
            return Words(say(value))
        if isinstance(modality, Image):
            return _picture(np.stack([value] * 3, axis=2) if value.ndim == 2 else np.moveaxis(value, 0, 2))
        if isinstance(modality, Label):
            return Words(str(int(value)))
        if isinstance(modality, Tokens):
            return Words(" ".join(map(str, value[value != END].tolist())))
        if isinstance(modality, Attributes):
            return _attributes(value)
        return _heat(value.ravel() / limit)

    return [list(map(look, cell)) for cell in values]


def _picture(pixels: np.ndarray) -> Picture:
    """In a whole multiple of its size, or scaled down to a cell."""
    longest = max(pixels.shape[:2])
    return Picture(pixels, CELL // longest if longest <= CELL else CELL / longest)


def _attributes(value: np.ndarray) -> Picture:
    """Dark where one applies; with their numbers, from 0, where there is room."""
    from matplotlib.colors import to_rgb

    drawn = _folded(np.array([to_rgb(PALE), to_rgb(DARK)])[value.astype(int)])
    return replace(drawn, marks=[("#9aa3ab", "white")[int(one)] for one in value] if drawn.scale >= MARKED else ())


def _heat(value: np.ndarray) -> Picture:
    """Numbers from -1 (blue) to 1 (red)."""
    from matplotlib import colormaps

    return _folded(colormaps["RdBu_r"](value / 2 + 0.5)[:, :3])


def _folded(colours: np.ndarray) -> Picture:
    """A vector's elements (N, 3): a strip of a few, else row by row in a grid twice as wide as it is high."""
    width = max(math.ceil(math.sqrt(2 * len(colours))), min(len(colours), CELL // ELEMENT))
    grid = np.ones((-(-len(colours) // width) * width, 3))
    grid[: len(colours)] = colours
    drawn = _picture(grid.reshape(-1, width, 3))
    return replace(drawn, scale=min(ELEMENT, drawn.scale))


# The sheet


def _save(title: str, keys: list[str], names: list[str], table: list[list[Cell]], path: Path) -> None:
    import matplotlib
    import PIL.Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, heights = list(map(_short, names)), [max(map(_height, line)) for line in table]
    left = GAP + LETTER * max(map(len, names)) + GAP
    width, height = left + len(keys) * (CELL + GAP), 2 * LINE + 2 * GAP + sum(heights) + GAP * len(heights)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    middles = [left + CELL / 2 + column * (CELL + GAP) for column in range(len(keys))]
    _write(axes, GAP, GAP / 2, title, ha="left", color=GREY)
    y = GAP + LINE
    for key, middle in zip(keys, middles, strict=True):
        _write(axes, middle, y, _short(key), color=GREY)
    y += LINE
    for name, line, tall in zip(names, table, heights, strict=True):
        axes.plot([GAP, width - GAP], [y + GAP / 2] * 2, color=PALE, linewidth=0.7)
        y += GAP
        _write(axes, left - GAP, y + (tall - LINE) / 2, name, ha="right", fontweight="bold")
        for cell, middle in zip(line, middles, strict=True):
            top = y + (tall - _height(cell)) // 2
            for part in cell:
                part.draw(axes, middle - part.size[0] // 2, top)
                top += part.size[1] + SPACE
        y += tall
    if path.suffix == ".png":  # of 256 colours: a third of the bytes where there are photographs
        canvas.draw()
        PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256).save(path, optimize=True)
        return
    with matplotlib.rc_context({"svg.hashsalt": "sheet"}):
        figure.savefig(path, metadata=FORMATS[path.suffix])


def _height(cell: Cell) -> int:
    return sum(part.size[1] for part in cell) + SPACE * (len(cell) - 1)


def _write(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """One line, whose upper edge is at y."""
    axes.text(x, y + 0.75 * LINE, text, **{"fontsize": 8, "ha": "center", "parse_math": False} | style)


def _short(name: str) -> str:
    """The end of a long name, which tells it from others."""
    return name if len(name) <= LETTERS else "…" + name[1 - LETTERS :]
