"""A corpus of a few samples, made here: every pattern of presence, several instances, values known by key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modalities import AnyModality, Image, Label
from pipeline.manifest import Manifest, open_manifest
from pipeline.shards import Sample, write

MODALITIES: dict[str, AnyModality] = {
    "image": Image(height=2, width=3, levels=16),
    "tag": Label(classes=1000),
    "label": Label(classes=10),
}
NAMES = list(MODALITIES)
LABEL = {"label": Label(classes=10)}


def one(key: str, split: str = "train", label: int = 3) -> Sample:
    """A sample that has a label only."""
    return Sample(key, split, {"label": np.asarray(label)})


def value(key: str, name: str) -> np.ndarray | list[np.ndarray]:
    """What the sample of this key has of a modality; of tags one to three."""
    number = int(key.split("/")[-1])
    if name == "image":
        return np.arange(number, number + 6).reshape(2, 3) % 17
    if name == "tag":
        return [np.asarray(number * 3 % 990 + instance) for instance in range(1 + number % 3)]
    return np.asarray(number % 10)


def held(number: int) -> list[str]:
    """Which modalities a sample has: all eight patterns in turn, also none at all."""
    return [name for bit, name in enumerate(NAMES) if (number + 7) % 8 >> bit & 1]


def samples(count: int, split: str = "train", complete: bool = False) -> Iterator[Sample]:
    """`count` samples with keys like train/0007."""
    for number in range(count):
        key = f"{split}/{number:04d}"
        yield Sample(key, split, {name: value(key, name) for name in (NAMES if complete else held(number))})


def make(out: Path, count: int, shard_bytes: int = 2**20, complete: bool = False) -> Manifest:
    """A data directory with `count` training samples and a few of each other split."""
    rows = [s for split, n in (("train", count), ("val", 5), ("test", 3)) for s in samples(n, split, complete)]
    write(out, "tiny", MODALITIES, rows, shard_bytes)
    return open_manifest(out)


def fits(key: str, name: str, decoded: np.ndarray) -> bool:
    """Whether a decoded value is what the sample of this key holds (any instance of it)."""
    truth = value(key, name)
    decoded = np.rint(decoded * 16) if name == "image" else decoded
    return any(np.array_equal(decoded, one) for one in (truth if isinstance(truth, list) else [truth]))
