"""A corpus of a few samples, made here: every pattern of presence, several instances, values known by key."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from modalities import AnyModality, Image, Label, Modality
from pipeline.corpora.corpus import Corpus, Entry, Values
from pipeline.indexing import index
from pipeline.manifest import Described, Manifest, Shard, open_manifest
from pipeline.rules import Rules
from pipeline.shards import ROW, Corrupt, Reader
from pipeline.writing import write
from pipeline.writing.manifest import write_manifest
from pipeline.writing.shard import encode

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
    return Corpus(name, "made by a test", modalities, lambda _: list(entries), values_of)


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


def uneven(out: Path, sizes: Sequence[int] = (30, 1, 0, 64)) -> Manifest:
    """A directory of tars that hold so many training samples each, indexed; every sample has something."""
    out.mkdir(parents=True)
    left = (entry for entry in samples(8 * sum(sizes)) if held(int(entry.key[-4:])))
    for number, size in enumerate(sizes):
        with tarfile.open(out / f"train-{number}.tar", "w") as file:
            for entry in islice(left, size):
                for name, (_, data) in encode("tiny", MODALITIES, entry, values_of(entry)).items():
                    info = tarfile.TarInfo(f"{entry.key}.{name}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    index([out], out, Rules.read(["image.npy=image", "tag.cls=tag", "tag.*.cls=tag", "label.cls=label"]), workers=1)
    return open_manifest(out)


def bare(out: Path, instances: np.ndarray, shards: int = 1, others: int = 0) -> Manifest:
    """A manifest without its shards: training sample i has instances[i, m] instances of modality m0, m1, ...

    In front of them lie `others` complete samples of another split. A shard in the middle has no sample.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = np.concatenate([np.ones((others, instances.shape[1]), int), instances])
    owner, modality = (np.repeat(place.ravel(), table.ravel()) for place in np.indices(table.shape))
    members = np.zeros(len(owner), ROW)
    members["modality"], members["size"], members["block"] = modality, 1, 2 * np.arange(len(owner))
    shard = owner * shards // max(1, len(table))
    members["shard"] = shard + (shard >= (shards + 1) // 2)
    first = np.concatenate([[0], np.cumsum(table.sum(1))])
    keys = [f"other/{number}" for number in range(others)] + [f"train/{number}" for number in range(len(instances))]
    splits = {"other": range(others), "train": range(others, len(table))}
    described = {f"m{column}": Described("cls", None) for column in range(instances.shape[1])}
    listed = [Shard(f"{number}.tar", 1024 * max(1, len(owner))) for number in range(shards + 1)]
    write_manifest(out, "bare", described, listed, splits, keys, first, members)
    return open_manifest(out)


def read(reader: Reader, member: int) -> bytes:
    """One member's bytes. Raises Corrupt."""
    (data,) = reader.read(np.array([member]))
    if isinstance(data, Corrupt):
        raise data
    return data


def fits(key: str, name: str, decoded: np.ndarray) -> bool:
    """Whether a decoded value is what the sample of this key holds (any instance of it)."""
    truth = value(key, name)
    decoded = np.rint(decoded * 16) if name == "image" else decoded
    return any(np.array_equal(decoded, one) for one in (truth if isinstance(truth, list) else [truth]))


# What may stand in place of a shard


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)
