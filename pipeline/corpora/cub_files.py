"""What the official files of Caltech-UCSD Birds 200-2011 (Wah et al., 2011) and their captions (Reed et al., 2016) say.

    classes.txt, image_class_labels.txt, bounding_boxes.txt     a row for each class, or for each of the 11,788 images
    images.txt                                                  the images' names; an excerpt names only some
    attributes/class_attribute_labels_continuous.txt            a row of 312 percentages for each class
    images/CLASS/NAME.jpg                                       or images*.tar of CLASS/NAME.jpg
    text_c10/CLASS/NAME.txt                                     a caption a line; or captions_by_image.json, a list each

The tables, also attributes', may be packed (.xz), bear more in their names before .txt, and lie beside the others.

An image that has captions, but no row in images.txt, is known by its class alone. The images of a class that nothing
names are called unnamed_01 and so on.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from pipeline.corpora.official import Picture, in_tars, text

ATTRIBUTES = 312
LABELS, BOXES, IMAGES = "image_class_labels", "bounding_boxes", "images"
CONTINUOUS, CAPTIONS, FOLDER = "class_attribute_labels_continuous", "captions_by_image", "text_c10"


class Bird(NamedTuple):
    """One of the images."""

    key: str
    """001/Black_Footed_Albatross_0046_18: the number of its class, and its name."""
    number: int
    """Of its class, from 1."""
    picture: Picture | None = None
    box: tuple[float, ...] = ()
    """Left, top, width and height of the bird in pixels of the official picture; of a picture it is known."""
    captions: tuple[str, ...] = ()


class Files(NamedTuple):
    """What all files hold together."""

    birds: list[Bird]
    """By key."""
    attributes: np.ndarray
    """(classes, 312) percentages, 0 to 100."""
    notes: list[str]


def read(source: Path) -> Files:
    """All images. Raises UserError where files are missing, damaged or contradict each other."""
    classes = {number: values[0] for number, values in _rows(source, "classes", 1).items()}
    labels = {number: values[0] for number, values in _rows(source, LABELS, 1).items()}
    boxes = {number: tuple(map(float, values)) for number, values in _rows(source, BOXES, 4).items()}
    if strange := sorted(set(labels.values()) - classes.keys()):
        raise UserError(f"{source}: {LABELS} has class {strange[0]}, which classes has not: fetch both again")
    if differ := sorted(labels.keys() ^ boxes.keys(), key=int):
        raise UserError(
            f"{source}: {LABELS} has {len(labels):,} rows, {BOXES} {len(boxes):,}; image {differ[0]} is in one of them "
            "only: fetch both again"
        )
    images = dict[str, str]()
    for number, (file,) in _rows(source, IMAGES, 1).items():
        name = file.removesuffix(".jpg")
        if name == file or name in images:
            raise UserError(f"{source}: {IMAGES} calls image {number} {file}: expected a .jpg of its own")
        images[name] = number
    pictures, captions = _pictures(source), _captions(source)
    for name, number in images.items():
        if name.split("/")[0] != classes.get(labels.get(number, "")):
            raise UserError(f"{source}: {IMAGES} calls image {number} {name}, which is not its class in {LABELS}")

    names = sorted(images.keys() | captions.keys())
    number_of = {name: number for number, name in classes.items()}
    if strange := [name for name in names if name.split("/")[0] not in number_of]:
        raise UserError(f"{source}: there are captions of {strange[0]}, whose class is not in classes")
    nameless = Counter(labels.values())
    nameless.subtract(number_of[name.split("/")[0]] for name in names)
    if short := [number for number, count in nameless.items() if count < 0]:
        raise UserError(
            f"{source}: {IMAGES} and the captions name {-nameless[short[0]]} more of class {classes[short[0]]} than "
            f"{LABELS} has: they are not of the same data"
        )
    birds = [
        Bird(_key(number, f"unnamed_{place:02d}"), int(number))
        for number, count in nameless.items()
        for place in range(1, count + 1)
    ]
    for name in names:
        folder, _, file = name.partition("/")
        picture = pictures.get(name) if name in images else None
        box = boxes[images[name]] if picture else ()
        number = number_of[folder]
        birds.append(Bird(_key(number, file), int(number), picture, box, captions.get(name, ())))
    spare, unnamed = len(pictures.keys() - images.keys()), nameless.total()
    notes = [f"{spare:,} pictures have no row in {IMAGES}: they are left out"] if spare else []
    notes += [f"{unnamed:,} images have no name in these files: their keys are CLASS/unnamed_NN"] if unnamed else []
    return Files(sorted(birds, key=lambda bird: bird.key), _attributes(source, len(classes)), notes)


def _key(number: str, name: str) -> str:
    return f"{int(number):03d}/{name}"


def _rows(source: Path, table: str, count: int) -> dict[str, list[str]]:
    """By a row's number, its other values; there have to be `count`, and where there are several, numbers."""
    file, words = text(source, table)
    rows = {}
    for line, row in enumerate(words.splitlines(), start=1):
        number, *values = row.split() or [""]
        if len(values) != count or not number.isdecimal() or number in rows:
            raise UserError(f"{file}, line {line}: expected a number of its own and {count} value(s), got {row!r}")
        if count > 1:
            _numbers(file, line, values)
        rows[number] = values
    if not rows:
        raise UserError(f"{file} is empty: fetch it again")
    return rows


