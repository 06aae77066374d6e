"""Noise is standard normal, independent, and a pure function of (seed, purpose, row, term)."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.noise import normal
from pipeline.order import seed_of


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def correlation(left: Tensor, right: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])


@pytest.mark.parametrize(("seed", "first"), [(0, 0), (1, 10**12), (2**63 + 5, 2**50), (-3, 7)])
def test_standard_normal(seed: int, first: int) -> None:
    noise = normal(seed, "train", torch.arange(first, first + 2000), 10, 20).double()
    count = noise.numel()
    assert noise.isfinite().all()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96, 6: 10170}[power] ** 0.5  # of one number's power
        assert abs(float((noise**power).mean()) - moment) < 4.5 * spread / count**0.5
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    tail = float((noise.abs() > 4).double().mean())
    assert tail == pytest.approx(2 * stats.norm.sf(4), rel=0.5)  # no clipped tails


def test_a_row_of_noise_is_normal_by_itself() -> None:
    """Neighbouring rows, terms and dimensions are hashes of neighbouring addresses: none may be special."""
    noise = normal(3, "train", torch.arange(300), 40, 30).double()
    for axes in ((0, 1), (1, 2), (0, 2)):
        size = noise.numel() / noise.mean(axes).numel()
        assert float(noise.mean(axes).abs().max()) < 5 / size**0.5
        assert float((noise.square().mean(axes) - 1).abs().max()) < 6 * (2 / size) ** 0.5


def test_independent_across_rows_terms_and_dimensions() -> None:
    count, latent = 4000, 6
    noise = normal(0, "train", torch.arange(count), 8, latent).double()
    limit = 4.5 / (8 * count * latent) ** 0.5
    for lag in (1, 2, 100):  # 100: a step's rows at the usual batch
        size = noise[:, lag:].numel()
        assert abs(correlation(noise[:, lag:], noise[:, :-lag])) < 4.5 / size**0.5
    for lag in (1, 4):
        assert abs(correlation(noise[lag:], noise[:-lag])) < 2 * limit
    columns = noise.permute(0, 2, 1).reshape(8 * latent, count)
    for transform in (lambda x: x, torch.square, torch.abs, torch.sign):  # Box-Muller's pairs share a radius
        between = torch.corrcoef(transform(columns)) - torch.eye(8 * latent)
        assert float(between.abs().max()) < 5.5 / count**0.5
    across = [noise[0, :, 0], normal(1, "train", torch.arange(count), 8, latent)[0, :, 0].double()]
    assert abs(correlation(*across)) < 4.5 / count**0.5


@pytest.mark.parametrize("latent", [1, 2, 3, 16, 63, 64])
def test_a_row_does_not_hang_on_the_others(latent: int) -> None:
    """Bit for bit: which rows a rank has, their order and the number of terms change nothing."""
    numbers = torch.randperm(997, generator=torch.Generator().manual_seed(0)) * 1001
    noise = normal(5, "train", numbers, 4, latent)
    assert noise.shape == (4, 997, latent)
    assert noise.dtype == torch.float32
    order = torch.randperm(997, generator=torch.Generator().manual_seed(1))
    assert torch.equal(normal(5, "train", numbers[order], 4, latent), noise[:, order])
    for start, stop in ((0, 1), (3, 4), (10, 17), (500, 997)):
        assert torch.equal(normal(5, "train", numbers[start:stop], 4, latent), noise[:, start:stop])
    assert torch.equal(normal(5, "train", numbers, 1, latent), noise[:1])
    assert torch.equal(normal(5, "train", numbers, 3, latent), noise[:3])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(normal(5, "train", numbers, 4, latent), noise)
    finally:
        torch.set_num_threads(threads)


def test_nothing_else_moves_it() -> None:
    before = normal(0, "train", rows(1, 2), 2, 4)
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert torch.equal(normal(0, "train", rows(1, 2), 2, 4), before)
    assert torch.equal(torch.random.get_rng_state(), state)  # nor does it move torch's generator


def by_hand(seed: int, purpose: str, row: int, terms: int, latent: int) -> list[list[float]]:
    """The same in Python's integers and float64."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    golden, half = 0x9E3779B97F4A7C15, (latent + 1) // 2
    key = mix((row * golden + seed_of(seed, "noise", purpose)) % 2**64)
    noise = []
    for term in range(terms):
        bits = [mix((key + (term * half + pair + 1) * golden) % 2**64) for pair in range(half)]
        radius = [math.sqrt(-2 * math.log(((b >> 32) + 0.5) / 2**32)) for b in bits]
        angle = [2 * math.pi * (b % 2**32) / 2**32 for b in bits]
        both = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        both += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        noise.append(both[:latent])
    return noise


def test_fixed_for_ever() -> None:
    """Box-Muller of SplitMix64. Another formula would mean that a run of today cannot be continued tomorrow."""
    for seed, row in ((0, 0), (7, 41), (2**63, 2**40 + 1)):
        expected = torch.tensor(by_hand(seed, "train", row, 3, 5))
        torch.testing.assert_close(normal(seed, "train", rows(row), 3, 5)[:, 0], expected, atol=2e-6, rtol=2e-6)
    expected = torch.tensor([[0.1636, -0.5294, -0.6334], [-2.3532, -1.2145, -0.1406]])
    torch.testing.assert_close(normal(7, "train", rows(41), 2, 3)[:, 0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "other",
    [
        lambda: normal(1, "train", rows(5), 3, 8),
        lambda: normal(-1, "train", rows(5), 3, 8),
        lambda: normal(0, "evaluate", rows(5), 3, 8),
        lambda: normal(0, "train", rows(6), 3, 8),
        lambda: normal(0, "train", rows(0), 3, 8),
        lambda: normal(0, "train", rows(2**62), 3, 8),
    ],
)
def test_another_seed_purpose_or_row_is_other_noise(other: object) -> None:
    noise = normal(0, "train", rows(5), 3, 8)
    assert not (noise == other()).any()  # type: ignore[operator]
    assert len(noise.unique()) == noise.numel()


def test_no_number_comes_twice() -> None:
    """Addresses of neighbouring rows and lanes must not run into each other."""
    noise = normal(0, "train", torch.arange(200), 20, 10).double()
    pairs = torch.stack([noise[..., :5].flatten(), noise[..., 5:].flatten()], 1)
    assert len(pairs.unique(dim=0)) == len(pairs)
