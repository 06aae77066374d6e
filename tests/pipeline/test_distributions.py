"""Gaussian and Laplace against torch.distributions, scipy and their own definitions; mixtures with empty weights."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as theirs

from pipeline.experts import Gaussian, Laplace, mixture_log_prob

Ours = Gaussian | Laplace
KINDS = [Gaussian, Laplace]
B, Z = 7, 3


def spread(ours: Ours) -> Tensor:
    """The parameter beside the mean."""
    return ours.logvar if isinstance(ours, Gaussian) else ours.logscale


def some(kind: type[Ours], seed: int = 0) -> Ours:
    generator = torch.Generator().manual_seed(seed)
    return kind(3 * torch.randn(B, Z, generator=generator), torch.randn(B, Z, generator=generator))


def torchs(ours: Ours) -> theirs.Distribution:
    if isinstance(ours, Gaussian):
        return theirs.Independent(theirs.Normal(ours.mu, (0.5 * ours.logvar).exp()), 1)
    return theirs.Independent(theirs.Laplace(ours.mu, ours.logscale.exp()), 1)


def noise_of(kind: type[Ours], seed: int, shape: tuple[int, ...]) -> Tensor:
    """The standard normal noise behind what torch's own rsample draws after manual_seed(seed)."""
    torch.manual_seed(seed)
    if kind is Gaussian:
        return torch.normal(torch.zeros(shape), torch.ones(shape))
    u = torch.empty(shape).uniform_(torch.finfo(torch.float32).eps - 1, 1).double()
    return (math.sqrt(2) * torch.special.erfinv(u)).float()


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_torchs(kind: type[Ours]) -> None:
    ours = some(kind)
    z = 3 * torch.randn(11, B, Z, generator=torch.Generator().manual_seed(1))
    assert ours.log_prob(z).shape == (11, B)
    torch.testing.assert_close(ours.log_prob(z), torchs(ours).log_prob(z))


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one(kind: type[Ours]) -> None:
    ours = some(kind)
    one = kind(ours.mu.double()[0, :, None, None], spread(ours).double()[0, :, None, None])
    z = torch.linspace(-60, 60, 10_001, dtype=torch.float64)
    total = torch.trapezoid(one.log_prob(z[:, None]).exp(), z)
    torch.testing.assert_close(total, torch.ones(Z, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_torchs_and_that_of_the_definition(kind: type[Ours]) -> None:
    ours, other = some(kind, 0), some(kind, 1)
    found = ours.kl(other)  # type: ignore[arg-type]
    assert found.shape == (B,)
    torch.testing.assert_close(found, theirs.kl_divergence(torchs(ours), torchs(other)))
    assert torch.equal(ours.kl(ours), torch.zeros(B)) or ours.kl(ours).abs().max() < 1e-6  # type: ignore[arg-type]
    assert not torch.allclose(found, other.kl(ours))  # type: ignore[arg-type]
    z = ours.sample(torch.randn(20_000, B, Z, generator=torch.Generator().manual_seed(0)))
    scores = ours.log_prob(z) - other.log_prob(z)
    assert ((scores.mean(0) - found).abs() < 5 * scores.std(0) / math.sqrt(len(z))).all()


def test_kl_to_the_prior_is_the_kl_to_a_standard_gaussian() -> None:
    ours = some(Gaussian)
    assert isinstance(ours, Gaussian)
    standard = Gaussian(torch.zeros(B, Z), torch.zeros(B, Z))
    torch.testing.assert_close(ours.kl_to_prior(), ours.kl(standard))
    torch.testing.assert_close(ours.kl(standard), theirs.kl_divergence(torchs(ours), torchs(standard)))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_distribution_and_its_moments(kind: type[Ours]) -> None:
    """By Kolmogorov and Smirnov: a scale taken for a variance or a tail too light is seen at once."""
    mu, log_spread = torch.tensor([[1.5, -2.0]]), torch.tensor([[math.log(4.0), math.log(0.25)]])
    ours = kind(mu, log_spread)
    z = ours.sample(torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(3)))[:, 0]
    for column, (centre, value) in enumerate(zip(mu[0].tolist(), log_spread.exp()[0].tolist(), strict=True)):
        scale = math.sqrt(value) if kind is Gaussian else value
        law = stats.norm(centre, scale) if kind is Gaussian else stats.laplace(centre, scale)
        assert stats.kstest(z[:, column].numpy(), law.cdf).pvalue > 1e-3
        assert float(z[:, column].mean()) == pytest.approx(law.mean(), abs=5 * law.std() / math.sqrt(len(z)))
        assert float(z[:, column].std()) == pytest.approx(law.std(), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_noise_gives_torchs_sample_and_its_gradient(kind: type[Ours]) -> None:
    """Reparametrised: d f(z) flows to both parameters as through torch's rsample, sample by sample."""
    ours = some(kind)
    leaves = [ours.mu.requires_grad_(), spread(ours).requires_grad_()]
    noise = noise_of(kind, 5, (400, B, Z))
    mine = kind(*leaves).sample(noise)
    torch.manual_seed(5)
    drawn = torchs(kind(*leaves)).rsample((400,))
    torch.testing.assert_close(mine, drawn, rtol=1e-3, atol=1e-3)
    weight = torch.randn(400, B, Z, generator=torch.Generator().manual_seed(6))
    found = torch.autograd.grad((weight * mine.sin()).sum(), leaves)
    expected = torch.autograd.grad((weight * drawn.sin()).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-2)
    # and by hand: dz/dμ = 1; z - μ grows as the scale, the root of a variance
    by_hand = torch.autograd.grad(kind(*leaves).sample(noise).sum(), leaves)
    torch.testing.assert_close(by_hand[0], torch.full((B, Z), 400.0))
    half = 0.5 if kind is Gaussian else 1.0
    torch.testing.assert_close(by_hand[1], half * (mine - leaves[0]).sum(0), rtol=1e-4, atol=1e-3)


def test_the_tails_of_laplace_samples_are_exact() -> None:
    """float32 noise never goes beyond 6 or so; 30 would still be no infinity, and 0 is the centre."""
    noise = torch.tensor([-30.0, -9.0, -6.0, -3.0, -1e-4, 0.0, 1e-4, 3.0, 6.0, 9.0, 30.0])
    leaf = torch.zeros(1, requires_grad=True)
    ours = Laplace(torch.full((11,), 2.0), torch.full((11,), 0.7) + leaf).sample(noise)
    tail = stats.norm.logsf(noise.abs().double().numpy()) + math.log(2)
    expected = 2.0 - noise.sign().double().numpy() * math.exp(0.7) * tail
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert ours.detach().diff().gt(0).all()
    ours.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_flows_through_a_detached_one(kind: type[Ours]) -> None:
    mu, log_spread = (torch.randn(B, Z, requires_grad=True) for _ in range(2))
    ours = kind(mu, log_spread)
    apart = ours.map(torch.Tensor.detach)
    assert type(apart) is kind
    z = torch.randn(B, Z, requires_grad=True)
    assert torch.equal(apart.log_prob(z), ours.log_prob(z))
    apart.log_prob(z).sum().backward()
    assert mu.grad is None
    assert log_spread.grad is None
    assert z.grad is not None
    assert ours.log_prob(z).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_torchs(kind: type[Ours]) -> None:
    """Along the last dimension or another, with gradients to components, weights and z."""
    ours = some(kind)
    leaves = [ours.mu.requires_grad_(), spread(ours).requires_grad_()]
    raw = torch.randn(B, generator=torch.Generator().manual_seed(2)).requires_grad_()
    z = (4 * torch.randn(20, Z, generator=torch.Generator().manual_seed(3))).requires_grad_()
    weight = torch.softmax(raw, 0)
    found = mixture_log_prob(kind(*leaves).log_prob(z[:, None]), weight, -1)
    mixed = theirs.MixtureSameFamily(theirs.Categorical(weight), torchs(kind(*leaves)))  # type: ignore[arg-type]
    expected = mixed.log_prob(z)
    assert found.shape == (20,)
    torch.testing.assert_close(found, expected)
    turned = mixture_log_prob(kind(*leaves).log_prob(z[:, None]).T, weight[:, None], 0)
    torch.testing.assert_close(turned, expected)
    to = [*leaves, raw, z]
    mine, others = (torch.autograd.grad(value.square().sum(), to, retain_graph=True) for value in (found, expected))
    for one, other in zip(mine, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("empty", [-1e30, -torch.inf, torch.inf, torch.nan, 1e30])
def test_a_component_without_weight_takes_no_part_whatever_it_says(empty: float) -> None:
    """Neither in the value nor in a gradient: an absent modality's density may be anything."""
    log_prob = torch.tensor([[-1.0, -200.0, empty], [-900.0, -1000.0, empty]], requires_grad=True)
    weight = torch.tensor([0.25, 0.75, 0.0], requires_grad=True)
    found = mixture_log_prob(log_prob, weight, -1)
    part, share = log_prob.detach()[:, :2].requires_grad_(), weight.detach()[:2].requires_grad_()
    expected = torch.logsumexp(part + share.log(), -1)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found.sum(), [log_prob, weight])
    others = torch.autograd.grad(expected.sum(), [part, share])
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(one[..., :2], other)
        assert (one[..., 2] == 0).all()


def test_a_mixture_of_one_component_is_that_component() -> None:
    log_prob = torch.tensor([-5000.0, -1.0, 80.0], requires_grad=True)
    for place in range(3):
        weight = torch.nn.functional.one_hot(torch.tensor(place), 3).float()
        found = mixture_log_prob(log_prob, weight, 0)
        assert found == log_prob[place]
        (gradient,) = torch.autograd.grad(found, log_prob)
        assert torch.equal(gradient, weight)


def test_a_mixture_of_nothing_has_no_density_and_spoils_no_gradient() -> None:
    """A row that has no modality: what it says is masked later, and must not be NaN by then."""
    log_prob = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]], requires_grad=True)
    weight = torch.tensor([[0.5, 0.5], [0.0, 0.0]], requires_grad=True)
    found = mixture_log_prob(log_prob, weight, 1)
    assert found[1] == -torch.inf
    for gradient in torch.autograd.grad(torch.where(torch.tensor([True, False]), found, 0.0).sum(), [log_prob, weight]):
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()
