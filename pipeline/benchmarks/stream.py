"""Batches from shards against plain webdataset: same shards, same decoder, shuffled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from modalities import Modality
from pipeline.benchmarks import Progress
from pipeline.benchmarks.data import corpus
from pipeline.benchmarks.harness import Outcome, alternate, drawing, one_thread
from pipeline.collate import Collator, prefetch
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.stream import Share, Stream
from pipeline.writing import write

SAMPLES, SIZE, SHARD_BYTES = 6000, 100, 2 * 2**20
SHUFFLE = 1000
"""Samples in webdataset's shuffle buffer; ours is an order over all samples."""
WORKERS = (0, 2)
"""Worker processes of webdataset: the better one is the reference."""
THREADS = (0, 1, 2)
"""Threads of ours that read ahead; 0 reads in the thread that takes the batches."""
LIMITS = ("decode alone, one thread", "bytes read and verified")


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Rows per second of decoded batches of 100; ours verify every checksum, and their bytes come from the page cache.

    raw: 28x28 .npy and a label. png: the same as PNG. jpeg: 64x64 in colour and 18 attributes. text: two sentences as
    SentencePiece ids.
    """
    with tempfile.TemporaryDirectory() as folder, one_thread(), ExitStack() as closing:
        data = Path(folder) / case
        made = corpus(case, samples or SAMPLES)
        write(data, made, SHARD_BYTES, workers=1)
        manifest, modalities = open_manifest(data), made.modalities
        rows = {f"webdataset, {n} workers": _theirs(manifest, data, modalities, n) for n in WORKERS}
        references = list(rows)  # first, so that their processes begin before there are threads
        rows |= {f"pairstream, {n} threads": ours(manifest, modalities, n) for n in THREADS}
        rows |= {LIMITS[0]: _decode_alone(manifest, data, modalities), LIMITS[1]: _read_and_verify(manifest, data)}
        for generator in rows.values():
            closing.callback(generator.close)
        turns = {name: drawing(generator) for name, generator in rows.items()}
        return alternate("stream", case, "rows", turns, blocks, references, LIMITS, progress)


Rows = Generator[int, None, None]
"""Gives the number of rows of each batch, for ever."""


def _theirs(manifest: Manifest, data: Path, modalities: Mapping[str, Modality], workers: int) -> Rows:
    import webdataset

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(modality.decode([sample[f"{name}.{modality.extension}"] for sample in samples]))
            for name, modality in modalities.items()
        }

    urls = [str(data / shard.name) for shard in manifest.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE).repeat()
    batches = dataset.batched(SIZE, collation_fn=collate, partial=False)
    for batch in webdataset.WebLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0):
        yield len(next(iter(batch.values())))


def ours(manifest: Manifest, modalities: Mapping[str, Modality], threads: int) -> Rows:
    """Batches of our stream, shuffled, read ahead by so many threads."""
    shown = view(manifest, "train", list(modalities), Pairing(), 0, SIZE)
    stream = Stream([shown], modalities, seed=0)
    share, collate = Share(stream), Collator(stream.manifests, modalities)
    batches = prefetch(lambda step: collate(share(step)), 0, 2**40, threads)
    try:
        for batch in batches:
            yield len(batch)
    finally:
        batches.close()  # type: ignore[attr-defined]


def _decode_alone(manifest: Manifest, data: Path, modalities: Mapping[str, Modality]) -> Rows:
    batches = []
    for shard, members in _side_by_side(manifest)[:20]:
        whole, kind = (data / shard).read_bytes(), manifest.modality[members]
        files = [whole[start : start + size] for start, size, _ in _places(manifest, members)]
        column = manifest.column(list(modalities))
        batches.append([[files[i] for i in np.flatnonzero(kind == number)] for number in column])
    for batch in cycle(batches):
        for modality, some in zip(modalities.values(), batch, strict=True):
            modality.decode(some)
        yield len(batch[0])


def _read_and_verify(manifest: Manifest, data: Path) -> Rows:
    files = {shard.name: os.open(data / shard.name, os.O_RDONLY) for shard in manifest.shards}
    stretches = [(files[shard], _places(manifest, members)) for shard, members in _side_by_side(manifest)]
    try:
        for file, places in cycle(stretches):
            begin = min(start for start, _, _ in places)
            read = memoryview(os.pread(file, max(start + size for start, size, _ in places) - begin, begin))
            for start, size, checksum in places:
                if xxhash.xxh3_64_intdigest(read[start - begin : start - begin + size]) != checksum:
                    raise ValueError("checksum differs")
            yield len(places) // len(manifest.modalities)
    finally:
        for file in files.values():
            os.close(file)


def _side_by_side(manifest: Manifest) -> list[tuple[str, np.ndarray]]:
    """Members of (at most) SIZE samples at a time, with their shard's name; all samples have all modalities."""
    many, result = SIZE * len(manifest.modalities), []
    for number, shard in enumerate(manifest.shards):
        members = np.flatnonzero(manifest.shard == number)
        result += [(shard.name, members[first : first + many]) for first in range(0, len(members), many)]
    return result


def _places(manifest: Manifest, members: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, size, checksum) of each member within its shard."""
    start = manifest.block[members].astype(np.int64) * BLOCK
    columns = (start, manifest.size[members], manifest.checksum[members])
    return list(zip(*(column.tolist() for column in columns), strict=True))
