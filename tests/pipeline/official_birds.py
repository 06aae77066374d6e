"""Tiny files of Caltech-UCSD Birds: as published, and as an excerpt of small pictures; and what shards hold of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.corpora.corpus import Corpus
from pipeline.manifest import Manifest, open_manifest
from pipeline.writing import write
from tests.pipeline.official import write_text

CLASSES = ("001.Crow", "002.Grey_Wren", "003.Owl")
EACH = 20
"""Images of a class; their numbers go from 1 through all classes."""
HEIGHT, WIDTH = 300, 500


def class_of(number: int) -> int:
    """From 1."""
    return (number - 1) // EACH + 1


def name(number: int) -> str:
    """001.Crow/Crow_0007"""
    folder = CLASSES[class_of(number) - 1]
    return f"{folder}/{folder[4:]}_{number:04d}"


def key(number: int) -> str:
    """001/Crow_0007"""
    return f"{class_of(number):03d}/{name(number).split('/')[1]}"


def box(number: int) -> tuple[float, float, float, float]:
    """Where the bird is in the published picture."""
    return 50.0 + 4 * number, 30.0, 60.0, 100.0 + number


def bird(number: int, long: int = WIDTH) -> bytes:
    """A JPEG: the box in a grey that tells its number on white, 4 levels each."""
    picture = np.full((HEIGHT, WIDTH), 255, np.uint8)
    left, top, across, down = map(int, box(number))
    picture[top : top + down, left : left + across] = 4 * (number % 32)
    small = cv2.resize(picture, (long, long * HEIGHT // WIDTH), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small)[1].tobytes()


def captions(number: int) -> list[str]:
    """Three, of every other image."""
    return [f"This bird is no. {number % 4}, {word} and small-billed." for word in ("red", "blue", "grey")]


def percentages(number: int) -> list[float]:
    """A class's."""
    return [number * 10 + attribute / 10 for attribute in range(312)]


def write_birds(place: Path, excerpt: bool = False) -> Path:
    """All three classes, every other image with captions. An excerpt has small pictures of two classes in a tar, names
    of no others, and xz."""
    numbers = range(1, len(CLASSES) * EACH + 1)
    seen = numbers[: 2 * EACH] if excerpt else numbers
    attributes = place if excerpt else place / "attributes"
    attributes.mkdir(parents=True)

    def table(file: str, rows: list[str], folder: Path = place) -> None:
        write_text(folder, file, "\n".join(rows) + "\n", packed=excerpt)

    table("classes.txt", [f"{n} {folder}" for n, folder in enumerate(CLASSES, start=1)])
    table("image_class_labels.txt", [f"{n} {class_of(n)}" for n in numbers])
    table("bounding_boxes.txt", [f"{n} {' '.join(map(str, box(n)))}" for n in numbers])
    table("images_c001-002.txt" if excerpt else "images.txt", [f"{n} {name(n)}.jpg" for n in seen])
    rows = [" ".join(map(str, percentages(n))) for n in range(1, len(CLASSES) + 1)]
    table("class_attribute_labels_continuous.txt", rows, attributes)
    written = {name(n): captions(n) for n in numbers[::2]}
    if excerpt:
        write_text(place, "captions_by_image.json", json.dumps(written), packed=True)
        with tarfile.open(place / "images_c001-002_160px.tar", "w") as tar:
            for n in seen:
                data = bird(n, 160)
                info = tarfile.TarInfo(f"{name(n)}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        for n in seen:
            (place / "images" / name(n)).parent.mkdir(parents=True, exist_ok=True)
            (place / "images" / f"{name(n)}.jpg").write_bytes(bird(n))
        for file, lines in written.items():
            path = place / "text_c10" / f"{file}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    return place


def opened(corpus: Corpus, source: Path) -> Corpus:
    """The corpus as `prepare` writes it."""
    return corpus.opened(source) if corpus.opened else corpus


def prepared(corpus: Corpus, source: Path, out: Path, **options: int) -> Manifest:
    """A corpus from official files, written and opened."""
    write(out, opened(corpus, source), source=source, **options)
    return open_manifest(out)


def stored(corpus: Corpus, out: Path) -> Mapping[str, Mapping[str, Any]]:
    """What the shards hold by key and modality, decoded: a value, or a list of instances."""
    found: dict[str, dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                sample, modality, *_ = info.name.split(".")
                file = tar.extractfile(info)
                assert file is not None
                found[sample][modality].append(file.read())
    return {
        sample: {
            modality: list(values) if len(values := corpus.modalities[modality].decode(data)) > 1 else values[0]
            for modality, data in members.items()
        }
        for sample, members in found.items()
    }
