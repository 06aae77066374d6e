"""A small corpus with every kind of modality, and untrained models of some of them, for tests of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from modalities import AnyModality, Attributes, Features, Image, Label, Sentences, Text
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.description import named
from pipeline.evaluate.subject import Subject
from pipeline.manifest import open_manifest
from pipeline.pictures import ALONE
from pipeline.pictures.page import Page, Panel
from pipeline.settings import Examine, Model
from pipeline.train import build
from pipeline.writing import write
from tests.pipeline.tiny import given

KINDS: dict[str, AnyModality] = {
    "grey": Image(4, 6, hidden=(8,)),
    "photo": Image(8, 8, channels=3, codec="png", hidden=(8,)),
    "traits": Attributes(3, hidden=(8,)),
    "label": Label(4, hidden=(8,)),
    "string": Text(vocabulary=6, length=4, embedding=4, hidden=4),
    "caption": Sentences(vocabulary=9, length=8, embedding=8, hidden=8, network="gru"),
    "says": Sentences(vocabulary=9, length=5, embedding=8, hidden=8, network="gru"),
    "numbers": Features(5, hidden=(8,)),
}
NAMES = {"label": ["ant", "bee", "cat", "dog"], "traits": ["old", "red", "big"]}
ROWS = 24


def value(name: str, number: int) -> np.ndarray:
    """What the sample of this number has of a modality."""
    return {
        "grey": np.full((4, 6), number),
        "photo": np.full((8, 8, 3), (250, number, 0)),
        "traits": np.array([0, 1, number % 2]),
        "label": np.asarray(number % 4),
        "string": np.array([2 + number % 4, 2 + number % 3, 0, 0]),
        "caption": np.array([3 + number % 5, 8, 0, 0, 0, 0, 0, 0]),
        "says": np.array([3 + number % 6, 3, 0, 0, 0]),
        "numbers": np.arange(5) + number,
    }[name]


def has(name: str, number: int) -> bool:
    """Every third sample has everything, the others lack every third modality."""
    return not number % 3 or bool((number + list(KINDS).index(name)) % 3)


def make(out: Path) -> Path:
    """The corpus as a data directory: the same samples in all three splits."""
    entries = [
        Entry(f"{split}/{number}", split, {name: value(name, number) for name in KINDS if has(name, number)})
        for split in ("train", "val", "test")
        for number in range(ROWS)
    ]
    files = {file: names for name in NAMES for file, names in named(name, NAMES[name]).items()}
    write(out, replace(given("drawn", KINDS, entries), files=files), workers=1)
    return out


def subject(
    data: Path,
    *names: str,
    system: str = "mvae",
    seed: int = 0,
    parts: tuple[str, ...] = (),
    split: str = "val",
    **others: AnyModality,
) -> Subject:
    """An untrained model of these modalities on a split; `others` read the member `grey`."""
    modalities = {name: KINDS[name] for name in names} | others
    model = Model(4, system=system)  # type: ignore[arg-type]
    run = Run("drawn", str(data), modalities, seed=seed, model=model, examine=Examine(parts=parts))
    manifest = open_manifest(data).reading(modalities)
    manifest.member_of |= {name: "grey" for name, modality in others.items() if isinstance(modality, Image)}
    return Subject(build(run).eval(), run, manifest, split, ALONE)


def panels(page: Page | None) -> dict[str, Panel]:
    """The panels of a sheet by their titles."""
    assert page is not None
    return {element.title: element for line in page.lines for element in line if isinstance(element, Panel)}
