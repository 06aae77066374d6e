"""Images given a class, a text or attributes: z ~ q(z | x_2) (MVAE figure 2 b, d, f, h)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from modalities import Attributes, Label
from modalities.text import Tokens
from pipeline.evaluate.subject import Subject
from pipeline.pictures.looks import Face, Words, faces, titled
from pipeline.pictures.made import Value, Values, batch_of, decoded, held, makes, rows, samples_of
from pipeline.pictures.page import Page, Panel, Tile, side_for

SAMPLES = 10
"""Of each condition."""
CLASSES, ROWS = 20, 8
"""Classes of a label, and rows of the data whose texts or attributes are given, at most."""


@dataclass(frozen=True)
class Condition:
    """A value of one modality."""

    name: str
    value: np.ndarray
    said: str
    """What it reads like."""
    data: Mapping[str, Value] = field(default_factory=dict)
    """What its row of the data has beside it, where it is one's."""


def conditions(subject: Subject) -> Iterator[tuple[str, list[Condition]]]:
    """Groups by title: a label's classes, attributes that are modalities, different texts or attributes of rows."""
    words, single = Words.of(subject), []
    for name, modality in subject.run.modalities.items():
        if isinstance(modality, Label):
            classes = map(np.asarray, range(min(modality.classes, CLASSES)))
            yield name, [Condition(name, one, words.value(name, one)) for one in classes]
        elif isinstance(modality, Attributes) and modality.count == 1:
            single.append(Condition(name, np.ones(1), name))
        elif isinstance(modality, Tokens | Attributes) and (some := _of_rows(subject, name, words)):
            yield name, some
    if single:
        yield "one attribute", single


def _of_rows(subject: Subject, name: str, words: Words) -> list[Condition]:
    """The first different values among some rows of the split."""
    images = [part for face in faces(subject.run) for part in face.names]
    batch = rows(subject, 4 * ROWS, [name, *images])
    data = held(batch)
    found = {value.tobytes(): row for row, value in reversed([*enumerate(data[name])]) if value is not None}
    return [
        Condition(name, value, words.value(name, value), {image: data[image][row] for image in images})
        for row in sorted(found.values())[:ROWS]
        if (value := data[name][row]) is not None
    ]


def samples(subject: Subject, name: str, values: np.ndarray, images: Sequence[str]) -> list[Values]:
    """The images decoded of SAMPLES z ~ q(z | x_name) of each value (B, …), by sample."""
    batch = batch_of(subject, name, values)
    z_KBZ = samples_of(subject, batch, [name], SAMPLES, "conditional")
    return [decoded(subject, images, z_BZ, batch) for z_BZ in z_KBZ]  # type: ignore[misc]


def sheet(subject: Subject) -> Page | None:
    """A row of samples for each condition, beside the data's picture where it is a row's; None where nothing is made
    from one such modality alone."""
    lines = []
    for title, group in conditions(subject):
        shown = [face for face in faces(subject.run) if {*face.names} <= {*makes(subject, [group[0].name])}]
        if not shown:
            continue
        across = min(3, len(shown))
        side = side_for(SAMPLES + 1, across, [face.longest for face in shown], most=64)
        panels = [_panel(subject, title, group, face, side) for face in shown]
        lines += [panels[start : start + across] for start in range(0, len(panels), across)]
    if not lines:
        return None
    return Page(titled(subject, "samples given one modality", data=True), lines)


def _panel(subject: Subject, title: str, group: list[Condition], face: Face, side: int) -> Panel:
    real = any(condition.data for condition in group)
    table: list[list[Tile]] = []
    for name, same in groupby(group, lambda condition: condition.name):
        some = list(same)
        made = samples(subject, name, np.stack([condition.value for condition in some]), face.names)
        drawn = [face.pictures(values) for values in made]
        for row, condition in enumerate(some):
            own = [Tile(one) for one in face.pictures({k: [v] for k, v in condition.data.items()})] if real else []
            table.append([*own, *(Tile(pictures[row]) for pictures in drawn)])
    heads = ["data", "samples"] if real else []
    return Panel(f"{face.title} given {title}", table, side, [condition.said for condition in group], heads)
