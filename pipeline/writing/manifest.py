"""The manifest in writing: the table of samples, and the small files beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from infra.disk import sync_to_disk
from pipeline.manifest import MEMBER, NAME, SCHEMA, VERSION, Described, Shard, fingerprint_of


def write_manifest(
    directory: Path,
    corpus: str,
    modalities: dict[str, Described],
    shards: list[Shard],
    splits: dict[str, range],
    keys: Sequence[str] | pa.StringArray,
    first: np.ndarray,
    members: np.ndarray | Mapping[str, np.ndarray],
    files: Mapping[str, bytes] | None = None,
) -> str:
    """Write the manifest by rename, and the small `files` beside it, and return its fingerprint.

    `first` has len(keys)+1 entries; `members` holds MEMBER's columns, as a structured array or by name.
    """
    meta: dict[str, Any] = {
        "version": VERSION,
        "corpus": corpus,
        "modalities": {n: {"extension": d.extension, "shape": d.shape} for n, d in modalities.items()},
        "shards": [{"name": shard.name, "bytes": shard.bytes} for shard in shards],
        "splits": {name: [rows.start, rows.stop] for name, rows in splits.items()},
    }
    if files:
        meta["files"] = {name: xxhash.xxh3_128_hexdigest(data) for name, data in files.items()}
    for name, data in (files or {}).items():
        (directory / name).write_bytes(data)
        sync_to_disk(directory / name)
    columns = [np.ascontiguousarray(members[name]) for name in MEMBER.names]
    key_array = keys if isinstance(keys, pa.Array) else pa.array(keys, pa.string())
    first = first.astype(np.int32)
    meta["fingerprint"] = fingerprint_of(meta, [*key_array.buffers()[1:], first.data, *(c.data for c in columns)])
    struct = pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(MEMBER))
    lists = pa.ListArray.from_arrays(pa.array(first), struct)
    schema = SCHEMA.with_metadata({b"pairstream": json.dumps(meta).encode()})
    partial = directory / (NAME + ".tmp")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([key_array, lists], schema=schema))
    os.replace(partial, directory / NAME)
    return str(meta["fingerprint"])
