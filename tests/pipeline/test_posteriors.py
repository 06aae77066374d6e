"""Families of posteriors: which experts make q(z|A), and that their product is the density that the papers write."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from infra.errors import UserError
from pipeline.experts import Gaussian, product
from pipeline.posteriors import MANY, Networks, Posterior, Products, Quotients, Recipe, Substitutes

FAMILIES = ["with prior", "without prior", "quotient", "joint network", "every network", "substitutes"]


def family(kind: str, count: int) -> Posterior:
    names = [f"m{i}" for i in range(count)]
    if kind == "joint network" or kind == "every network":
        return Networks(names, every=kind == "every network")
    if kind == "quotient":
        return Quotients(names)
    return Substitutes(names) if kind == "substitutes" else Products(names, prior=kind == "with prior")


def paper(kind: str, count: int, subset: tuple[int, ...], leader: int) -> tuple[set[str], int]:
    """The experts of q(z|subset) and the power of the prior, as the papers write them."""
    own = {f"m{i}" for i in subset}
    if kind == "with prior":  # MVAE eq. 4
        return own, 1
    if kind == "quotient":  # MVAE eq. 3
        return own, 1 - max(len(subset), 1)
    if kind == "joint network":  # JMVAE: all, or one
        return {"+".join(f"m{i}" for i in subset)} if len(subset) in (1, count) else set(), 0
    if kind == "every network":  # VAEVAE (b)
        return {"+".join(f"m{i}" for i in subset)} if subset else set(), 0
    if kind == "substitutes":  # SVAE eq. 3-5, D.32-D.36
        return own | {f"m{leader} for m{k}" for k in range(count) if subset and k not in subset}, 0
    return own, 0


def subsets_of(count: int) -> list[tuple[int, ...]]:
    return [subset for size in range(count + 1) for subset in combinations(range(count), size)]


def recipe_of(posterior: Posterior, count: int, subset: tuple[int, ...], leader: int | None = None) -> Recipe:
    """Of one subset, in one term of one row."""
    seen = np.array([[[i in subset for i in range(count)]]])
    return posterior.of(seen, None if leader is None else np.array([leader]))


def experts_in(posterior: Posterior, recipe: Recipe) -> set[str]:
    """By name, those of the first term's first row."""
    return {expert.name for expert, takes in zip(posterior.experts, recipe.mask_TBE[0, 0], strict=True) if takes}


def fuse(posterior: Posterior, mu_EBZ: Tensor, raw_EBZ: Tensor, recipe: Recipe) -> Gaussian:
    """As the model does it, but in the precision of its experts."""
    weighted, precision = posterior.natural(mu_EBZ, raw_EBZ)
    prior = torch.from_numpy(recipe.prior_TB).to(precision.dtype)
    return product(weighted, precision, torch.from_numpy(recipe.mask_TBE), prior)


