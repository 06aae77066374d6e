"""Gaussian and Laplace values: densities as scipy has them, of a fixed scale, around what the decoder's output says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from modalities import Attributes, Features, Image
from modalities.independent import Independent

SCALES = [0.05, 0.75, 1.0, 20.0]
DENSITIES = {"gaussian": stats.norm, "laplace": stats.laplace}
Continuous = Literal["gaussian", "laplace"]


def grey(likelihood: Continuous, scale: float, side: int = 3) -> Image:
    return Image(side, side, hidden=(4,), likelihood=likelihood, scale=scale)


def coloured(likelihood: Continuous, scale: float, side: int = 3) -> Image:
    return Image(side, side, hidden=(4,), channels=3, likelihood=likelihood, scale=scale)


def numbers(likelihood: Continuous, scale: float, side: int = 3) -> Features:
    return Features(side, hidden=(4,), likelihood=likelihood, scale=scale)


LOCATIONS: dict[Callable[..., Independent], Callable[[Any], Any]] = {
    grey: special.expit,
    coloured: special.expit,
    numbers: lambda output: output,
}
"""What makes an element's location of the decoder's output."""


@pytest.fixture(params=LOCATIONS, name="make")
def _make(request: pytest.FixtureRequest) -> Callable[..., Independent]:
    return request.param


def some(modality: Independent, rows: int = 5) -> tuple[Tensor, Tensor]:
    """Outputs of a decoder, and values."""
    generator = torch.Generator().manual_seed(3)
    outputs = 3 * torch.randn(rows, int(np.prod(modality.shape)), generator=generator)
    return outputs, torch.rand(rows, *modality.shape, generator=generator)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("likelihood", DENSITIES)
def test_densities_are_scipys(make: Callable[..., Independent], likelihood: Continuous, scale: float) -> None:
    """In nats, summed over a row's elements; `scale` is what scipy calls so."""
    modality = make(likelihood, scale)
    outputs, values = some(modality)
    location = LOCATIONS[make](outputs.double().numpy())
    expected = DENSITIES[likelihood].logpdf(values.double().flatten(1).numpy(), location, scale).sum(1)
    np.testing.assert_allclose(modality.log_likelihood(outputs, values).numpy(), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(modality.mean(outputs).flatten(1).numpy(), location, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("likelihood", DENSITIES)
def test_densities_integrate_to_one(likelihood: Continuous, scale: float) -> None:
    """Over the reals, of one element; that levels end at 0 and 1, neither knows."""
    for modality in (grey(likelihood, scale, 1), numbers(likelihood, scale, 1)):
        outputs, _ = some(modality, 1)
        middle = float(modality.mean(outputs).flatten())

        def density(x: float, modality: Independent = modality, outputs: Tensor = outputs) -> float:
            value = torch.full((1, *modality.shape), x)
            return float(modality.log_likelihood(outputs, value).exp())

        ends = (middle - 30 * scale, middle + 30 * scale)
        whole, _ = integrate.quad(density, *ends, points=[middle], epsabs=1e-5, epsrel=1e-5)
        assert whole == pytest.approx(1, abs=1e-4)


def test_scores_are_summed_in_float32(make: Callable[..., Independent]) -> None:
    for likelihood in DENSITIES:
        modality = make(likelihood, 0.5)
        outputs, values = some(modality)
        half = outputs.bfloat16()
        ours = modality.log_likelihood(half, values)
        assert ours.dtype == modality.mean(half).dtype == torch.float32
        assert torch.equal(ours, modality.log_likelihood(half.float(), values))


def test_the_likeliest_value_is_the_mean(make: Callable[..., Independent]) -> None:
    for likelihood in DENSITIES:
        modality = make(likelihood, 0.5)
        outputs, values = some(modality)
        best = modality.log_likelihood(outputs, modality.mean(outputs))
        assert (best > modality.log_likelihood(outputs, values)).all()


def test_attributes_are_bernoulli_variables() -> None:
    attributes = Attributes(3, hidden=(4,))
    assert (attributes.likelihood, attributes.scale, attributes.activation) == ("bernoulli", 1.0, "swish")
    outputs = torch.tensor([[2.0, -1.0, 0.5]])
    values = torch.tensor([[1.0, 0.0, 0.0]])
    expected = stats.bernoulli.logpmf(values.numpy(), special.expit(outputs.double().numpy())).sum()
    assert float(attributes.log_likelihood(outputs, values)) == pytest.approx(expected)
