"""What is made of every subset of the modalities, and the variety of what is made of one (MMVAE figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pipeline.batch import Batch
from pipeline.evaluate.subject import Subject
from pipeline.pictures.looks import Face, Words, faces, titled
from pipeline.pictures.made import Values, decoded, held, lacking, makes, mean_of, rows, samples_of
from pipeline.pictures.page import Page, Panel, Tile, side_for
from pipeline.sheet import RED

COLUMNS, FEWER = 12, 8
"""Rows of the data that are shown, and where there are several pictures of each."""
INPUTS, SAMPLES = 8, 6
"""Inputs of one modality, and samples of each."""
MANY = 3
"""Image modalities beyond which there is no grid for every two of them."""


def cross_generations(subject: Subject) -> Page | None:
    """A row of the data, then a row per subset of modalities: everything decoded from that subset alone, at the mean.

    Labels and short texts stand below; one that differs from the data's is red. What a system does not generate from a
    subset shows the data where it is given, and is blank where it is not; so is a sample that lacks what is given.
    """
    shown, words = faces(subject.run), Words.of(subject)
    if not shown:
        return None
    batch = rows(subject, COLUMNS if len(shown) == 1 else FEWER)
    data, across = held(batch), min(3, len(shown))
    table = {"data": data, **from_subsets(subject, batch)}
    side = side_for(len(batch), across, [face.longest for face in shown], most=72)
    panels = []
    for face in shown:
        lines = []
        for values in table.values():
            colours = [RED if words.differs(values, data, row) else "black" for row in range(len(batch))]
            pictures = face.pictures(values)
            lines.append([Tile(one, words.short(values, row), colours[row]) for row, one in enumerate(pictures)])
        panels.append(Panel(face.title, lines, side, list(table), apart=[1]))
    title = titled(subject, "everything decoded from a subset of the data", data=True)
    notes = ["red: differs from the data"] if any(words.short(data, row) for row in range(len(batch))) else []
    return Page(title, [panels[start : start + across] for start in range(0, len(panels), across)], notes)


def from_subsets(subject: Subject, batch: Batch) -> dict[str, Values]:
    """By title what is made of each subset that the system makes anything of; with many modalities of one and all."""
    names = list(subject.run.modalities)
    sizes = [*range(1, len(names) + 1)] if len(names) <= 3 else [1, len(names)]
    made = {}
    for subset in (subset for size in sizes for subset in combinations(names, size)):
        if values := from_subset(subject, batch, subset):
            made["given " + ("all" if len(subset) > 3 else "+".join(subset))] = values
    return made


def from_subset(subject: Subject, batch: Batch, given: Sequence[str]) -> Values:
    """Everything at the mean of q(z | x_given), and the data where it is given and not made; {} where nothing is."""
    made = makes(subject, given)
    if not made:
        return {}
    data, nothing = held(batch.only(frozenset(given))), lacking(batch, given)
    values = {**data, **decoded(subject, made, mean_of(subject, batch, given), batch.only(frozenset(given)))}
    return {
        name: [None if gone else one for one, gone in zip(some, nothing, strict=True)] for name, some in values.items()
    }


def cross_samples(subject: Subject) -> Page | None:
    """A grid for every two image modalities: inputs, and below each the other decoded of samples z ~ q(z | input).

    None where there are no images or more than MANY, and where the system makes nothing of one of them alone.
    """
    shown = faces(subject.run)
    inputs = [name for face in shown for name in face.names]
    if not 1 <= len(inputs) <= MANY:
        return None
    side = side_for(INPUTS, max(2, len(shown)), [face.longest for face in shown], most=64)
    grids = []
    for given in inputs:
        made = [face for face in shown if {*face.names} <= {*makes(subject, [given])}]
        grids.append([_grid(subject, given, face, side) for face in made])
    panels = [panel for line in grids for panel in line]
    if not panels:
        return None
    lines = [panels] if len(shown) == 1 else [line for line in grids if line]
    return Page(titled(subject, "what is decoded of samples from one modality's posterior", data=True), lines)


def variety(subject: Subject, batch: Batch, given: str, names: Sequence[str]) -> list[Values]:
    """These modalities decoded of SAMPLES z ~ q(z | x_given), by sample."""
    shown = batch.only(frozenset([given]))
    z_KBZ = samples_of(subject, batch, [given], SAMPLES, "cross")
    return [decoded(subject, names, z_BZ, shown) for z_BZ in z_KBZ]  # type: ignore[misc]


def _grid(subject: Subject, given: str, face: Face, side: int) -> Panel:
    batch = rows(subject, INPUTS, [given])
    (own,) = (face for face in faces(subject.run) if given in face.names)
    inputs = own.pictures(held(batch.only(frozenset([given]))))
    table = [inputs, *(face.pictures(values) for values in variety(subject, batch, given, face.names))]
    names = ["given", "samples", *[""] * (SAMPLES - 1)]
    return Panel(f"{given} → {face.title}", [[Tile(one) for one in line] for line in table], side, names, apart=[1])
