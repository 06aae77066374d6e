"""MNIST's digits with partners: pictures of the same class from another domain (MMVAE section 4.2).

The paper pairs each digit at random with 20 pictures of its class. Here a picture is stored once, as a sample of the
split `pool`, and a digit's sample names its partners by their keys: 20 instances of one modality. Which they are
follows from the digit's key and the seed that stands here. Pictures are divided among the splits before they are
chosen, so that no partner of a test digit is one in training. Where a class has fewer than 20, all of them are
partners; where it has none, the digit lacks the modality. Both are counted and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from modalities import Image, Label, Modality
from pipeline.corpora import mnist
from pipeline.corpora.corpus import Entry, Listing
from pipeline.corpora.draws import draws
from pipeline.order import permute
from pipeline.shards import POOL

SEED = 2019
PARTNERS = 20
Cell = tuple[str, int]
"""A split and a class."""


class Picture(NamedTuple):
    """A picture of the other domain."""

    key: str
    split: str
    """Of the digits whose partner it may be."""
    label: int
    source: Any


def paired(digits: Sequence[Entry], modality: str, pictures: Sequence[Picture]) -> Listing:
    """MNIST's digits, each with up to 20 links to pictures of its split and class, and then those pictures."""
    pictures_of: dict[Cell, list[str]] = {}
    for picture in pictures:
        pictures_of.setdefault((picture.split, picture.label), []).append(picture.key)
    digits_of: dict[Cell, list[str]] = {}
    for digit in digits:
        digits_of.setdefault((digit.split, _label(digit.source)), []).append(digit.key)

    links: dict[str, dict[str, list[str]]] = {}
    notes = []
    for (split, label), keys in sorted(digits_of.items()):
        known = pictures_of.get((split, label), [])
        if len(known) < PARTNERS:
            has = f"have {len(known)} partners each instead of {PARTNERS}" if known else "have none: they lack it"
            notes.append(f"{modality}: {len(keys):,} digits {label} of {split} {has}")
        if known:
            chosen = _partners(keys, len(known)).tolist()
            links |= {key: {modality: [known[one] for one in row]} for key, row in zip(keys, chosen, strict=True)}
    linked = [digit._replace(links=links.get(digit.key)) for digit in digits]
    return Listing([*linked, *(Entry(picture.key, POOL, picture.source) for picture in pictures)], notes)


def _partners(keys: Sequence[str], size: int) -> np.ndarray:
    """For each key 20 different numbers below `size`, or all of them: (len(keys), min(20, size))."""
    count = min(PARTNERS, size)
    index = np.tile(np.arange(count), (len(keys), 1))
    return permute(index, size, draws(keys, SEED, 1))


def _label(place: mnist.Place) -> int:
    return int(mnist.read_part(place.directory, place.part)[1][place.number])


def load_digit(entry: Entry) -> dict[str, np.ndarray]:
    """What an MNIST digit holds itself: the picture (28, 28) and its label."""
    digit = mnist.load(entry)
    return {"mnist": digit["image"], "label": digit["label"]}


def modalities(name: str, partner: Image) -> dict[str, Modality]:
    """MNIST's digit, its partners, and the label of both."""
    return {"mnist": Image(height=mnist.SIDE, width=mnist.SIDE), name: partner, "label": Label(classes=10)}
