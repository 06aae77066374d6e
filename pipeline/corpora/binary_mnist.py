"""MNIST with pixels of zero and one, and its labels: the BinaryMNIST of MVAE (section 5, supplement A).

    pairstream prepare binary-mnist --source DIR

The literature that MVAE refers to has one fixed binarisation (Salakhutdinov & Murray, 2008; Larochelle & Murray, 2011):
50,000, 10,000 and 10,000 lines of 784 zeros and ones in binarized_mnist_{train,valid,test}.amat. Where DIR holds these
files they are what is stored. They are MNIST's digits in their official order, the first 50,000 training images, the
other 10,000, the test images, so where MNIST's four idx files are beside them, each line is compared with its digit and
takes over the label. Without them all samples lack their label.

Where DIR holds MNIST's files alone, each pixel is sampled once and for ever: 1 with probability level / 255, by the
hash of the key and the seed that stands here. Splits and keys are then those of the corpus mnist. The keys of the fixed
binarisation are the same, and its splits are its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from modalities import AnyModality, Image, Label
from pipeline.corpora import mnist
from pipeline.corpora.corpus import Corpus, Entry
from pipeline.corpora.draws import draws

SEED = 2011
SIDE, PIXELS = mnist.SIDE, mnist.SIDE**2
MODALITIES: dict[str, AnyModality] = {
    "image": Image(height=SIDE, width=SIDE, levels=1),
    "label": Label(classes=10),
}


class File(NamedTuple):
    """One official file of the fixed binarisation, and which of MNIST's digits it shows."""

    name: str
    split: str
    part: str
    first: int
    lines: int


FILES = (
    File("binarized_mnist_train.amat", "train", "train", 0, 50_000),
    File("binarized_mnist_valid.amat", "val", "train", 50_000, 10_000),
    File("binarized_mnist_test.amat", "test", "t10k", 0, 10_000),
)
NAMES = ", ".join(file.name for file in FILES)
CHUNK = 4096
"""Lines that are read at a time."""
ALIKE = 0.5
"""Least correlation of a line with its digit: sampled pixels have 0.73 and more, with another digit 0.25 on average."""


class Line(NamedTuple):
    """Where the pixels of a sample lie, and the digit that they show, where that is known."""

    file: str
    number: int
    digit: mnist.Place | None


def entries(source: Path | None) -> list[Entry]:
    """All digits in MNIST's order. Raises UserError where files are missing, not whole, or do not fit each other."""
    assert source is not None, "prepare gives it"
    fixed, labelled = _present(source)
    if not fixed:
        return mnist.entries(source)
    return [entry for file in FILES for entry in _fixed(source, file, labelled)]


def notes(source: Path | None) -> list[str]:
    """Which binarisation these files give, and whether labels come with it."""
    assert source is not None, "prepare gives it"
    fixed, labelled = _present(source)
    if not fixed:
        return [
            f"pixels: sampled once, 1 with probability level / 255 (seed {SEED}), not the fixed binarisation of the "
            f"literature: {source} has no {FILES[0].name}"
        ]
    lack = "labels: none, every sample lacks its own, since MNIST's files are not beside the binarisation"
    return ["pixels and splits: the fixed binarisation's", "labels: MNIST's, whose digits fit" if labelled else lack]


def load(entry: Entry) -> dict[str, np.ndarray]:
    """The pixels (28, 28), 0 or 1, and the label of one digit, where it has one."""
    if not isinstance(entry.source, Line):
        digit = mnist.load(entry)
        return digit | {"image": sampled(entry.key, digit["image"])}
    file, number, place = entry.source
    image = np.unpackbits(_packed(file)[number]).reshape(SIDE, SIDE)
    return {"image": image} | ({"label": mnist.load(entry._replace(source=place))["label"]} if place else {})


def sampled(key: str, levels: np.ndarray) -> np.ndarray:
    """Zeros and ones of the shape of `levels`, each 1 with probability level / 255: the same for a key for ever."""
    return draws([key], SEED, levels.size).reshape(levels.shape) % np.uint64(255) < levels