def logvar_of(posterior: Posterior, raw: Tensor) -> Tensor:
    """An expert's log-variance; MVAE-Q's is bounded, V = N/(N-1) sigmoid(raw) (supplement C)."""
    count = len(posterior.experts)
    if not isinstance(posterior, Quotients) or count == 1:
        return raw
    return math.log(count / (count - 1)) + torch.nn.functional.logsigmoid(raw)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_subset_has_the_experts_and_the_density_of_the_paper(kind: str, count: int) -> None:
    """Densities are multiplied on a grid and normalised there, without a formula for Gaussians."""
    posterior = family(kind, count)
    rng = np.random.default_rng(count)
    mu = torch.from_numpy(rng.normal(0, 2, (len(posterior.experts), 1, 1)))
    raw = torch.from_numpy(rng.normal(0, 0.7, mu.shape))
    logvar = logvar_of(posterior, raw)
    z = torch.linspace(-80, 80, 40_001, dtype=torch.float64)
    for subset in subsets_of(count):
        for leader in subset or (0,):
            recipe = recipe_of(posterior, count, subset, leader)
            names, power = paper(kind, count, subset, leader)
            assert experts_in(posterior, recipe) == names
            log_q = power * Normal(0.0, 1.0).log_prob(z)
            for e, expert in enumerate(posterior.experts):
                if expert.name in names:
                    log_q = log_q + Normal(mu[e, 0, 0], (0.5 * logvar[e, 0, 0]).exp()).log_prob(z)
            if not names:
                log_q = Normal(0.0, 1.0).log_prob(z)
            ours = fuse(posterior, mu, raw, recipe)
            density = torch.softmax(log_q, 0) / (z[1] - z[0])
            found = ours.log_prob(z[:, None, None, None])[:, 0, 0].exp()
            torch.testing.assert_close(found, density, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("leader", [None, -1, 0, 2])
@pytest.mark.parametrize("kind", FAMILIES)
def test_of_nothing_is_the_prior(kind: str, leader: int | None) -> None:
    posterior = family(kind, 3)
    recipe = recipe_of(posterior, 3, (), leader)
    assert not recipe.mask_TBE.any()
    shape = (len(posterior.experts), 1, 4)
    ours = fuse(posterior, torch.randn(shape), torch.rand(shape), recipe)
    assert torch.equal(ours.mu, torch.zeros(1, 1, 4))
    assert torch.equal(ours.logvar, torch.zeros(1, 1, 4))


def test_networks_look_at_the_modalities_of_their_subset() -> None:
    every = {expert.name: expert.inputs for expert in Networks(["a", "b", "c"], every=True).experts}
    assert every == {
        "a": ("a",), "b": ("b",), "c": ("c",), "a+b": ("a", "b"), "a+c": ("a", "c"), "b+c": ("b", "c"),
        "a+b+c": ("a", "b", "c"),
    }  # fmt: skip
    assert [expert.name for expert in Networks(["a", "b", "c"], every=False).experts] == ["a", "b", "c", "a+b+c"]
    assert [expert.name for expert in Networks(["a"], every=False).experts] == ["a"]
    assert len(Networks([f"m{i}" for i in range(MANY)], every=True).experts) == 2**MANY - 1
    with pytest.raises(UserError, match="511 subsets"):
        Networks([f"m{i}" for i in range(MANY + 1)], every=True)
    assert len(Networks([f"m{i}" for i in range(64)], every=False).experts) == 65


def test_a_stand_in_looks_at_the_modality_that_stands_in() -> None:
    """n² networks q_j^i(z|x_i) (appendix D)."""
    experts = {expert.name: expert.inputs for expert in Substitutes(["a", "b", "c"]).experts}
    assert experts == {
        "a": ("a",), "b": ("b",), "c": ("c",), "a for b": ("a",), "a for c": ("a",), "b for a": ("b",),
        "b for c": ("b",), "c for a": ("c",), "c for b": ("c",),
    }  # fmt: skip


def test_who_leads_where_nobody_or_an_unseen_one_is_named() -> None:
    """Then the first one seen; each row for itself."""
    posterior = Substitutes(["m0", "m1", "m2"])
    seen = np.array([[[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]]], bool)
    first = [
        {"m1", "m2", "m1 for m0"}, {"m0", "m2", "m0 for m1"}, set(), {"m0", "m1", "m2"},
        {"m2", "m2 for m0", "m2 for m1"},
    ]  # fmt: skip
    last = [{"m1", "m2", "m2 for m0"}, {"m0", "m2", "m2 for m1"}, *first[2:]]
    zero = [first[0], *first[1:]]
    for leader, expected in ((None, first), (-1, first), (2, last), (0, zero)):
        mask = posterior.of(seen, None if leader is None else np.array([leader])).mask_TBE
        names = [{e.name for e, takes in zip(posterior.experts, row, strict=True) if takes} for row in mask[0]]
        assert names == expected
    both = posterior.of(np.repeat(seen, 2, 0), np.array([2, -1]))  # each term has a leader of its own
    assert (both.mask_TBE[1] == posterior.of(seen).mask_TBE[0]).all()
    assert (both.mask_TBE[0] != both.mask_TBE[1]).any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_quotient_of_experts_times_the_prior_is_the_product_with_the_prior(count: int) -> None:
    """MVAE eq. 4: q_i(z) = q~_i(z) p(z) turns eq. 3 into p(z) Π q~_i(z)."""
    rng = np.random.default_rng(count)
    mu, precision = (torch.from_numpy(rng.normal(size=(count, 6, 4))) for _ in range(2))
    precision = precision.exp()
    seen = rng.random((8, 6, count)) < 0.6
    names = [f"m{i}" for i in range(count)]
    mvae, mvae_q = Products(names, prior=True), Quotients(names)
    plain = fuse(mvae, mu, -precision.log(), mvae.of(seen))
    share = (count - 1) / count
    raw = -torch.log((precision + 1) / share - 1) if count > 1 else -torch.log(precision + 1)
    with_prior = fuse(mvae_q, mu * precision / (precision + 1), raw, mvae_q.of(seen))
    torch.testing.assert_close(with_prior.mu, plain.mu)
    torch.testing.assert_close(with_prior.logvar, plain.logvar)


def quotient(raw_E: Tensor, seen_E: np.ndarray) -> tuple[Gaussian, Tensor]:
    """MVAE-Q's posterior of means 1, 2, …, and its gradient with respect to what the networks gave."""
    count = len(raw_E)
    raw = raw_E.float()[:, None, None].requires_grad_()
    posterior = Quotients([f"m{i}" for i in range(count)])
    mu = torch.arange(1.0, count + 1)[:, None, None]
    ours = fuse(posterior, mu, raw, posterior.of(seen_E[None, None]))
    (gradient,) = torch.autograd.grad(ours.kl_to_prior().sum(), raw)
    return ours.map(Tensor.detach), gradient


def exact_quotient(raw_E: Tensor, seen_E: np.ndarray) -> tuple[float, float]:
    """(mean, precision) in float64, by Σ T_i - (n - 1) = 1 - n/N + (N-1)/N Σ exp(-raw_i), which subtracts nothing."""
    count, size = len(seen_E), int(seen_E.sum())
    ratio, small = (count - 1) / count, np.exp(-raw_E.double().numpy()[seen_E])
    total = (1 - size / count if size < count else 0.0) + ratio * small.sum()
    return float((ratio * (1 + small) * (np.flatnonzero(seen_E) + 1)).sum() / total), float(total)


@st.composite
def raw_experts(draw: st.DrawFn, least: float, most: float) -> tuple[Tensor, np.ndarray]:
    """What 2 to 64 networks gave for a log-variance, in float32 or rounded to bf16, and who of them is seen."""
    count = draw(st.integers(2, 64))
    drawn = draw(st.lists(st.floats(least, most, width=32), min_size=count, max_size=count))
    seen = draw(st.one_of(st.just([True] * count), st.lists(st.booleans(), min_size=count, max_size=count)))
    raw = torch.tensor(drawn).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    return raw, np.array(seen if any(seen) else [True] * count)


MOST_SANE = 25.0
"""Log-variances up to here leave the KL below 1e25 nats, whose way back float32 still holds."""


@settings(max_examples=150, deadline=None)
@given(raw_experts(-20, 60))
@example((torch.tensor([25.0, 25.0]), np.array([True, True])))
@example((torch.full((64,), 25.0), np.array([True] * 64)))
def test_every_quotient_is_proper(case: tuple[Tensor, np.ndarray]) -> None:
    """V_i < N / (N - 1) (the paper's text turns it round), and then Σ 1 / V_i > n - 1 for each n of N experts.

    Also where V_i comes as near to that as a sigmoid brings it, and Σ 1 / V_i - (n - 1) would cancel in float32.
    """
    raw, seen = case
    ours, gradient = quotient(raw, seen)
    mean, precision = exact_quotient(raw, seen)
    assert ours.mu.isfinite().all()
    assert float(ours.logvar.neg().exp()) == pytest.approx(precision, rel=1e-4)
    assert float(ours.mu) == pytest.approx(mean, rel=1e-4)
    if raw.max() <= MOST_SANE:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("prior", [True, False])
def test_sixty_four_experts_are_no_trouble_for_float32(prior: bool) -> None:
    """Standard deviations from 1/22,000 to 22,000, in every number of experts."""
    rng = np.random.default_rng(0)
    mu = torch.from_numpy(rng.normal(0, 10, (64, 5, 3)))
    logvar = torch.from_numpy(rng.uniform(-20, 20, mu.shape))
    seen = np.stack([np.arange(64) < size for size in range(65)])[:, None].repeat(5, 1)
    posterior = Products([f"m{i}" for i in range(64)], prior)
    recipe = posterior.of(seen)
    exact = fuse(posterior, mu, logvar, recipe)
    leaf = logvar.float().requires_grad_()
    ours = fuse(posterior, mu.float(), leaf, recipe)
    torch.testing.assert_close(ours.mu.double(), exact.mu, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logvar.double(), exact.logvar, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(ours.kl_to_prior().log1p().sum(), leaf)
    assert gradient.isfinite().all()
    assert float(ours.logvar.detach()[-1].max()) < -15  # the sharpest of 64 decides
