"""One picture's versions made of each other: MVAE's transformations (section 6, figures 4 and 11 to 14)."""

from __future__ import annotations

from pipeline.evaluate.subject import Subject
from pipeline.pictures.generations import from_subset
from pipeline.pictures.looks import faces, titled
from pipeline.pictures.made import Value, held, rows
from pipeline.pictures.page import Page, Panel, Tile, side_for

COLUMNS = 8
"""Rows of the data that are shown, as many as in the paper."""
FEW = 3
"""Pictures of a row from which on they count as versions of the first one."""


def sheet(subject: Subject) -> Page | None:
    """Left, everything made of the first image beside what is real; right, the first image made of every other one.

    None where a run has fewer than FEW pictures, or its system makes nothing of any of them alone.
    """
    shown = faces(subject.run)
    if len(shown) < FEW:
        return None
    first, *others = shown
    batch = rows(subject, COLUMNS, [name for face in shown for name in face.names])
    data = {face: face.pictures(held(batch)) for face in shown}
    side, panels = side_for(COLUMNS, 2, [face.longest for face in shown], most=96), []
    if made := from_subset(subject, batch, first.names):
        lines = [(f"{first.title}, given", data[first]), ("made", first.pictures(made))]
        for face in others:
            lines += [(f"{face.title}, real", data[face]), ("made", face.pictures(made))]
        panels.append(_panel(f"{first.title} → everything", lines, side))
    lines = [(f"{first.title}, real", data[first])]
    for face in others:
        if made := from_subset(subject, batch, face.names):
            lines += [(f"{face.title}, given", data[face]), (f"{first.title}, made", first.pictures(made))]
    if len(lines) > 1:
        panels.append(_panel(f"each of the others → {first.title}", lines, side))
    if not panels:
        return None
    return Page(titled(subject, "pictures made of each other", data=True), [panels])


def _panel(title: str, lines: list[tuple[str, list[Value]]], side: int) -> Panel:
    """Rows two by two, beginning with one by itself where their number is odd."""
    names, table = zip(*lines, strict=True)
    first = 2 - len(lines) % 2
    return Panel(
        title, [[Tile(one) for one in pictures] for pictures in table], side, names, apart=range(first, len(lines), 2)
    )
