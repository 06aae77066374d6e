"""A projection, no measurement: step time and stream at 8, 64 and 512 GPUs, from what is measured here and the speeds
of links as their makers state them.

Measured on this machine: the steps of one rank (on its GPU where there is one), the bytes of the gradients, the rows
that one core reads, verifies and decodes, and the bytes of a row. Assumed: `Links`.

A step at n ranks takes as long as the slowest of n draws from the measured steps, and then the sum of the gradients,
which ZeRO 0 begins when all are there: first within each node, then between nodes on the part that each GPU keeps, then
within each node again. In a ring of r, each sends 2 (r - 1) / r of its bytes in 2 (r - 1) messages; what stands below
as efficiency is the time of one rank's step by that of n. The stream needs as many rows a second as the ranks of a node
take, and their bytes through the node's link to storage.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from infra import distributed
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.data import corpus
from pipeline.benchmarks.harness import Outcome, alternate, drawing, one_thread
from pipeline.benchmarks.scaling import CASES
from pipeline.benchmarks.stream import SHARD_BYTES, ours
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.train import build
from pipeline.writing import write

GPUS = (8, 64, 512)
STEPS, SAMPLES, DRAWS = 4, 2000, 2000
CORPORA = {"mnist": "raw", "celeba": "jpeg"}
"""Data of the stream's benchmark that have a case's form."""


@dataclass(frozen=True)
class Links:
    """Of a node as it is usual for training, each way."""

    gpus: int = 8
    """A node."""
    within: float = 450e9
    """Bytes a second between GPUs of a node (NVLink 4)."""
    between: float = 50e9
    """Bytes a second of a GPU's own link to other nodes (InfiniBand NDR, 400 Gbit/s)."""
    delay_within: float = 3e-6
    """Seconds of a message."""
    delay_between: float = 10e-6
    storage: float = 12.5e9
    """Bytes a second that a node reads from storage (100 Gbit/s)."""
    cores: int = 8
    """For each GPU, of which its stream has all but one."""

    def summing(self, size: float, ranks: int) -> float:
        """Seconds to sum so many bytes over ranks that fill nodes one after another."""
        inner = min(ranks, self.gpus)
        nodes = -(-ranks // self.gpus)
        within = 2 * (inner - 1) * (size / inner / self.within + self.delay_within)
        between = 2 * (nodes - 1) * (size / inner / nodes / self.between + self.delay_between)
        return within + between


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Rows per second of one rank's steps and of one thread's stream as measured; figures: what follows from them at
    each number of GPUs. `samples`: of the data that are read, SAMPLES for 0."""
    links, took = Links(), list[float]()
    settings = CASES[case]()
    world = distributed.start("auto", 1)
    settings = replace(settings, engine=replace(settings.engine, device="auto"))
    batches = [batch.to(world.device) for batch in cases.batches(settings, STEPS)]
    engine = Engine(build(settings), settings, world)

    def steps() -> tuple[int, float]:
        for number, batch in enumerate(batches):
            began = time.perf_counter()
            loss = cases.loss(engine.module, settings, batch, number)
            engine.step(loss)
            loss.item()
            took.append(time.perf_counter() - began)
        return cases.SIZE * len(batches), sum(took[-len(batches) :])

    with tempfile.TemporaryDirectory() as folder, one_thread():
        data = Path(folder) / case
        made = corpus(CORPORA[case], samples or SAMPLES)
        write(data, made, SHARD_BYTES, workers=1)
        manifest = open_manifest(data)
        rows = ours(manifest, made.modalities, 0)
        turns = {"steps of one rank": steps, "stream, one thread": drawing(rows)}
        outcome = alternate("project", case, "rows", turns, blocks, progress=progress)
        rows.close()
    gradients = 4.0 * sum(parameter.numel() for parameter in engine.module.parameters())
    bytes_a_row = sum(shard.bytes for shard in manifest.shards) / len(manifest)
    measured = np.array(took[len(batches) :])  # the first turn warms up
    told = partial(projected, links, measured, gradients, outcome.per_second["stream, one thread"], bytes_a_row)
    figures = {"one rank's step, ms": 1e3 * float(np.median(measured)), "gradients, MB": gradients / 1e6,
               "bytes of a row": bytes_a_row}  # fmt: skip
    for ranks in GPUS:
        figures |= told(ranks)
    return replace(outcome, figures=figures)


def projected(
    links: Links, steps: np.ndarray, gradients: float, rows_a_core: float, bytes_a_row: float, ranks: int
) -> dict[str, float]:
    """`steps`: measured seconds; `gradients`: bytes; `rows_a_core`: rows per second."""
    draws = np.random.default_rng(0).choice(steps, (DRAWS, ranks))
    slowest, summing = float(draws.max(1).mean()), links.summing(gradients, ranks)
    step = slowest + summing
    on_node = min(ranks, links.gpus)
    wanted = on_node * cases.SIZE / step
    at = f"at {ranks} GPUs: "
    return {
        f"{at}step, ms": 1e3 * step,
        f"{at}of it waiting for the slowest rank, ms": 1e3 * (slowest - float(np.median(steps))),
        f"{at}of it summing gradients, ms": 1e3 * summing,
        f"{at}efficiency": float(np.median(steps)) / step,
        f"{at}rows a second": ranks * cases.SIZE / step,
        f"{at}rows that a node's cores can read, by those it needs": rows_a_core * on_node * (links.cores - 1) / wanted,
        f"{at}share of a node's link to storage": wanted * bytes_a_row / links.storage,
    }