# The fixed binarisation


def _present(source: Path) -> tuple[bool, bool]:
    """Whether the fixed binarisation is there, and whether MNIST is."""
    missing = [file.name for file in FILES if not (source / file.name).is_file()]
    labelled = any(mnist.find_file(source, name) for name in mnist.FILES)
    if missing and (len(missing) < len(FILES) or not labelled):
        raise UserError(f"{source} has no {missing[0]}: expected are {NEEDS}")
    return not missing, labelled


def _fixed(source: Path, file: File, labelled: bool) -> Iterator[Entry]:
    path = source / file.name
    lines = _packed(str(path))
    if len(lines) != file.lines:
        raise UserError(f"{path} has {len(lines):,} lines, expected {file.lines:,}: it is not whole, fetch it again")
    if labelled:
        _compare(path, lines, mnist.read_part(str(source), file.part)[0][file.first :])
    for number in range(len(lines)):
        digit = mnist.Place(str(source), file.part, file.first + number)
        line = Line(str(path), number, digit if labelled else None)
        yield Entry(f"{digit.part}/{digit.number:05d}", file.split, line)


def _compare(path: Path, lines: np.ndarray, images: np.ndarray) -> None:
    """Raise UserError unless each line shows the digit at its place."""
    for start in range(0, len(lines), CHUNK):
        bits = np.unpackbits(lines[start : start + CHUNK], axis=1).astype(np.float32)
        digits = images[start : start + CHUNK].reshape(-1, PIXELS)
        levels = np.zeros_like(bits)  # stay zero where MNIST has fewer digits, and are like nothing
        levels[: len(digits)] = digits[: len(levels)]
        for values in (bits, levels):
            values -= values.mean(1, keepdims=True)
        product, *squares = (np.einsum("np,np->n", *pair) for pair in ((bits, levels), (bits, bits), (levels, levels)))
        other = product <= ALIKE * np.sqrt(squares[0] * squares[1])
        if other.any():
            raise UserError(
                f"{path}, line {start + 1 + int(other.argmax()):,} does not show the digit at its place in MNIST's "
                "files: they are not of the same data, or not in the same order (without MNIST's files beside it, all "
                "samples lack their labels)"
            )


@lru_cache
def _packed(file: str) -> np.ndarray:
    """The lines of a file, (N, 98) bytes of eight pixels, read once in each process. Raises UserError for a bad one."""
    with open(file, "rb") as stream:
        line = stream.readline()
        if not re.fullmatch(rb"[01]( [01]){%d}\s*\n" % (PIXELS - 1), line):
            raise _bad(file, 1)
        may_differ = np.zeros(len(line), np.uint8)
        may_differ[: 2 * PIXELS : 2] = 1
        blank = np.frombuffer(line, np.uint8) & ~may_differ
        stream.seek(0)
        packed: list[np.ndarray] = []
        while data := stream.read(CHUNK * len(line)):
            whole = len(data) // len(line)
            text = np.frombuffer(data, np.uint8, whole * len(line)).reshape(whole, len(line))
            bad = (text ^ blank > may_differ).any(1)
            if bad.any() or len(data) % len(line):
                raise _bad(file, len(packed) * CHUNK + 1 + (int(bad.argmax()) if bad.any() else whole))
            packed.append(np.packbits(text[:, : 2 * PIXELS : 2] & 1, axis=1))
    return np.concatenate(packed)


def _bad(file: str, line: int) -> UserError:
    return UserError(
        f"{file}, line {line:,}: expected {PIXELS} zeros and ones with a blank between them; it was cut off or "
        "damaged, fetch it again"
    )


NEEDS = f"{mnist.NEEDS}, or {NAMES}, or both"
BINARY_MNIST = Corpus(
    "binary-mnist",
    "70,000 handwritten 28x28 digits of zeros and ones, with labels",
    MODALITIES,
    entries,
    load,
    needs=NEEDS,
    notes=notes,
)
