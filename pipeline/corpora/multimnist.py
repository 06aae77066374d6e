"""MultiMNIST: none to four of MNIST's digits on one 50x50 canvas, and the string that they spell (MVAE section 5).

    pairstream prepare multimnist --source DIR       DIR holds MNIST's four official idx files, gzipped (.gz) or not

The papers have "between 0 and 4 digits composed together on a 50x50 canvas", "located in four fixed locations" (MVAE
supplement A; earlier version, section 4.3), and do not say which. Here they are the quarters of the canvas: a digit is
scaled from 28x28 to 25x25 pixels (the mean of what a pixel covers), so that none overlaps another. How many digits
there are is uniform over 0 to 4, at which places over all choices of so many, which digits over those of the split.
(The authors' published code scales to 21 pixels and fills the places in their order, so that two digits are always the
upper two.) The string is read from top left to bottom right; digit d is token d + 2, then come ends.

There are as many samples in a split as it has digits in the corpus mnist, 50,000, 10,000 and 10,000, and they are made
of those digits only: none of the test's is in training. What a sample shows follows from its key, as train/00000, and
the seed that stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modalities import AnyModality, Image, Text
from modalities.text import END, START
from pipeline.corpora import mnist
from pipeline.corpora.corpus import Corpus, Entry
from pipeline.corpora.draws import draws
from pipeline.description import named

SEED = 2018
CELL = 25
PLACES = ((0, 0), (0, CELL), (CELL, 0), (CELL, CELL))
"""Top left corner of each digit, in the order in which the string is read."""
MODALITIES: dict[str, AnyModality] = {
    "image": Image(height=2 * CELL, width=2 * CELL),
    "string": Text(vocabulary=START + 11, length=len(PLACES) + 1),
}


class Canvas(NamedTuple):
    """What one sample is composed of."""

    directory: str
    part: str
    """MNIST's official file."""
    numbers: tuple[int, ...]
    """By place, the position of its digit in that file; negative where the place is empty."""


def entries(source: Path | None) -> list[Entry]:
    """All canvases, split by split. Raises UserError as MNIST's entries do."""
    digits: dict[str, list[mnist.Place]] = {}
    for digit in mnist.entries(source):
        digits.setdefault(digit.split, []).append(digit.source)
    return [canvas for split, places in digits.items() for canvas in _canvases(split, places)]


def _canvases(split: str, digits: Sequence[mnist.Place]) -> list[Entry]:
    """As many as there are digits, made of these."""
    keys = [f"{split}/{number:05d}" for number in range(len(digits))]
    drawn, places = draws(keys, SEED, 1 + 2 * len(PLACES)), len(PLACES)
    count = drawn[:, :1] % np.uint64(places + 1)
    turn = drawn[:, 1 : 1 + places].argsort(1).argsort(1)  # a random order in which the places are filled
    chosen = np.array([digit.number for digit in digits])[drawn[:, 1 + places :] % np.uint64(len(digits))]
    directory, part, _ = digits[0]
    numbers = np.where(turn < count, chosen, -1).tolist()
    return [Entry(key, split, Canvas(directory, part, tuple(row))) for key, row in zip(keys, numbers, strict=True)]


def load(entry: Entry) -> dict[str, np.ndarray]:
    """The canvas (50, 50) and its string (5,), ends included."""
    import cv2

    canvas: Canvas = entry.source
    images, labels = mnist.read_part(canvas.directory, canvas.part)
    image = np.zeros((2 * CELL, 2 * CELL), np.uint8)
    tokens = []
    for (top, left), number in zip(PLACES, canvas.numbers, strict=True):
        if number >= 0:
            small = cv2.resize(images[number], (CELL, CELL), interpolation=cv2.INTER_AREA)
            image[top : top + CELL, left : left + CELL] = small
            tokens.append(START + 1 + int(labels[number]))
    return {"image": image, "string": np.array(tokens + [END] * (len(PLACES) + 1 - len(tokens)))}


MULTIMNIST = Corpus(
    "multimnist",
    "70,000 canvases of none to four MNIST digits, and the strings that they spell",
    MODALITIES,
    entries,
    load,
    needs=mnist.NEEDS,
    files=named("string", ["", "", *"0123456789"]),
)
