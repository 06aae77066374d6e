"""Official files: the real ones, tiny ones with values known by their place, and what corpora make of them."""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from modalities import AnyModality
from pipeline.baselines import read
from pipeline.config import Run
from pipeline.corpora import prepare
from pipeline.corpora.corpus import Corpus, Entry
from pipeline.manifest import Manifest, open_manifest
from pipeline.recipes import recipe
from pipeline.writing import write

HEADER = [
    "Smiling", "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses", "Gray_Hair",
    "Heavy_Makeup", "Male", "Young", "Mouth_Slightly_Open", "Mustache", "Pale_Skin", "Receding_Hairline",
    "Straight_Hair", "Wavy_Hair", "Wearing_Hat",
]  # fmt: skip
"""The 18 in another order, and one more."""

CLASSES = [1 + number % 10 for number in range(200)]
"""SVHN's classes, each 20 times."""


def digit(part: str, number: int) -> np.ndarray:
    """The picture at a place of tiny MNIST."""
    return np.full((28, 28), number + (100 if part == "t10k" else 0), np.uint8)


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    """The bytes of an idx file."""
    numbers = (0x0800 + array.ndim if magic is None else magic, *array.shape)
    return b"".join(number.to_bytes(4) for number in numbers) + array.astype(np.uint8).tobytes()


def strokes(part: str, number: int) -> np.ndarray:
    """A picture that is unlike that of any other place: 7x7 blocks, most of them black or white."""
    blocks = np.random.default_rng([number, len(part)]).choice([0, 100, 255], (7, 7), p=[0.6, 0.1, 0.3])
    return np.kron(blocks, np.ones((4, 4))).astype(np.uint8)


def write_mnist(
    place: Path,
    train: int = 24,
    test: int = 6,
    zipped: bool = True,
    picture: Callable[[str, int], np.ndarray] = digit,
) -> Path:
    """The four files; the digit at place n has label n % 10."""
    place.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.stack([picture(part, number) for number in range(count)])
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            data = idx(array)
            path = place / f"{part}-{name}-ubyte"
            (place / f"{path.name}.gz").write_bytes(gzip.compress(data)) if zipped else path.write_bytes(data)
    return place


def write_amat(place: Path, part: str, pictures: Sequence[np.ndarray], end: str = "\n") -> Path:
    """One file of the fixed binarisation: what is brighter than the middle is 1."""
    place.mkdir(parents=True, exist_ok=True)
    lines = [" ".join("1" if level > 127 else "0" for level in picture.flat) + end for picture in pictures]
    (place / f"binarized_mnist_{part}.amat").write_bytes("".join(lines).encode())
    return place / f"binarized_mnist_{part}.amat"


def house_number(part: str, number: int) -> np.ndarray:
    """A picture (32, 32, 3) whose red, green and blue tell the part, the place and nothing."""
    return np.full((32, 32, 3), (50 if part == "train" else 150, number % 256, 7), np.uint8)


def write_svhn(place: Path, part: str, classes: Sequence[int]) -> Path:
    """One file of SVHN's cropped digits, with these classes (1 to 10)."""
    place.mkdir(parents=True, exist_ok=True)
    pictures = np.stack([house_number(part, number) for number in range(len(classes))], axis=3)
    file = place / f"{part}_32x32.mat"
    savemat(file, {"X": pictures, "y": np.array(classes, np.uint8)[:, None]}, do_compression=True)
    return file


def mnist_and_svhn(place: Path) -> Path:
    """All files of both; each of SVHN's has 20 pictures of each class."""
    write_mnist(place, picture=strokes)
    for part in ("train", "test"):
        write_svhn(place, part, CLASSES)
    return place


def face(number: int, height: int = 218, width: int = 178) -> bytes:
    """A JPEG whose brightness tells its number: 8 levels each."""
    return cv2.imencode(".jpg", np.full((height, width, 3), 8 * number, np.uint8))[1].tobytes()


