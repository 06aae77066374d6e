"""Opening a large manifest in a fresh process, against reading its bytes and hashing them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.benchmarks import Progress
from pipeline.benchmarks.harness import Outcome, Turn, alternate, resident

SAMPLES = 10_000_000
SHARD = 10_000
"""Samples of each shard."""
PIECE = 2**22
"""Bytes that are read and hashed at a time."""
OPENED, HASHED = "open_manifest", "bytes read and hashed"


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Samples per second of opening, each time in a fresh process; the file is in the page cache.

    The figures are medians over the processes: seconds, and megabytes (10^6 bytes) of resident memory, which /proc
    tells apart as anonymous and file-backed; "grown" is since the imports.
    """
    count = samples or SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), count)
        answers: list[dict[str, float]] = []
        turns = {OPENED: _turn("opened", folder, count, answers), HASHED: _turn("hashed", folder, count)}
        outcome = alternate("manifest", case, "samples", turns, blocks, limits=(HASHED,), progress=progress)
    answers = answers[1:]  # the first one was to warm up
    return replace(
        outcome, figures={name: statistics.median(answer[name] for answer in answers) for name in answers[0]}
    )


def _turn(function: str, folder: str, samples: int, answers: list[dict[str, float]] | None = None) -> Turn:
    program = f"from pipeline.benchmarks.manifest import {function}; {function}({folder!r})"

    def turn() -> tuple[int, float]:
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        answer: dict[str, float] = json.loads(done.stdout)
        if answers is not None:
            answers.append(answer)
        return samples, answer["seconds"]

    return turn


def make(directory: Path, samples: int) -> None:
    """Write a manifest of so many samples of an image and a label each; there are no shards."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.manifest import Described, Shard
    from pipeline.writing.manifest import write_manifest

    numbers = pc.utf8_lpad(pc.cast(pa.array(np.arange(samples)), pa.string()), 9, "0")
    keys = pc.binary_join_element_wise("train", numbers, "/").cast(pa.string())
    member, rng = np.arange(2 * samples), np.random.default_rng(0)
    shard = member // (2 * SHARD)
    columns: dict[str, np.ndarray] = {
        "modality": (member % 2).astype(np.uint16),
        "shard": shard.astype(np.uint32),
        "block": (1 + member % (2 * SHARD) * 5).astype(np.uint32),
        "size": rng.integers(1, 2049, len(member), np.uint32),
        "checksum": rng.integers(0, 2**64, len(member), np.uint64),
    }
    shards = [Shard(f"train-{number:06d}.tar", 2 * SHARD * 5 * 512) for number in range(int(shard[-1]) + 1)]
    described = {"image": Described("jpg", (3, 64, 64)), "label": Described("cls", ())}
    splits = {"train": range(samples)}
    write_manifest(directory, "large", described, shards, splits, keys, np.arange(0, 2 * samples + 1, 2), columns)


def opened(folder: str) -> None:
    """Open the manifest of a directory in this process; prints seconds and memory as JSON."""
    import time

    from pipeline.manifest import open_manifest

    before, started = resident(), time.perf_counter()
    manifest = open_manifest(Path(folder))
    seconds, after = time.perf_counter() - started, resident()
    grown = {f"{name}, grown, MB": after[name] - before[name] for name in after}
    print(json.dumps({"seconds": seconds, "samples": len(manifest)} | grown | {f"{n}, MB": after[n] for n in after}))


def hashed(folder: str) -> None:
    """Read the same file and hash it; prints the seconds as JSON."""
    import time

    import xxhash

    from pipeline.manifest import NAME

    started, digest, piece = time.perf_counter(), xxhash.xxh3_128(), memoryview(bytearray(PIECE))
    with (Path(folder) / NAME).open("rb", buffering=0) as file:
        while got := file.readinto(piece):
            digest.update(piece[:got])
    print(json.dumps({"seconds": time.perf_counter() - started}))
