"""What completing a data set takes beside the networks' own work."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from infra import distributed
from infra.checkpoint import Checkpoints
from infra.distributed import World
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.crew import Answers, Crew
from pipeline.benchmarks.data import corpus
from pipeline.benchmarks.harness import Outcome, Turn, alternate, one_thread, resident
from pipeline.benchmarks.scaling import ALONE, RANKS, TOGETHER, enough_cores
from pipeline.config import Run
from pipeline.imputing import filling
from pipeline.imputing.job import Job, prepared
from pipeline.imputing.run import impute
from pipeline.imputing.settings import Settings
from pipeline.manifest import open_manifest
from pipeline.settings import Objective, Pairing
from pipeline.train import build
from pipeline.writing import write

CASES = {"mnist": ("raw", cases.mnist, 4096), "celeba": ("jpeg", cases.celeba, 512)}
"""Whose samples, whose networks, and how many samples."""
PASSES, OURS = "encoders and decoders alone", "pairstream impute"
SETTINGS = Settings(pairing=Pairing("keep-one", 0.0))
SHARD = 2**20
"""Bytes of a shard where ranks share the work: about 400 samples of mnist, so that both get as many."""
MORE = 4
"""Times as many samples, where memory is compared."""


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """What a case measures: `networks`, `ranks` or `memory`. `samples`: how many there are, 4,096 of mnist and 512 of
    celeba where it is 0."""
    what = {"ranks": ranks, "memory": memory}.get(case)
    return what(blocks, samples, progress) if what else networks(case, blocks, samples, progress)


def networks(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Samples per second, one CPU thread, of data in which half of the samples are an image and half a label: the whole
    way from shards to shards against the networks alone, on values in memory. Of celeba these are 64 x 64 pixels of
    photographs and 18 attributes.

    Both encode what is there and decode all modalities from as many samples of z, which is what the values and their
    uncertainty take.
    """
    total = samples or CASES[case][2]
    with one_thread(), tempfile.TemporaryDirectory() as place:
        world = distributed.start("cpu", 1)
        settled = fresh_run(case, Path(place), total)
        job, out = _job(settled, Path(place)), Path(place) / "out"

        def ours() -> tuple[int, float]:
            began = time.perf_counter()
            impute(job, out, world)
            took = time.perf_counter() - began
            shutil.rmtree(out)
            return total, took

        turns = {PASSES: _passes(settled, total, SETTINGS.samples), OURS: ours}
        return alternate("impute", case, "samples", turns, blocks, [PASSES], progress=progress)


def ranks(blocks: int, samples: int, progress: Progress) -> Outcome:
    """Samples per second, mnist, of two ranks with one thread each against two processes on their own at the same time,
    of which each completes half as many."""
    enough_cores()
    total = samples or CASES["mnist"][2]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_:
        turns = {}
        for name, size, together in ((ALONE, total // RANKS, False), (TOGETHER, total, True)):
            place = Path(folder) / str(together)
            crew = open_.enter_context(Crew(completing, (fresh_run("mnist", place, size), place), RANKS, together))
            turns[name] = _turn(crew, place, total)
        return alternate("impute", "ranks", "samples", turns, blocks, [ALONE], progress=progress)


def _turn(crew: Crew, place: Path, total: int) -> Turn:
    def turn() -> tuple[int, float]:
        took = crew.seconds("complete")
        for out in place.glob("out-*"):
            shutil.rmtree(out)
        return total, took

    return turn


def memory(blocks: int, samples: int, progress: Progress) -> Outcome:
    """The most memory that a fresh process ever has, mnist, of so many samples and of four times as many."""
    few = samples or CASES["mnist"][2]
    peaks: dict[int, list[float]] = {few: [], MORE * few: []}
    with tempfile.TemporaryDirectory() as folder:
        settled = {total: fresh_run("mnist", Path(folder) / str(total), total) for total in peaks}

        def measured(total: int) -> tuple[int, float]:
            place = Path(folder) / str(total)
            with Crew(completing, (settled[total], place), 1, ranks=False) as crew:
                took = crew.seconds("complete")
                peaks[total] += crew.ask("peak")
            shutil.rmtree(place / "out-0")
            return total, took

        turns = {f"{total:,} samples": partial(measured, total) for total in peaks}
        outcome = alternate("impute", "memory", "samples", turns, blocks, progress=progress)
        shards = [sum(file.stat().st_size for file in Path(settled[total].data).glob("*.tar")) for total in peaks]
    least, most = (statistics.median(some) for some in peaks.values())
    grown = {"memory, grown, MB": most - least, "shards, grown, MB": (shards[1] - shards[0]) / 1e6}
    return replace(
        outcome, figures={f"{total:,} samples, peak, MB": statistics.median(peaks[total]) for total in peaks} | grown
    )


def completing(world: World, number: int, settled: Run, place: Path) -> Answers:
    """What a process of a crew is asked: to "complete" the data, or for the "peak" of its memory in MB."""
    job, out = _job(settled, place), place / f"out-{number if world.size == 1 else 'ranks'}"

    def answers(asked: str) -> float | None:
        if asked == "peak":
            return resident()["peak"]
        impute(job, out, world, SHARD)
        return None

    return answers


def fresh_run(case: str, place: Path, samples: int) -> Run:
    """Data of so many pairs, and a run's checkpoint with initial weights; the run's configuration."""
    data, model, _ = CASES[case]
    made, base = corpus(data, samples), model()
    write(place / "data", made)
    # the networks of the recipe, under the names that the samples have
    kinds = dict(zip(made.modalities, base.modalities.values(), strict=True))
    settled = replace(base, data=str(place / "data"), modalities=kinds, objective=Objective())
    weights = {f"model.{name}": tensor for name, tensor in build(settled).state_dict().items()}
    meta = {"fingerprint": open_manifest(settled.data).fingerprint, "best": None}
    Checkpoints(place / "run" / "checkpoints").save(settled.train.steps, weights.items(), meta)
    return settled


def _job(settled: Run, place: Path) -> Job:
    checkpoint = Checkpoints(place / "run" / "checkpoints").load(settled.train.steps)
    return prepared(settled, place / "run", checkpoint, settled.data, SETTINGS)


def _passes(settled: Run, samples: int, each: int) -> Turn:
    """As many rows through the networks, in the same batches."""
    encoders, decoders = cases.networks(settled)
    rows = filling.TOGETHER // each
    values = {
        n: torch.from_numpy(np.zeros((rows // 2, *kind.shape), kind.dtype)) for n, kind in settled.modalities.items()
    }
    z = torch.zeros(each * rows, settled.model.latent)

    @torch.no_grad()
    def turn() -> tuple[int, float]:
        began = time.perf_counter()
        for _ in range(samples // rows):
            for name in settled.modalities:
                encoders[name](values[name])
                decoders[name](z)
        return samples // rows * rows, time.perf_counter() - began

    return turn
