"""What a process settles before it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infra.distributed import flushing_denormals
from pipeline.train import train
from tests.pipeline.training import a_run

SMALL = torch.full((1 << 20,), 1e-40)


@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_are_0_to_a_cpu_and_afterwards_what_they_were(threads: int) -> None:
    """Gradients of samples that weigh 1e-40 made MMVAE's products on a CPU up to twenty times slower."""
    before, weight = torch.get_num_threads(), torch.ones(1 << 20, requires_grad=True)
    torch.set_num_threads(threads)
    try:
        with flushing_denormals():
            assert not (SMALL * 1.5).any()
            (weight * SMALL).sum().backward()
            assert weight.grad is not None
            assert not (weight.grad * 1.5).any()
    finally:
        torch.set_num_threads(before)
    assert (SMALL[:1] * 1.5).item() > 0
    torch.set_flush_denormal(True)
    with flushing_denormals():
        pass
    assert not (SMALL[:1] * 1.5).item()
    torch.set_flush_denormal(False)


def test_training_flushes_them(digits_dir: Path, tmp_path: Path) -> None:
    seen = []
    train(a_run(digits_dir, **{"train.steps": 2}), tmp_path, on_step=lambda *_: seen.append((SMALL[:1] * 1.5).item()))
    assert seen
    assert not any(seen)
    assert (SMALL[:1] * 1.5).item() > 0
