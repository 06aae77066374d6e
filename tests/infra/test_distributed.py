"""What a process settles before it computes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from infra import distributed
from infra.distributed import flushing_denormals
from pipeline.train import train
from tests.pipeline.training import a_run

SMALL = torch.full((1 << 20,), 1e-40)


def test_denormal_numbers_are_0_to_a_cpu_and_afterwards_what_they_were() -> None:
    """Gradients of samples that weigh 1e-40 made MMVAE's products on a CPU up to twenty times slower."""
    with flushing_denormals():
        assert not (SMALL[:1] * 1.5).item()
    assert (SMALL[:1] * 1.5).item() > 0
    torch.set_flush_denormal(True)
    with flushing_denormals():
        pass
    assert not (SMALL[:1] * 1.5).item()
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2])
def test_training_flushes_them_in_all_its_threads(threads: int, digits_dir: Path, tmp_path: Path) -> None:
    """In a process of its own: a thread that ran before it joined the process group keeps its flag."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        seen, after = process.submit(_seen_in_training, digits_dir, tmp_path, threads).result()
    assert seen == [False, False]
    assert after


def _seen_in_training(data: Path, place: Path, threads: int) -> tuple[list[bool], bool]:
    """Whether denormal numbers are not 0 to any thread: at each step, and to the caller afterwards."""
    seen: list[bool] = []

    def look(*_: object) -> None:
        weight = torch.ones(1 << 20, requires_grad=True)
        (weight * SMALL).sum().backward()
        assert weight.grad is not None
        assert torch.get_num_threads() == threads
        seen.append(bool((SMALL * 1.5).any()) or bool((weight.grad * 1.5).any()))

    distributed.start("cpu", threads)
    SMALL.sum()  # as an evaluation before it would do
    changes = {"train.steps": 2, "engine.threads": threads, "tracking.enabled": False}
    train(a_run(data, **changes), place, on_step=look)
    return seen, (SMALL[:1] * 1.5).item() > 0
