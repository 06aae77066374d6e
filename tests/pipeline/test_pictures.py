"""Pictures of a run: drawn for grey and coloured images of different sizes, beside labels and what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from modalities import AnyModality, Attributes, Image, Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.manifest import open_manifest
from pipeline.pictures import _coloured, cross_generations
from pipeline.settings import Model
from pipeline.train import build
from pipeline.writing import write
from tests.pipeline.tiny import given

KINDS: dict[str, AnyModality] = {
    "grey": Image(4, 6, hidden=(8,)),
    "photo": Image(8, 8, channels=3, codec="png", hidden=(8,)),
    "traits": Attributes(3, hidden=(8,)),
    "label": Label(4, hidden=(8,)),
}


def entry(number: int) -> Entry:
    values = {
        "grey": np.full((4, 6), number),
        "photo": np.full((8, 8, 3), (250, number, 0)),
        "traits": np.array([0, 1, number % 2]),
        "label": np.asarray(number % 4),
    }
    held = {name: value for place, (name, value) in enumerate(values.items()) if (number + place) % 3}
    return Entry(f"val/{number}", "val", held)


def test_colour_and_grey_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "d", given("drawn", KINDS, map(entry, range(6))), workers=1)
    run = Run(recipe="drawn", data=str(tmp_path / "d"), modalities=KINDS, model=Model(3))
    file = cross_generations(build(run).eval(), run, open_manifest(tmp_path / "d"), tmp_path / "drawn.png")
    pixels = plt.imread(file)[:, :, :3]
    red = (pixels[:, :, 0] > 0.9) & (pixels[:, :, 1] < 0.1) & (pixels[:, :, 2] < 0.1)
    assert red.sum() > 500  # the photographs' own colour, in the row of the data


def test_colours_keep_their_places() -> None:
    photo = np.arange(3 * 2 * 5).reshape(3, 2, 5)
    assert _coloured(photo).shape == (2, 5, 3)
    assert (_coloured(photo)[1, 4] == photo[:, 1, 4]).all()
    assert (_coloured(photo[0]) == photo[0][:, :, None]).all()
