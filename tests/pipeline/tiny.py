"""A corpus of a few samples, made here: every pattern of presence, several instances, values known by key."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from modalities import AnyModality, Image, Label, Modality
from pipeline.corpora.corpus import Corpus, Entry, Values
from pipeline.manifest import Manifest, open_manifest
from pipeline.writing import write

MODALITIES: dict[str, AnyModality] = {
    "image": Image(height=2, width=3, levels=16),
    "tag": Label(classes=1000),
    "label": Label(classes=10),
}
NAMES = list(MODALITIES)
LABEL = {"label": Label(classes=10)}


def values_of(entry: Entry) -> Values:
    """Loads entries that bring their values along."""
    values: Values = entry.source
    return values


def given(name: str, modalities: Mapping[str, Modality], entries: Iterable[Entry]) -> Corpus:
    """A corpus of entries that bring their values along."""
    return Corpus(name, "made by a test", modalities, lambda: list(entries), values_of)


def one(key: str, split: str = "train", label: int = 3) -> Entry:
    """A sample that has a label only."""
    return Entry(key, split, {"label": np.asarray(label)})


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


def samples(count: int, split: str = "train", complete: bool = False) -> Iterator[Entry]:
    """`count` samples with keys like train/0007."""
    for number in range(count):
        key = f"{split}/{number:04d}"
        yield Entry(key, split, {name: value(key, name) for name in (NAMES if complete else held(number))})


def _slowly(entry: Entry) -> Values:
    time.sleep(0.002)
    return values_of(entry)


def unhurried(count: int) -> Corpus:
    """A corpus of complete samples that take a while to load."""
    return replace(given("tiny", MODALITIES, samples(count, complete=True)), load=_slowly)


def make(out: Path, count: int, shard_bytes: int = 2**20, complete: bool = False, workers: int = 1) -> Manifest:
    """A data directory with `count` training samples and a few of each other split."""
    rows = [s for split, n in (("train", count), ("val", 5), ("test", 3)) for s in samples(n, split, complete)]
    write(out, given("tiny", MODALITIES, rows), shard_bytes, workers)
    return open_manifest(out)


def fits(key: str, name: str, decoded: np.ndarray) -> bool:
    """Whether a decoded value is what the sample of this key holds (any instance of it)."""
    truth = value(key, name)
    decoded = np.rint(decoded * 16) if name == "image" else decoded
    return any(np.array_equal(decoded, one) for one in (truth if isinstance(truth, list) else [truth]))
