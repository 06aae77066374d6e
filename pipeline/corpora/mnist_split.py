"""MNIST-Split and MNIST-Split-3: the upper and lower part of MNIST's digits as modalities, the label beside them.

    pairstream prepare mnist-split --source DIR         top and bottom half, 14x28 pixels each
    pairstream prepare mnist-split3 --source DIR        top, middle and bottom, 9x28, 10x28 and 9x28 pixels

DIR holds MNIST's four official idx files, gzipped (.gz) or not; keys and splits are those of the corpus mnist. The
parts are those of SVAE's paper (section 4), which says of three only that they are equal: 28 rows do not divide so, and
the odd one is the middle's. Its models see the parts alone; the label is for the oracle that judges them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modalities import AnyModality, Image, Label
from pipeline.corpora import mnist
from pipeline.corpora.corpus import Corpus, Entry

HALVES = {"top": slice(0, 14), "bottom": slice(14, 28)}
THIRDS = {"top": slice(0, 9), "middle": slice(9, 19), "bottom": slice(19, 28)}
"""The rows of pixels of each part."""


def load_halves(entry: Entry) -> dict[str, np.ndarray]:
    """Top and bottom (14, 28) and the label of one digit."""
    return _cut(entry, HALVES)


def load_thirds(entry: Entry) -> dict[str, np.ndarray]:
    """Top (9, 28), middle (10, 28), bottom (9, 28) and the label of one digit."""
    return _cut(entry, THIRDS)


def _cut(entry: Entry, parts: Mapping[str, slice]) -> dict[str, np.ndarray]:
    digit = mnist.load(entry)
    return {name: digit["image"][rows] for name, rows in parts.items()} | {"label": digit["label"]}


def _modalities(parts: Mapping[str, slice]) -> dict[str, AnyModality]:
    images = {name: Image(height=rows.stop - rows.start, width=mnist.SIDE) for name, rows in parts.items()}
    return {**images, "label": Label(classes=10)}


MNIST_SPLIT = Corpus(
    "mnist-split",
    "MNIST's digits as top half, bottom half and label",
    _modalities(HALVES),
    mnist.entries,
    load_halves,
    needs=mnist.NEEDS,
)
MNIST_SPLIT3 = Corpus(
    "mnist-split3",
    "MNIST's digits as top, middle, bottom and label",
    _modalities(THIRDS),
    mnist.entries,
    load_thirds,
    needs=mnist.NEEDS,
)
