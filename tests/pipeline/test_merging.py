"""The manifest of all shards, made of the rows of each: what it takes of memory, what it cannot hold."""

from __future__ import annotations

import tracemalloc
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import UserError
from pipeline.manifest import MEMBER, NAME, open_manifest
from pipeline.writing import merging
from pipeline.writing.merging import merge
from pipeline.writing.plan import Part
from pipeline.writing.shard import _write_rows
from tests.pipeline.tiny import LABEL, given

ROWS, SHARDS = 20_000, 24
"""Rows of a shard, and shards."""
CORPUS = given("many", LABEL, [])


def rows_of_shard(partial: Path, number: int, rows: int = ROWS) -> Part:
    """What the writer of a shard leaves of its rows: a label each, whose size is their number in all shards."""
    name, sizes = f"train-{number:06d}", np.arange(number * rows, (number + 1) * rows)
    keys = [f"key-{size:08d}" for size in sizes]
    columns = {f.name: (sizes if f.name == "size" else 0 * sizes).astype(str(f.type)) for f in MEMBER}
    _write_rows(partial, name, {"bytes": "0", "skipped": "[]"}, keys, array("i", range(rows + 1)), columns)
    return Part(name, np.arange(rows))


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    for name in ("rows", "data"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_table_is_in_memory_once(partial: Path) -> None:
    parts = [rows_of_shard(partial, number) for number in range(SHARDS)]
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        merge(partial, CORPUS, [], parts, {})
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    written = (partial / "data" / NAME).stat().st_size
    assert written > 18e6
    assert peak < 1.4 * written
    manifest = open_manifest(partial / "data")
    count = SHARDS * ROWS
    assert (len(manifest), len(manifest.shards)) == (count, SHARDS)
    assert (manifest.size == np.arange(count)).all()
    assert (manifest.first == np.arange(count + 1)).all()
    assert [manifest.key(row) for row in (0, ROWS, count - 1)] == ["key-00000000", f"key-{ROWS:08d}", "key-00479999"]


def test_more_than_a_manifest_holds(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [rows_of_shard(partial, number, 4) for number in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(merging, "LIMIT", 11)
        with pytest.raises(UserError, match="12 members and 144 bytes of keys: a manifest holds 11 of each"):
            merge(partial, CORPUS, [], parts, {})
    monkeypatch.setattr(merging, "_bounds", lambda keys: np.array([0, 2_000_000_000], np.int32))
    with pytest.raises(UserError, match="12 members and 6,000,000,000 bytes of keys"):
        merge(partial, CORPUS, [], parts, {})
    assert not list((partial / "data").iterdir())
