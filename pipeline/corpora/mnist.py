"""MNIST's handwritten digits (LeCun et al., 1998), 28x28 pixels of 256 grey levels, and their labels.

    pairstream prepare mnist --source DIR       DIR holds the four official idx files, gzipped (.gz) or not

FashionMNIST (Xiao et al., 2017), pieces of clothing in ten classes, comes in files of the same names and format:

    pairstream prepare fashion-mnist --source DIR

The official test images are the split `test`. Of the 60,000 training images the papers validate on 10,000 and do not
say on which (MVAE, earlier version, section 4.1): here it is the sixth whose keys have the smallest hashes, for ever
the same. A key names the official file and the place in it, from 0: train/00000 to train/59999 (also those of the split
`val`), t10k/00000 to t10k/09999.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from modalities import AnyModality, Image, Label
from pipeline.corpora.corpus import Corpus, Entry, by_hash
from pipeline.description import named

SIDE, CLASSES = 28, 10
MODALITIES: dict[str, AnyModality] = {"image": Image(height=SIDE, width=SIDE), "label": Label(classes=CLASSES)}
PARTS = ("train", "t10k")
FILES = tuple(f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1"))
VAL = 6
"""One in so many training images is validation data."""


class Place(NamedTuple):
    """Where a sample lies: the directory, the official file's first word, and the position in it."""

    directory: str
    part: str
    number: int


def entries(source: Path | None) -> list[Entry]:
    """All digits in their official order. Raises UserError where the files are not whole, or do not fit each other."""
    assert source is not None, "prepare gives it"
    counts = {part: len(read_part(str(source), part)[1]) for part in PARTS}
    named = {f"{part}/{n:05d}": Place(str(source), part, n) for part, count in counts.items() for n in range(count)}
    training = [key for key, place in named.items() if place.part == "train"]
    val = validation(training)
    split = {key: "val" if key in val else "train" for key in training}
    return [Entry(key, split.get(key, "test"), place) for key, place in named.items()]


def validation(keys: Sequence[str]) -> set[str]:
    """Which of these training images are validation data: the sixth with the smallest hashes."""
    return set(by_hash(keys, seed=1998)[: len(keys) // VAL])


def load(entry: Entry) -> dict[str, np.ndarray]:
    """The picture (28, 28) and the label of one digit."""
    place: Place = entry.source
    images, labels = read_part(place.directory, place.part)
    return {"image": images[place.number], "label": np.asarray(labels[place.number])}


@lru_cache
def read_part(directory: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, 28, 28) and the labels (N,) of a part, read once in each process. Raises UserError."""
    images_file, labels_file = (_file(Path(directory), name) for name in FILES if name.startswith(part))
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{images_file}: expected images of {SIDE} x {SIDE} pixels, got {images.shape[1:]}")
    if len(images) != len(labels):
        raise UserError(
            f"{images_file} has {len(images):,} images, {labels_file.name} {len(labels):,} labels: they are not of "
            "the same data, fetch both again"
        )
    if (labels >= CLASSES).any():
        number = int((labels >= CLASSES).argmax())
        raise UserError(
            f"{labels_file}: the label of image {number:,} is {labels[number]}, expected 0 to {CLASSES - 1}: fetch it "
            "again"
        )
    return images, labels


def find_file(directory: Path, name: str) -> Path | None:
    """The file of that name, gzipped or not; None where neither is there."""
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def _file(directory: Path, name: str) -> Path:
    path = find_file(directory, name)
    if path is None:
        raise UserError(f"{directory} has no {name}.gz: expected are {', '.join(FILES)}, each with or without .gz")
    return path


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an idx file of unsigned bytes, gzipped where the name ends in .gz, with that many dimensions.

    The format is described where MNIST is published: 0x0800 + dimensions and each dimension as big-endian 32-bit
    numbers, then the elements in C order. Raises UserError where the file is none or not whole.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} cannot be unpacked ({error}): it was cut off or damaged, fetch it again") from None
    magic, header = 0x0800 + dimensions, 4 + 4 * dimensions
    if data[:4] != magic.to_bytes(4) or len(data) < header:
        raise UserError(
            f"{path} is no idx file of {dimensions} dimension(s): it begins with {data[:4].hex() or 'nothing'}, "
            f"expected {magic:08x}"
        )
    shape = tuple(map(int, np.frombuffer(data, ">u4", dimensions, offset=4)))
    if len(data) != header + math.prod(shape):
        raise UserError(
            f"{path}: expected {header + math.prod(shape):,} bytes for the shape {shape} in its header, got "
            f"{len(data):,}: fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


NEEDS = f"the official files {', '.join(FILES)} (each with or without .gz)"
MNIST = Corpus("mnist", "70,000 handwritten 28x28 digits with labels", MODALITIES, entries, load, needs=NEEDS)
FASHION_MNIST = Corpus(
    "fashion-mnist",
    "70,000 28x28 pictures of clothing with labels",
    MODALITIES,
    entries,
    load,
    needs=NEEDS,
    files=named(
        "label",
        ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    ),
)
