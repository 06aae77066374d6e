"""What a model made of what somebody gave it, as a page and as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np

from modalities import Features, Image
from pipeline.description import readings
from pipeline.packaging import Packaged
from pipeline.pictures.looks import Words, faces
from pipeline.pictures.made import Value
from pipeline.pictures.page import Page, Panel, Tile, side_for

ACROSS, MOST, TOLD = 8, 64, 16
"""Pictures in a row, of one modality at most, and lines of text beneath them at most."""


def words_of(packaged: Packaged) -> Words:
    """What the model's values read like."""
    return Words(packaged.run.modalities, readings(packaged.files, packaged.run.modalities))


def lines(packaged: Packaged, values: Mapping[str, np.ndarray]) -> list[str]:
    """What the values (K, …) that are neither pictures nor features read like, a line each; none where all are."""
    words, kinds = words_of(packaged), packaged.run.modalities
    told = [name for name in values if not isinstance(kinds[name], Image | Features)]
    count = len(next(iter(values.values())))
    return [
        "; ".join(f"{name}: {words.value(name, values[name][row])}" for name in told)
        for row in range(count * bool(told))
    ]


def sheet(packaged: Packaged, given: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]) -> Page | None:
    """The pictures that are given, and beside them those that were made; None where no picture was.

    Parts of one picture (`examine.parts`) are shown together, those that were not made as they were given.
    """
    words, everything = words_of(packaged), faces(packaged.run)
    shown = [face for face in everything if set(face.names) & set(made)]
    if not shown:
        return None
    count = min(len(next(iter(made.values()))), MOST)
    across = min(3, len(shown))
    side = side_for(ACROSS, across, [face.longest for face in shown], most=112)
    whole: dict[str, list[Value]] = {
        name: [*made[name][:count]] if name in made else [given.get(name)] * count for name in packaged.run.modalities
    }
    told: dict[str, list[Value]] = {name: whole[name] for name in made}
    panels = []
    for face in shown:
        tiles = [Tile(one, words.short(told, row)) for row, one in enumerate(face.pictures(whole))]
        panels.append(Panel(face.title, [tiles[row : row + ACROSS] for row in range(0, count, ACROSS)], side))
    inputs = [face for face in everything if set(face.names) & set(given)]
    own: dict[str, list[Value]] = {name: [given.get(name)] for name in packaged.run.modalities}
    first = [Panel(f"given: {face.title}", [[Tile(face.pictures(own)[0])]], side) for face in inputs]
    rows = [first] if first else []
    rows += [panels[start : start + across] for start in range(0, len(panels), across)]
    said = [
        name if isinstance(packaged.run.modalities[name], Image | Features) else f"{name} “{words.value(name, value)}”"
        for name, value in given.items()
    ]
    title = f"{packaged.run.recipe}, {packaged.run.model.system}: made of {' and '.join(said) or 'nothing: the prior'}"
    long = [f"{row + 1}  {text}" for row in range(min(count, TOLD)) if (text := words.long(told, row))]
    return Page(title, rows, [*chain(["From the left:"] if long else [], long)])
