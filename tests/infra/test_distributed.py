"""What a process settles before it computes."""

from __future__ import annotations

import pytest
import torch

from infra import distributed


@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_are_0_to_a_cpu(threads: int) -> None:
    """Gradients of samples that weigh 1e-40 made MMVAE's products on a CPU up to twenty times slower."""
    torch.set_flush_denormal(False)
    before = torch.get_num_threads()
    try:
        distributed.start("cpu", threads)
        small = torch.full((1 << 20,), 1e-40)
        weight = torch.ones(1 << 20, requires_grad=True)
        assert not (small * 1.5).any()
        (weight * small).sum().backward()
        assert weight.grad is not None
        assert not (weight.grad * 1.5).any()
    finally:
        torch.set_num_threads(before)