def _numbers(file: Path, line: int, values: list[str]) -> np.ndarray:
    try:
        numbers = np.array(values, np.float64)
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise UserError(f"{file}, line {line}: expected numbers only: fetch it again")
    return numbers


def _attributes(source: Path, classes: int) -> np.ndarray:
    folder = source / "attributes"
    file, words = text(folder if folder.is_dir() else source, CONTINUOUS)
    rows = [_numbers(file, line, row.split()) for line, row in enumerate(words.splitlines(), start=1)]
    if len(rows) != classes:
        raise UserError(f"{file} has {len(rows):,} rows, classes {classes:,}: fetch both again")
    for line, row in enumerate(rows, start=1):
        if len(row) != ATTRIBUTES or not ((row >= 0) & (row <= 100)).all():
            raise UserError(f"{file}, line {line}: expected {ATTRIBUTES} percentages, 0 to 100, got {len(row)} values")
    return np.stack(rows)


def _pictures(source: Path) -> dict[str, Picture]:
    """By name: 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18."""
    if (source / IMAGES).is_dir():
        paths = (source / IMAGES).glob("*/*.jpg")
        pictures = {f"{path.parent.name}/{path.stem}": Picture(str(path)) for path in paths}
    else:
        pictures = in_tars(sorted(source.glob(f"{IMAGES}*.tar")), key=lambda name: "/".join(name.split("/")[-2:]))
    if not pictures:
        raise UserError(f"{source} has no pictures: expected is a folder {IMAGES}/CLASS/ of JPEGs, or an {IMAGES}*.tar")
    return pictures


def _captions(source: Path) -> dict[str, tuple[str, ...]]:
    """By name, those with at least one."""
    if (source / FOLDER).is_dir():
        captions = {f"{path.parent.name}/{path.stem}": _lines(path) for path in (source / FOLDER).glob("*/*.txt")}
        place = source / FOLDER
    else:
        if not any(source.glob(f"{CAPTIONS}*")):
            raise UserError(f"{source} has no captions: expected is a folder {FOLDER}/, or {CAPTIONS}.json (or .xz)")
        place, words = text(source, CAPTIONS, ".json")
        try:
            captions = json.loads(words)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{place} is no JSON ({error}): fetch it again") from None
        if not isinstance(captions, dict) or not all(
            isinstance(of_one, list) and all(isinstance(caption, str) for caption in of_one)
            for of_one in captions.values()
        ):
            raise UserError(f"{place}: expected an object that has a list of captions for each CLASS/NAME")
    written = {name: tuple(filter(str.strip, of_one)) for name, of_one in captions.items()}
    if not any(written.values()):
        raise UserError(f"{place} has no captions: fetch it again")
    return {name: of_one for name, of_one in written.items() if of_one}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8 ({error}): fetch it again") from None
