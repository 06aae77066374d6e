"""CelebA's aligned faces (Liu et al., 2015) as 64x64 pictures, and 18 of their attributes (MVAE section 4).

    pairstream prepare celeba --source DIR

DIR holds the pictures, as a folder img_align_celeba/ of the official JPEGs or as img_align_celeba*.tar, and beside them
list_attr_celeba*.txt and list_eval_partition*.txt, each also as .txt.xz. The short side of a picture is scaled to 64
pixels (the mean of what a pixel covers), the middle 64x64 are kept, and stored as JPEG of quality 95.

The splits are the official partition's where the pictures cover all three of its parts. An excerpt that does not is
divided 80 : 10 : 10 by the hashes of its keys; `prepare` says which. A picture without a row of attributes is a sample
that lacks them; a row without a picture is no sample. Both are counted and said. A key is a picture's name, as 000001.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from modalities import AnyModality, Attributes, Image
from pipeline.corpora.corpus import Corpus, Entry, Listing, of_listing
from pipeline.corpora.official import SPLITS, Picture, divided, frame, in_tars, pixels, text
from pipeline.description import named

SIDE = 64
ATTRIBUTES = (
    "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses", "Gray_Hair",
    "Heavy_Makeup", "Male", "Mouth_Slightly_Open", "Mustache", "Pale_Skin", "Receding_Hairline", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Hat",
)  # fmt: skip
"""The 18 visually distinctive ones (Perarnau et al., 2016), in the order of the modality's elements."""
MODALITIES: dict[str, AnyModality] = {
    "image": Image(height=SIDE, width=SIDE, channels=3, codec="jpg", quality=95, network="conv", hidden=(512,)),
    "attributes": Attributes(count=len(ATTRIBUTES)),
}
PICTURES, ROWS, PARTITION = "img_align_celeba", "list_attr_celeba", "list_eval_partition"


class Raw(NamedTuple):
    """What one sample is made of."""

    picture: Picture
    attributes: bytes | None
    """A byte of 0 or 1 for each; None where they are missing."""


def load(entry: Entry) -> dict[str, np.ndarray]:
    """The picture (64, 64, 3), red first, and its attributes (18,), where it has some. Raises UserError."""
    raw: Raw = entry.source
    values = {"image": thumbnail(pixels(raw.picture, entry.key))}
    if raw.attributes is not None:
        values["attributes"] = np.frombuffer(raw.attributes, np.uint8)
    return values


# Listing


@lru_cache(maxsize=1)
def _listing(source: Path) -> Listing:
    """All pictures by name, where the splits come from, and what the files announce and do not hold.

    Raises UserError where files are missing, damaged or contradict each other.
    """
    pictures = _in_folder(source / PICTURES) if (source / PICTURES).is_dir() else _in_tars(source)
    rows_file, rows_text = _table(source, ROWS)
    partition_file, partition_text = _table(source, PARTITION)
    announced, rows = _attributes(rows_file, rows_text)
    official = _partition(partition_file, partition_text)

    notes = []
    if announced != len(rows):
        notes.append(f"{rows_file.name} announces {announced:,} rows and has {len(rows):,}")
    if spare := len(rows.keys() - pictures.keys()):
        notes.append(f"{spare:,} rows of {rows_file.name} have no picture: they are left out")
    if bare := len(pictures.keys() - rows.keys()):
        notes.append(f"{bare:,} pictures have no row in {rows_file.name}: these samples lack their attributes")
    covered = {official.get(key) for key in pictures}
    if None in covered:
        key = min(pictures.keys() - official.keys())
        raise UserError(f"{partition_file} has no row for picture {key}: fetch the whole file")
    if covered >= set(SPLITS):
        split = {key: official[key] for key in pictures}
        notes.append("splits: the official partition")
    else:
        split = divided(pictures, seed=2015)
        there = ", ".join(name for name in SPLITS if name in covered)
        notes.append(
            f"splits: not the official partition, since these pictures do not cover it (only: {there}); 80 % train, "
            "10 % val, 10 % test by the hash of the key"
        )
    listed = [Entry(key, split[key], Raw(pictures[key], rows.get(key))) for key in sorted(pictures)]
    return Listing(listed, notes)


entries, notes = of_listing(_listing)


def _in_folder(folder: Path) -> dict[str, Picture]:
    pictures = {path.stem: Picture(str(path)) for path in folder.glob("*.jpg")}
    if not pictures:
        raise UserError(f"{folder} has no pictures: expected are the official 000001.jpg and so on")
    return pictures


def _in_tars(source: Path) -> dict[str, Picture]:
    pictures = in_tars(sorted(source.glob(f"{PICTURES}*.tar")), key=lambda name: Path(name).name)
    if not pictures:
        raise UserError(f"{source} has no pictures: expected is a folder {PICTURES}/ of JPEGs, or a {PICTURES}*.tar")
    return pictures


def _table(source: Path, name: str) -> tuple[Path, list[str]]:
    file, words = text(source, name)
    return file, words.splitlines()


def _attributes(file: Path, lines: list[str]) -> tuple[int, dict[str, bytes]]:
    """How many rows the first line announces, and the chosen attributes by key."""
    names = lines[1].split() if len(lines) > 1 else []
    unknown = [name for name in ATTRIBUTES if name not in names]
    if not lines or not lines[0].strip().isdecimal() or unknown:
        raise UserError(
            f"{file} is not the official list: line 1 has to be the number of rows, line 2 the names of the attributes"
            + (f"; {unknown[0]} is not among them" if unknown else "")
        )
    columns, rows = [names.index(name) for name in ATTRIBUTES], {}
    for number, line in enumerate(lines[2:], start=3):
        picture, *signs = line.split() or [""]
        if len(signs) != len(names):
            raise UserError(f"{file}, line {number}: expected {len(names)} values, as line 2 names, got {len(signs)}")
        if not {"1", "-1"}.issuperset(signs):
            raise UserError(f"{file}, line {number}: expected values of 1 and -1 only, got {line!r}")
        if _key(picture) in rows:
            raise UserError(f"{file}, line {number}: {picture} has a row already: take one of them away")
        rows[_key(picture)] = bytes(signs[column] == "1" for column in columns)
    return int(lines[0]), rows


def _partition(file: Path, lines: list[str]) -> dict[str, str]:
    """The split of each key."""
    splits = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise UserError(f"{file}, line {number}: expected a picture and 0, 1 or 2, got {line!r}")
        if _key(words[0]) in splits:
            raise UserError(f"{file}, line {number}: {words[0]} has a row already: take one of them away")
        splits[_key(words[0])] = SPLITS[int(words[1])]  # train, val and test in the official order
    return splits


def _key(name: str) -> str:
    return name.removesuffix(".jpg")


# Loading


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """The middle (64, 64, 3) of a picture whose short side is scaled to 64."""
    import cv2

    height, width, top, left = frame(picture.shape[0], picture.shape[1], SIDE)
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return small[top : top + SIDE, left : left + SIDE]


CELEBA = Corpus(
    "celeba",
    "CelebA's faces at 64x64, and 18 attributes",
    MODALITIES,
    entries,
    load,
    needs=f"{PICTURES}/ or {PICTURES}*.tar, {ROWS}*.txt and {PARTITION}*.txt (each also as .txt.xz)",
    notes=notes,
    files=named("attributes", ATTRIBUTES),
)
