"""Partial data of every kind of modality, and a run of a lively model, for the tests of imputing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from infra.checkpoint import Checkpoint
from modalities import Attributes, Features, Image, Label, Sentences
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.imputing.job import prepared
from pipeline.imputing.marks import SCHEMA
from pipeline.imputing.run import Imputed, impute
from pipeline.imputing.settings import Settings
from pipeline.manifest import Manifest, open_manifest
from pipeline.model import MultimodalVAE
from pipeline.settings import Model, Tracking
from pipeline.shards import Reader
from pipeline.train import build
from pipeline.writing import write
from tests.pipeline.judging import ALONE
from tests.pipeline.tiny import given

KINDS: dict[str, Any] = {
    "image": Image(height=3, width=4, levels=16, hidden=(16,)),
    "label": Label(classes=5, hidden=(8, 8)),
    "text": Sentences(vocabulary=9, length=4, embedding=4, hidden=4),
    "tags": Attributes(count=3, hidden=(8, 8)),
    "numbers": Features(count=3, hidden=(8,)),
}

NAMES = list(KINDS)


def value(name: str, number: int) -> np.ndarray | list[np.ndarray]:
    """What sample `number` has; of texts one to three."""
    rng = np.random.default_rng([number, NAMES.index(name)])
    if name == "text":
        return [np.array([3 + (number + i) % 6, 3 + i, 0, 0]) for i in range(1 + number % 3)]
    drawn = {
        "image": lambda: rng.integers(0, 17, (3, 4)), "label": lambda: np.asarray(number % 5),
        "tags": lambda: rng.integers(0, 2, 3), "numbers": lambda: rng.normal(size=3).astype(np.float32),
    }  # fmt: skip
    return drawn[name]()


def has(number: int) -> list[str]:
    """Which modalities a sample has: all patterns in turn, also none."""
    return [name for bit, name in enumerate(NAMES) if (number * 7 + 3) % 32 >> bit & 1]


def data(out: Path, count: int = 100, held: Callable[[int], list[str]] = has) -> Manifest:
    rows = [
        Entry(f"{split}/{number:04d}", split, {name: value(name, number) for name in held(number)})
        for split, some in (("train", count), ("val", 5))
        for number in range(some)
    ]
    write(out, given("partial", KINDS, rows), 20_000, 1)
    return open_manifest(out)


def everything(number: int) -> list[str]:
    return NAMES


def lively(run: Run) -> MultimodalVAE:
    """A model of which what it makes hangs on what it is given."""
    model = build(run).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


class Trained:
    """A run's directory with one checkpoint of a lively model."""

    def __init__(self, place: Path, source: Path, system: str = "mvae", kinds: Mapping[str, Any] = KINDS) -> None:
        from infra.checkpoint import Checkpoints

        self.directory = place
        self.run = Run(
            "toy", str(source), dict(kinds), seed=3, model=Model(4, system=system), tracking=Tracking(enabled=False)
        )  # type: ignore[arg-type]
        self.model = lively(self.run)
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        meta = {"fingerprint": open_manifest(source).fingerprint, "best": None}
        Checkpoints(place / "checkpoints").save(self.run.train.steps, weights.items(), meta)

    @property
    def checkpoint(self) -> Checkpoint:
        from pipeline.evaluate.run import checkpoint_of

        return checkpoint_of(self.directory)

    def impute(self, source: Path, out: Path, shard_bytes: int = 20_000, **settings: Any) -> Imputed:
        job = prepared(self.run, self.directory, self.checkpoint, str(source), Settings(**settings))
        result = impute(job, out, ALONE, shard_bytes)
        assert result
        return result


def members(directory: Path) -> dict[str, dict[str, list[bytes]]]:
    """By key and modality the bytes of all instances, as the manifest says."""
    manifest = open_manifest(directory)
    reader, names, found = Reader([manifest]), list(manifest.modalities), {}
    for row in range(len(manifest)):
        mine = np.arange(manifest.first[row], manifest.first[row + 1])
        held: dict[str, list[bytes]] = {}
        for member, read in zip(mine, reader.read(mine), strict=True):
            assert isinstance(read, bytes)
            held.setdefault(names[manifest.modality[member]], []).append(read)
        found[manifest.key(row)] = held
    assert len(found) == len(manifest)
    return found


def marks(directory: Path) -> list[dict[str, Any]]:
    table = pq.read_table(io.BytesIO(open_manifest(directory).file("imputed.parquet")))
    rows: list[dict[str, Any]] = table.to_pylist()
    assert table.schema.equals(SCHEMA)
    return rows
