"""Benchmarks: contenders take turns, block by block, and ratios of the same block are what counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.benchmarks.harness import Outcome

Progress = Callable[[int, int], None]
"""Called after each block with the blocks that are done and all blocks."""


@dataclass(frozen=True)
class Benchmark:
    """What can be measured by one name; the module of that name in this package does it."""

    about: str
    cases: tuple[str, ...]


BENCHMARKS = {
    "step": Benchmark(
        "One training step: of the digits recipe under Accelerate and DeepSpeed against a plain PyTorch loop, of MVAE "
        "against MultiVae where that is installed, and over the number of modalities and of random subsets.",
        ("digits", "mnist", "mnist-half", "celeba19", "growth"),
    ),
    "stream": Benchmark(
        "Batches from shards, checksums verified, against plain webdataset with the same decoder.",
        ("raw", "png", "jpeg", "text"),
    ),
    "sweep": Benchmark(
        "A sweep of eight trials against the same trainings in a plain loop: seconds that Ray costs a trial; and the "
        "driver's memory over 500 tiny trials. --samples is the steps of a trial, or the number of tiny trials.",
        ("overhead", "memory"),
    ),
    "pack": Benchmark(
        "Sixteen trials trained as one program against the same trials one after another. --samples is the steps "
        "of whole trials.",
        ("digits", "mnist"),
    ),
    "tracking": Benchmark(
        "One training step while MLflow's server is up, answers two seconds late, or is gone, against a journal that "
        "nobody delivers.",
        ("digits",),
    ),
    "scaling": Benchmark(
        "Two ranks with one thread each against two processes that train on their own at the same time; what summing "
        "gradients and writing checkpoints take of it. --samples is the steps of a turn.",
        ("mnist", "celeba"),
    ),
    "project": Benchmark(
        "No measurement at that size: step time and stream at 8, 64 and 512 GPUs, computed from steps, bytes and "
        "reading measured here and the stated speeds of links.",
        ("mnist", "celeba"),
    ),
    "impute": Benchmark(
        "Completing a data set, from shards to shards, against the passes of encoders and decoders that it takes; two "
        "ranks against two processes on their own; memory at two sizes of the data.",
        ("mnist", "celeba", "ranks", "memory"),
    ),
    "serve": Benchmark(
        "The model of the MNIST recipe behind MLflow's server on one core: an answer's time, a hundred clients at "
        "once, and requests of any kind. --samples is how many of these.",
        ("mnist",),
    ),
    "manifest": Benchmark(
        "Opening the manifest of 10 million samples in a fresh process: seconds and resident memory.", ("open",)
    ),
}


def run(name: str, case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Measure one case of a benchmark in `blocks` blocks. `samples` is how many are made; 0 is the usual number."""
    outcome: Outcome = import_module(f"pipeline.benchmarks.{name}").run(case, blocks, samples, progress)
    return outcome