def signs(number: int) -> str:
    """The row of a face: attribute n of `HEADER` is there where (number + n) % 3 is 0."""
    return " ".join("1" if (number + column) % 3 == 0 else "-1" for column in range(len(HEADER)))


def name(number: int) -> str:
    """000001.jpg"""
    return f"{number:06d}.jpg"


def write_faces(place: Path, numbers: Sequence[int]) -> None:
    """The folder of JPEGs."""
    (place / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (place / "img_align_celeba" / name(number)).write_bytes(face(number))


def write_faces_tar(place: Path, numbers: Sequence[int], file: str = "img_align_celeba.tar") -> None:
    """The same pictures as a tar, half as large."""
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place / file, "w") as tar:
        for number in numbers:
            picture = place / "picture"
            picture.write_bytes(face(number, 109, 89))
            tar.add(picture, name(number))
            picture.unlink()


def write_lists(place: Path, numbers: Sequence[int], parts: Mapping[int, int], packed: bool = False) -> None:
    """The attributes of these faces, and the part of those."""
    place.mkdir(parents=True, exist_ok=True)
    rows = [str(len(numbers)), " ".join(HEADER) + " ", *(f"{name(number)} {signs(number)}" for number in numbers)]
    write_text(place, "list_attr_celeba.txt", "\n".join(rows), packed)
    write_text(place, "list_eval_partition.txt", "\n".join(f"{name(n)} {p}" for n, p in parts.items()), packed)


def write_text(place: Path, file: str, text: str, packed: bool = False) -> None:
    """A text file, compressed by xz or not."""
    path = place / (file + ".xz" if packed else file)
    path.write_bytes(lzma.compress(text.encode()) if packed else text.encode())


def faces(place: Path, count: int = 20) -> Path:
    """Tiny CelebA whose pictures cover all parts of the partition: every fifth is val, every tenth test."""
    numbers = range(1, count + 1)
    write_faces(place, numbers)
    write_lists(place, numbers, {n: 2 if n % 10 == 0 else 1 if n % 5 == 0 else 0 for n in numbers})
    return place


def cut(file: Path, size: int) -> None:
    """Leave this many bytes of a file."""
    os.truncate(file, size)


def real(corpus: str) -> Path:
    """Where the real official files of a corpus are; skips the test where nobody says so."""
    if "PAIRSTREAM_DATA" not in os.environ:
        pytest.skip("PAIRSTREAM_DATA is not set: it has to name the directory with mnist/ and celeba/")
    return Path(os.environ["PAIRSTREAM_DATA"]) / corpus


def made(corpus: str, source: Path, out: Path, **options: int) -> Manifest:
    """A corpus from official files, prepared and opened."""
    prepare(corpus, out, source=source, **options)
    return open_manifest(out)


def written(corpus: Corpus, source: Path, out: Path, **options: int) -> Manifest:
    """The same of a corpus by itself."""
    write(out, corpus, source=source, **options)
    return open_manifest(out)


def stored(manifest: Manifest, modalities: Mapping[str, AnyModality], keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The decoded values of the samples of these keys, which have all of these modalities."""
    row = {key: number for number, key in enumerate(manifest.keys(range(len(manifest))))}
    run = Run(recipe="", data="", modalities=dict(modalities))
    return read(manifest, run, np.array([row[key] for key in keys]))


def values(manifest: Manifest, keys: list[str] | None = None) -> dict[str, np.ndarray]:
    """The decoded values of all samples, or of these, which have all modalities."""
    known = manifest.keys(range(len(manifest)))
    rows = [known.index(key) for key in keys] if keys else range(len(known))
    return read(manifest, recipe(manifest.corpus), np.array(rows))


def by_key(corpus: Corpus, source: Path) -> dict[str, Entry]:
    """What a corpus makes of these files."""
    return {entry.key: entry for entry in corpus.entries(source)}


def counts(manifest: Manifest) -> dict[str, int]:
    """Samples by split."""
    return {split: len(rows) for split, rows in manifest.splits.items()}
