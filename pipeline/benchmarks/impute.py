"""What completing a data set takes beside the networks' own work."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from infra import distributed
from infra.checkpoint import Checkpoints
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.data import corpus
from pipeline.benchmarks.harness import Outcome, alternate, one_thread
from pipeline.config import Run
from pipeline.imputing.filling import TOGETHER
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


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Samples per second, one CPU thread, of data in which half of the samples are an image and half a label: the whole
    way from shards to shards against the networks alone, on values in memory. Of celeba these are 64 x 64 pixels of
    photographs and 18 attributes.

    Both encode what is there and decode all modalities from as many samples of z, which is what the values and their
    uncertainty take. `samples`: how many there are, 4,096 of mnist and 512 of celeba where it is 0.
    """
    total, settings = samples or CASES[case][2], Settings(pairing=Pairing("keep-one", 0.0))
    with one_thread(), tempfile.TemporaryDirectory() as place:
        world = distributed.start("cpu", 1)
        job, numbers = _job(case, Path(place), total, settings), count()

        def ours() -> tuple[int, float]:
            out = Path(place) / f"out-{next(numbers)}"
            began = time.perf_counter()
            impute(job, out, world)
            took = time.perf_counter() - began
            shutil.rmtree(out)
            return total, took

        turns = {PASSES: _passes(job.run, total, settings.samples), OURS: ours}
        return alternate("impute", case, "samples", turns, blocks, [PASSES], progress=progress)


def _job(case: str, place: Path, samples: int, settings: Settings) -> Job:
    """Data of so many pairs, and a model with its initial weights."""
    data, model, _ = CASES[case]
    made, base = corpus(data, samples), model()
    write(place / "data", made)
    # the networks of the recipe, under the names that the samples have
    kinds = dict(zip(made.modalities, base.modalities.values(), strict=True))
    settled = replace(base, data=str(place / "data"), modalities=kinds, objective=Objective())
    weights = {f"model.{name}": tensor for name, tensor in build(settled).state_dict().items()}
    meta = {"fingerprint": open_manifest(settled.data).fingerprint, "best": None}
    checkpoints = Checkpoints(place / "run" / "checkpoints")
    checkpoints.save(settled.train.steps, {"model": weights}, meta)
    return prepared(settled, place / "run", checkpoints.load(settled.train.steps), settled.data, settings)


def _passes(settled: Run, samples: int, each: int) -> Callable[[], tuple[int, float]]:
    """As many rows through the networks, in the same batches."""
    encoders, decoders = cases.networks(settled)
    rows = TOGETHER // each
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
