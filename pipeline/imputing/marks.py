"""Which members are a model's work: imputed.parquet beside the shards, named with its checksum in the manifest.

A row for each such member: key, modality (the member's name), spread, log_weight_variance, model (hash of its weights),
run (its identity), step. Its metadata has the counts. The shards themselves are as any others.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.disk import sync_to_disk
from pipeline.manifest import Manifest

NAME = "imputed.parquet"
UNFINISHED = "marks"
"""Folder with those of each shard, while shards are being written."""
LABEL = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("modality", LABEL),
        ("spread", pa.float32()),
        ("log_weight_variance", pa.float32()),
        ("model", LABEL),
        ("run", LABEL),
        ("step", pa.int64()),
    ]
)
META = b"pairstream"


@dataclass
class Counts:
    """Members, by name."""

    imputed: Counter[str] = field(default_factory=Counter)
    doubtful: Counter[str] = field(default_factory=Counter)
    """Left missing: their spread was above the threshold."""
    unanswerable: Counter[str] = field(default_factory=Counter)
    """Left missing: the model makes no such modality of what is there."""

    def add(self, other: dict[str, dict[str, int]]) -> None:
        for name, counts in other.items():
            getattr(self, name).update(counts)

    def told(self) -> dict[str, dict[str, int]]:
        """As JSON has them."""
        return {name: dict(sorted(counts.items())) for name, counts in vars(self).items()}


@dataclass(frozen=True)
class Maker:
    """Whose work the members are."""

    model: str
    run: str
    step: int


class Marks:
    """Those of one shard."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._rows: list[tuple[str, str, float, float]] = []

    def add(self, key: str, modality: str, spread: float, variance: float) -> None:
        self.counts.imputed[modality] += 1
        self._rows.append((key, modality, spread, variance))

    def write(self, partial: Path, shard: str, maker: Maker) -> None:
        """Into the directory of what is unfinished; appears whole."""
        columns = list(zip(*self._rows, strict=True)) or [()] * 4
        whose = [[value] * len(self._rows) for value in (maker.model, maker.run, maker.step)]
        meta = {META: json.dumps(self.counts.told())}
        arrays = [pa.array(column, f.type) for column, f in zip([*columns, *whose], SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(meta))
        path = partial / UNFINISHED / f"{shard}.parquet"
        path.parent.mkdir(exist_ok=True)
        temporary = partial / f"{shard}.marks.{os.getpid()}.tmp"
        pq.write_table(table, temporary)
        sync_to_disk(temporary)  # the shard that it belongs to is taken for whole once that is there
        os.replace(temporary, path)


def together(partial: Path, shards: Sequence[str], about: dict[str, Any]) -> bytes:
    """The file of all shards, of what `Marks.write` left, with what is to be said of it as a whole."""
    paths, counts = [partial / UNFINISHED / f"{shard}.parquet" for shard in shards], Counts()
    for path in paths:
        counts.add(json.loads(pq.read_schema(path).metadata[META]))
    schema = SCHEMA.with_metadata({META: json.dumps(about | counts.told())})
    whole = io.BytesIO()
    with pq.ParquetWriter(whole, schema) as writer:
        for path in paths:
            table = pq.read_table(path)
            if len(table):
                writer.write_table(table.replace_schema_metadata(schema.metadata).cast(schema))
    return whole.getvalue()


def about(manifest: Manifest) -> dict[str, Any] | None:
    """What imputed.parquet beside these shards says as a whole; None where there is none."""
    if NAME not in manifest.files:
        return None
    told: dict[str, Any] = json.loads(pq.read_schema(io.BytesIO(manifest.file(NAME))).metadata[META])
    return told
