"""Reading costs as much memory after a hundred thousand batches as after twenty thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.manifest import BLOCK
from tests.pipeline.tiny import make

ROOT = Path(__file__).parents[2]
LOADER = """
import json, os, sys
from pathlib import Path

from pipeline.collate import Collator, prefetch
from pipeline.settings import Pairing
from pipeline.manifest import open_manifest
from pipeline.pairing import view
from pipeline.stream import Share, Stream
from tests.pipeline.tiny import MODALITIES, NAMES

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

pairing = Pairing(view="split", fraction=0.5, composition="balanced")
stream = Stream([view(open_manifest(sys.argv[1]), "train", NAMES, pairing, 0, 8)], MODALITIES, 0)
share, collate = Share(stream), Collator(stream.manifests, MODALITIES, Path(sys.argv[2]), budget=1.0)
at = {}
for done, batch in enumerate(prefetch(lambda step: collate(share(step)), 0, 100_000, workers=2), start=1):
    if done % 20_000 == 0:
        at[done] = resident()
print(json.dumps([at, collate.rows_read, collate.rows_damaged]))
"""


@pytest.mark.slow
def test_a_loader_does_not_grow_over_a_hundred_thousand_batches(tmp_path: Path) -> None:
    """Several instances, several passes over scarce pools, and damaged members that come back again and again."""
    manifest = make(tmp_path / "d", 40)
    shard = tmp_path / "d" / manifest.shards[0].name
    data, split = bytearray(shard.read_bytes()), int(manifest.first[40])
    for member in range(0, split, 5):
        data[int(manifest.block[member]) * BLOCK] ^= 1
    shard.write_bytes(data)
    command = [sys.executable, "-c", LOADER, str(tmp_path / "d"), str(tmp_path / "quarantine.jsonl")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    at, read, damaged = json.loads(done.stdout)
    assert read == 800_000
    assert damaged > 100_000
    assert (tmp_path / "quarantine.jsonl").read_text().count("\n") == len(range(0, split, 5))
    assert at["100000"] - at["20000"] < 3e6, at
