"""The manifest of all shards, from the rows that each shard's writer left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from infra.disk import sync_to_disk, write_whole
from infra.errors import UserError
from pipeline.description import describe
from pipeline.manifest import MEMBER, NAME, Described, Shard
from pipeline.writing.links import linked
from pipeline.writing.manifest import write_manifest
from pipeline.writing.plan import Part

if TYPE_CHECKING:
    from pipeline.corpora.corpus import Corpus, Entry

SKIPPED = "skipped.jsonl"
"""Beside the shards, the samples that were left out: a line {"key", "reason"} each."""
LIMIT = 2**31 - 1
"""Members, and bytes of keys, that a manifest's 32-bit offsets reach."""


def rows_of(path: Path) -> pa.Table:
    """The manifest's rows of one shard; what is said of them is in the schema's metadata."""
    with pa.OSFile(str(path)) as file:  # not mapped: there may be more shards than files may be open
        return pa.ipc.open_file(file).read_all()


def skipped_of(rows: pa.Table) -> list[tuple[str, str]]:
    """Key and reason of each sample that a shard left out."""
    return [(key, reason) for key, reason in json.loads(rows.schema.metadata[b"skipped"])]


def merge(
    partial: Path, corpus: Corpus, entries: Sequence[Entry], parts: Sequence[Part], files: Mapping[str, bytes]
) -> tuple[str, list[int]]:
    """Write the manifest of all shards, the small `files`, and which samples were left out.

    Returns the data's fingerprint, and how many samples each shard left out. Raises UserError where nothing is left,
    and where there is more than a manifest holds.
    """
    merged = _Merged(partial, parts)
    left_out = [entry for some in merged.skipped for entry in some]
    if not merged.rows:
        shutil.rmtree(partial / "data")  # shards of nothing are no work to go on from
        raise UserError(f"corpus {corpus.name}: no sample can be used; the first, {': '.join(left_out[0])}")
    keys, first, columns = merged.table()
    described = {name: Described(m.extension, m.shape) for name, m in corpus.modalities.items()}
    if any(entry.links for entry in entries):
        first, columns = linked(corpus, entries, keys.to_pylist(), first, columns)
        _check(int(first[-1]), merged.text)
    data = partial / "data"
    fingerprint = write_manifest(
        data, corpus.name, described, merged.shards, merged.splits, keys, first, columns, files
    )  # fmt: skip
    describe(data, corpus.modalities)
    lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in left_out]
    if lines:
        write_whole(data / SKIPPED, "".join(lines))
    sync_to_disk(data / NAME)
    sync_to_disk(data)
    return fingerprint, [len(some) for some in merged.skipped]


@dataclass
class _Merged:
    """The rows of all shards. Each shard's are read twice, first to count them: so their table is in memory once."""

    partial: Path
    parts: Sequence[Part]
    rows: int = 0
    members: int = 0
    text: int = 0
    """Bytes of all keys."""
    shards: list[Shard] = field(default_factory=list)
    splits: dict[str, range] = field(default_factory=dict)
    skipped: list[list[tuple[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for part in self.parts:
            table = self._of(part)
            split, begin = part.name.split("-")[0], self.rows
            for keys, lists in _batches(table):
                self.rows += len(keys)
                self.members += len(lists.values)
                self.text += int(_bounds(keys)[-1])
            self.splits[split] = range(self.splits[split].start if split in self.splits else begin, self.rows)
            self.shards.append(Shard(f"{part.name}.tar", int(table.schema.metadata[b"bytes"])))
            self.skipped.append(skipped_of(table))
        _check(self.members, self.text)

    def _of(self, part: Part) -> pa.Table:
        return rows_of(self.partial / "rows" / f"{part.name}.arrow")

    def table(self) -> tuple[pa.StringArray, np.ndarray, dict[str, np.ndarray]]:
        """The keys, where each sample's members begin (N+1), and the members' columns."""
        ends, text = np.zeros(self.rows + 1, np.int32), np.empty(self.text, np.uint8)
        first = np.zeros(self.rows + 1, np.int32)
        columns = {one.name: np.empty(self.members, one.type.to_pandas_dtype()) for one in MEMBER}
        row = 0
        for part in self.parts:
            for keys, lists in _batches(self._of(part)):
                after, letter, member = row + len(keys), int(ends[row]), int(first[row])
                bounds = _bounds(keys)
                ends[row + 1 : after + 1] = bounds[1:] + letter
                text[letter : ends[after]] = np.frombuffer(keys.buffers()[2] or b"", np.uint8)[: bounds[-1]]
                first[row + 1 : after + 1] = lists.offsets.to_numpy()[1:] + member
                for name, column in columns.items():
                    column[member : first[after]] = lists.values.field(name).to_numpy()
                row = after
        return pa.StringArray.from_buffers(self.rows, pa.py_buffer(ends), pa.py_buffer(text)), first, columns


def _check(members: int, text: int) -> None:
    if max(members, text) > LIMIT:
        raise UserError(
            f"{members:,} members and {text:,} bytes of keys: a manifest holds {LIMIT:,} of each; prepare the data in "
            "several directories, and mix them"
        )


def _batches(rows: pa.Table) -> list[tuple[pa.StringArray, pa.ListArray]]:
    return [(batch.column("key"), batch.column("members")) for batch in rows.to_batches() if len(batch)]


def _bounds(keys: pa.StringArray) -> np.ndarray:
    """Where each key's letters begin, and where the last one's end; nothing lies before the first."""
    return np.frombuffer(keys.buffers()[1], np.int32)[: len(keys) + 1]
