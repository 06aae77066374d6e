"""MNIST-SVHN: MNIST's digits, each paired with 20 house numbers of its class (MMVAE section 4.2; SVAE section 4).

    pairstream prepare mnist-svhn --source DIR

DIR holds MNIST's four official idx files, gzipped (.gz) or not, and train_32x32.mat and test_32x32.mat, the cropped
digits of SVHN (Netzer et al., 2011): MATLAB files with pictures X (32, 32, 3, N) and classes y (N, 1), in which 10
stands for the digit 0.

Keys and splits of the digits are those of the corpus mnist; partners are chosen as `pipeline.corpora.partners` says.
The house numbers are the split `pool`, stored as PNG; a key names the official file and the place in it, from 0, as
svhn/train/00000. The partners of test digits come from the test file, those of the split `val` from the sixth of the
training file whose keys have the smallest hashes.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from modalities import Image
from pipeline.corpora import mnist, partners
from pipeline.corpora.corpus import Corpus, Entry, Listing, of_listing
from pipeline.corpora.partners import Picture

SIDE = 32
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
NEEDS = f"{mnist.NEEDS}, {' and '.join(FILES.values())}"


class Place(NamedTuple):
    """Where a house number lies."""

    file: str
    number: int


@lru_cache(maxsize=1)
def _listing(source: Path) -> Listing:
    """MNIST's digits, then the house numbers; which of the first have fewer partners, or none.

    Raises UserError where files are missing or not whole.
    """
    missing = [file for file in FILES.values() if not (source / file).is_file()]
    if missing:
        raise UserError(f"{source} has no {missing[0]}: expected are {NEEDS}")
    digits = mnist.entries(source)
    return partners.paired(digits, "svhn", [picture for part in FILES for picture in _pictures(source, part)])


entries, notes = of_listing(_listing)


def _pictures(source: Path, part: str) -> list[Picture]:
    file = str(source / FILES[part])
    labels = read_mat(file)[1].tolist()
    keys = [f"svhn/{part}/{number:05d}" for number in range(len(labels))]
    val = mnist.validation(keys) if part == "train" else ()
    return [
        Picture(key, "val" if key in val else part, label, Place(file, number))
        for number, (key, label) in enumerate(zip(keys, labels, strict=True))
    ]


def load(entry: Entry) -> dict[str, np.ndarray]:
    """An MNIST digit (28, 28) and its label, or the house number (32, 32, 3), red first, that is a partner."""
    if isinstance(entry.source, mnist.Place):
        return partners.load_digit(entry)
    file, number = entry.source
    return {"svhn": read_mat(file)[0][..., number]}


@lru_cache
def read_mat(file: str) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (32, 32, 3, N) and the digits (N,) of an official file, read once in each process.

    Raises UserError where the file is none or not whole.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

    with open(file, "rb") as stream:
        try:
            held = loadmat(stream, variable_names=("X", "y"))
        # Each of these scipy raises for some file that was cut off or is none.
        except (MatReadError, zlib.error, OSError, IndexError, TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"{file} cannot be read ({error}): it was cut off or damaged, fetch it again") from None
    lacking = [name for name in ("X", "y") if name not in held]
    if lacking:
        raise UserError(
            f"{file} has no variable {lacking[0]}: expected are X and y of SVHN's cropped digits, fetch it again"
        )
    pictures, classes = held["X"], held["y"]
    if pictures.shape[:-1] != (SIDE, SIDE, 3) or pictures.dtype != np.uint8:
        raise UserError(
            f"{file}: expected X of bytes and of shape ({SIDE}, {SIDE}, 3, N), got {pictures.dtype} of {pictures.shape}"
        )
    count = pictures.shape[-1]
    if classes.shape != (count, 1):
        raise UserError(f"{file}: expected y of shape {(count, 1)}, a class for each picture, got {classes.shape}")
    known = np.isin(classes[:, 0], np.arange(1, 11))
    if not known.all():
        number = int(known.argmin())
        raise UserError(f"{file}: the class of picture {number:,} is {classes[number, 0]}, expected 1 to 10")
    return pictures, classes[:, 0].astype(np.int64) % 10


MNIST_SVHN = Corpus(
    "mnist-svhn",
    "70,000 MNIST digits, each with 20 of SVHN's house numbers of its class, and their label",
    partners.modalities("svhn", Image(height=SIDE, width=SIDE, channels=3, codec="png")),
    entries,
    load,
    needs=NEEDS,
    notes=notes,
)
