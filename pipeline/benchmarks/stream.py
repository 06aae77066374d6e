"""Batches from shards against plain webdataset: same shards, same decoder, shuffled, one thread each."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.benchmarks.harness import Outcome, alternate
from pipeline.config import Pairing
from pipeline.corpora import find, prepare
from pipeline.manifest import open_manifest
from pipeline.pairing import view
from pipeline.stream import Collator, Stream

BATCHES, SIZE = 20, 100


def run(blocks: int) -> Outcome:
    """Rows per second of collated batches of three modalities; ours verify every checksum."""
    import webdataset

    modalities = find("digits").modalities
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        prepare("digits", data)
        manifest = open_manifest(data)
        stream = Stream(manifest, view(manifest, "train", list(modalities), Pairing(), 0, SIZE), modalities, 0, SIZE)
        collate = Collator(manifest, modalities)
        url = str(data / manifest.shards[0].name)
        fields = [f"{name}.{modality.extension}" for name, modality in modalities.items()]
        position = 0

        def ours() -> int:
            nonlocal position
            for step in range(position, position + BATCHES):
                collate(stream.global_batch(step))
            position += BATCHES
            return BATCHES * SIZE

        def samples() -> webdataset.WebDataset:
            return webdataset.WebDataset(url, shardshuffle=False).shuffle(1000).repeat()

        endless = iter(samples())

        def theirs() -> int:
            for _ in range(BATCHES):
                rows = list(islice(endless, SIZE))
                for modality, field in zip(modalities.values(), fields, strict=True):
                    modality.decode([row[field] for row in rows])
            return BATCHES * SIZE

        raw = [np.zeros((BATCHES * SIZE, *m.shape), m.dtype) for m in modalities.values()]
        encoded = [[m.encode(v * 0) for v in values] for m, values in zip(modalities.values(), raw, strict=True)]

        def decode_alone() -> int:
            for modality, members in zip(modalities.values(), encoded, strict=True):
                for start in range(0, BATCHES * SIZE, SIZE):
                    modality.decode(members[start : start + SIZE])
            return BATCHES * SIZE

        contenders = {"webdataset": theirs, "pairstream": ours, "decode alone": decode_alone}
        return alternate("stream", "rows", contenders, "webdataset", blocks, limits=("decode alone",))
