"""Benchmarks: each alternates contenders in one process and states ratios."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.benchmarks.harness import Outcome

Benchmark = Callable[[int], Outcome]
"""Takes the number of blocks."""


def step(blocks: int) -> Outcome:
    """One training step of the digits recipe under Accelerate and DeepSpeed against a plain PyTorch loop."""
    from pipeline.benchmarks.step import run

    return run(blocks)


def stream(blocks: int) -> Outcome:
    """Batches of the digits shards, checksums verified, against plain webdataset with the same decoder."""
    from pipeline.benchmarks.stream import run

    return run(blocks)


BENCHMARKS: dict[str, Benchmark] = {"step": step, "stream": stream}
