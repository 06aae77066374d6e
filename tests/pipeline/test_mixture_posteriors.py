"""Mixtures in a world where log p(x) is known: the order of MMVAE's bounds, its gradients' expectations, densities."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import Normal

from infra.distributed import flushing_denormals
from pipeline.batch import Batch
from pipeline.evaluate.importance import log_likelihood
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.objectives.plan import Plan, Sampling
from pipeline.objectives.sampled import bound, mmvae
from pipeline.posteriors import LaplaceMixtures
from pipeline.scores import Densities
from pipeline.settings import Bound, Gradient, Objective
from tests.pipeline.batches import LATENT, batch_of, small_model, some_modalities
from tests.pipeline.mixtures import evidence, parabola
from tests.pipeline.test_linear_gaussian import ROWS, World, Z


def copies(world: World, subset: tuple[int, ...], times: int) -> Batch:
    """Every row so many times, with noise of its own: copy 0 of all rows first."""
    batch = world.batch(subset)
    has = batch.present_BM[0]
    return replace(
        batch,
        values={n: v.repeat(times, 1) if has[m] else v for m, (n, v) in enumerate(batch.values.items())},
        rows_of={n: np.arange(ROWS * times * has[m]) for m, n in enumerate(batch.values)},
        present_BM=np.tile(batch.present_BM, (times, 1)),
        weight_B=torch.ones(ROWS * times),
        row_B=torch.arange(ROWS * times),
        keys=batch.keys * times,
    )


def drawn_bound(
    world: World, times: int, samples: int, name: Bound, gradient: Gradient = "iwae", beta: float = 1.0,
    lambdas: tuple[float, ...] = (1.0, 1.0), seed: int = 0,
) -> Tensor:  # fmt: skip
    """The bound of each row from many draws of the noise: (times, ROWS)."""
    size = len(world.kinds)
    batch = copies(world, tuple(range(size)), times)
    objective = Objective(samples=samples, bound=name, gradient=gradient)
    plan = mmvae(batch.present_BM, objective, world.model.family, 0, 0)
    densities = world.model(batch, plan, plan.noise(seed, "draws", batch.row_B, Z))
    return bound(densities, plan, np.array(lambdas[:size], np.float32), beta).view(times, ROWS)


def mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Over the first axis, with its standard error."""
    return values.double().mean(0), values.double().std(0) / math.sqrt(len(values))


def test_bounds_rise_from_the_elbo_by_eq_3_and_eq_5_to_the_evidence() -> None:
    """A mixture of Gaussians, for which log p(x) is known exactly."""
    world, truth = World("bivcca", 2), World("bivcca", 2).evidence((0, 1))
    with torch.no_grad():
        bounds: list[Bound] = ["stratified", "tight"]
        found = {(name, k): drawn_bound(world, 4000, k, name, "dreg") for name in bounds for k in (1, 4, 16)}
    for k in (1, 4, 16):  # Jensen, on the same samples
        assert (found["tight", k] >= found["stratified", k] - 1e-4).all()
    rising = [("stratified", 1), ("stratified", 4), ("stratified", 16), ("tight", 16)]
    means = [mean(found[step].mean(1)) for step in rising] + [(truth.mean(), torch.zeros(()))]
    for (low, error), (high, other) in pairwise(means):
        assert high - low > 4 * math.hypot(error, other) - 1e-4
    tight = [mean(found["tight", k].mean(1)) for k in (1, 4, 16)]
    assert tight[0][0] < tight[1][0] < tight[2][0] < truth.mean()
    assert truth.mean() - tight[2][0] < 0.1 < truth.mean() - means[0][0]


def agreeing() -> World:
    """Two Laplace experts that overlap enough for importance ratios of one under the other."""
    world = World("mmvae", 2)
    with torch.no_grad():
        for encoder in world.model.encoders.values():
            encoder.back *= 0.3
            encoder.offset *= 0.3
        world.model.encoders["one"].raw.copy_(torch.tensor([0.2, -0.1, 0.0]))
        world.model.encoders["two"].raw.copy_(torch.tensor([-0.1, 0.1, 0.2]))
        world.model.prior_raw.copy_(torch.tensor([0.3, 0.0, -0.4]))
    return world


def test_appendix_b_estimates_the_elbo_of_the_mixture() -> None:
    world = agreeing()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found, error = mean(drawn_bound(world, 40_000, 1, "linear", lambdas=(0.1, 0.1)))
        experts = [laplace_of(world, m) for m in range(2)]
        constant, slope, square = parabola(world, (0, 1))
        prior = TorchLaplace(torch.zeros(Z).double(), 3 * world.model.prior_raw.double().softmax(0))
        torch.manual_seed(0)
        parts = []
        for q in experts:
            z = q.sample((40_000,))
            log_q = torch.stack([other.log_prob(z).sum(2) for other in experts]).logsumexp(0) - math.log(2)
            likely = 0.1 * constant + 0.1 * (z * slope - square * z.square() / 2).sum(2)
            parts.append(likely + prior.log_prob(z).sum(2) - log_q)
        elbo, other = mean((parts[0] + parts[1]) / 2)
    assert ((found - elbo).abs() < 4.5 * torch.hypot(error, other)).all()
    assert float(error.max()) < 0.1 < float(elbo.abs().min()) / 50


def laplace_of(world: World, m: int) -> TorchLaplace:
    """q_m of every row, in float64."""
    name = list(world.kinds)[m]
    mu, raw = world.model.encoders[name](world.batch((m,)).values[name])
    return TorchLaplace(mu.double(), Z * raw.double().softmax(1))


def expert_gradients(world: World, m: int, times: int, *settings: object, **more: object) -> Tensor:
    """Of each draw of each row with respect to what encoder m gives, location and raw scale: (times, ROWS, 2 Z)."""
    outputs: list[Tensor] = []
    hook = list(world.model.encoders.values())[m].register_forward_hook(lambda _, __, output: outputs.extend(output))
    values = drawn_bound(world, times, *settings, **more)  # type: ignore[arg-type]
    hook.remove()
    return torch.cat(torch.autograd.grad(values.sum(), outputs), 1).view(times, ROWS, 2 * Z)


@pytest.mark.parametrize("mine", [0, 1])
def test_the_ratio_of_appendix_b_moves_the_expert_in_its_numerator_without_bias(mine: int) -> None:
    """∇ E_q_i[log p(x_j | z)] / M, which is known: log p(x_j | z) is a parabola."""
    world, other = agreeing(), 1 - mine
    weights = tuple(float(m == other) for m in range(2))
    found, error = mean(expert_gradients(world, mine, 30_000, 1, "linear", "iwae", 0.0, weights))
    name = list(world.kinds)[mine]
    outputs = world.model.encoders[name](world.batch((mine,)).values[name])
    mu, raw = (output.detach().double().requires_grad_() for output in outputs)
    constant, slope, square = parabola(world, (other,))
    scale = Z * raw.softmax(1)
    expected = constant + (mu * slope - square / 2 * (mu.square() + 2 * scale.square())).sum(1)
    truth = torch.cat(torch.autograd.grad(expected.sum() / 2, [mu, raw]), 1)
    assert ((found - truth).abs() < 4.5 * error).all()
    assert (truth.abs() > 10 * error).float().mean() > 0.3


@pytest.mark.parametrize("name", ["stratified", "tight"])
def test_with_one_expert_dreg_has_the_expectation_of_the_bound_s_gradient(name: Bound) -> None:
    """And less variance (appendix C)."""
    world = World("mmvae", 1)
    iwae, dreg = (expert_gradients(world, 0, 15_000, 5, name, g) for g in ("iwae", "dreg"))
    difference, error = mean(iwae - dreg)
    assert (difference.abs() < 4.5 * error).all()
    assert (mean(dreg)[0].abs() > 10 * error).float().mean() > 0.5
    assert float(dreg.var(0).mean()) < float(iwae.var(0).mean())


def toy(samples: int, draws: int, gradient: Gradient, noise_KTB: Tensor) -> tuple[Tensor, Tensor]:
    """(bound's gradient, eq. 7 or 8 by hand) for the means of N(-0.5, 1) and N(1, 0.7²), T x B.

    p(z) = N(0, 1), p(x | z) = N(x; z, 0.5²) at x = 0.8.
    """
    mu = torch.tensor([-0.5, 1.0], dtype=torch.float64)[:, None, None].repeat(1, draws, 1).requires_grad_()
    q = Gaussian(mu, torch.tensor([1.0, 0.49], dtype=torch.float64).log()[:, None, None].expand(2, draws, 1))
    z = q.sample(noise_KTB[..., None])
    seen = q.map(Tensor.detach) if gradient == "dreg" else q
    x, p = torch.tensor(0.8), Normal(z[..., 0], 0.5)
    prior = Gaussian(torch.zeros(1, 1), torch.zeros(1, 1)).log_prob(z)
    weight, target = np.full((2, draws), 0.5, np.float32), np.ones((2, draws, 1), np.float32)
    plan = Plan(target > 0, LaplaceMixtures(["x"]).of(target > 0), target, weight,
                sampling=Sampling(samples, "stratified", gradient))  # fmt: skip
    densities = Densities(p.log_prob(x)[..., None], prior, seen.log_prob(z[:, :, None]), None, z, z, torch.zeros(()))
    (ours,) = torch.autograd.grad(bound(densities, plan, np.ones(1, np.float32), 1.0).sum(), mu)

    z, m, v = z.detach()[..., 0], mu.detach()[..., 0], torch.tensor([1.0, 0.49], dtype=torch.float64)
    each = torch.stack([Normal(m[s, 0], v[s].sqrt()).log_prob(z) for s in (0, 1)])
    share = each.softmax(0)  # of each component in q_Φ(z)
    slope = -z + (0.8 - z) / 0.25 + sum(share[s] * (z - m[s, 0]) / v[s] for s in (0, 1))  # ∂ log w / ∂z
    log_w = -z.square() / 2 - (0.8 - z).square() / 0.5 - torch.logsumexp(each, 0)
    w = log_w.softmax(0)
    if gradient == "dreg":
        return ours[..., 0], (w**2 * slope).sum(0) / 2
    score_of = [(w * share[s] * (z - m[s, 0]) / v[s]).sum((0, 1)) for s in (0, 1)]  # ∂ log q_Φ(z) / ∂μ_s of all z
    return ours[..., 0], ((w * slope).sum(0) - torch.stack(score_of)) / 2


@pytest.mark.parametrize("samples", [1, 4])
def test_dreg_is_no_unbiased_gradient_of_a_mixture_s_bound(samples: int) -> None:
    """Eq. 8 drops the score of q_Φ under its samples' weights, which a single q would give back and a mixture's
    component does not. With one sample there are no weights, and the score's mean is 0."""
    draws = 100_000
    noise = torch.randn(samples, 2, draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = [toy(samples, draws, gradient, noise) for gradient in ("iwae", "dreg")]
    for ours, by_hand in both:
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)
    (iwae, one), (dreg, other) = (mean(ours.T) for ours, _ in both)
    apart, error = mean((both[0][0] - both[1][0]).T)
    print(f"K = {samples}: IWAE {iwae.tolist()} ± {one.tolist()}, DReG {dreg.tolist()} ± {other.tolist()}")
    assert (apart.abs() > 20 * error).all() if samples > 1 else (apart.abs() < 4.5 * error).all()


@pytest.mark.parametrize("system", ["mmvae", "bivcca", "mopoe"])
def test_importance_sampling_from_a_mixture_converges_to_the_evidence(system: str) -> None:
    world = World(system, 3)
    if system == "mmvae":
        with torch.no_grad():
            world.model.prior_raw.copy_(torch.tensor([0.4, 0.0, -0.3]))
    for subset in ((0, 1, 2), (0, 2)):
        names = frozenset(list(world.kinds)[m] for m in subset)
        batch = world.batch((0, 1, 2))
        found = log_likelihood(world.model, batch, names, names, 6000)
        truth = (evidence if system == "mmvae" else World.evidence)(world, subset)
        assert (found.log_p_B - truth).abs().mean() < 0.06
    partial = world.batch((1,))
    assert log_likelihood(world.model, partial, names, names, 10).log_p_B.isnan().all()
    nothing = log_likelihood(world.model, world.batch(()), frozenset(world.kinds), frozenset(world.kinds), 10)
    assert nothing.log_p_B.isnan().all()
    assert nothing.variance_B.isnan().all()


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_a_mixture_draws_each_component_as_often_as_it_weighs(kind: type[Gaussian] | type[Laplace]) -> None:
    weight = torch.tensor([[0.2, 0.5, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0], [0.25] * 4, [0.0] * 4]).T
    centres = torch.tensor([-300.0, -100, 100, 300])[:, None, None].expand(4, 4, 2)
    mixture, draws = Mixture(kind(centres, torch.zeros(4, 4, 2)), weight), 40_000
    assert mixture.noise == 3
    noise = torch.randn(draws, 4, 3, generator=torch.Generator().manual_seed(0))
    z = mixture.sample(noise)
    assert z.shape == (draws, 4, 2)
    share = torch.stack([((z - centre).abs().amax(2) < 50).float().mean(0) for centre in (-300, -100, 100, 300)])
    assert (share.sum(0) == 1).all()
    spread = (weight * (1 - weight) / draws).sqrt()
    assert ((share - weight).abs() <= 4.5 * spread)[:, :3].all()
    one, own = z[:, 1], kind(torch.full((2,), 100.0), torch.zeros(2))  # where there is one component, it is that one's
    torch.testing.assert_close(one, own.sample(noise[:, 1, :2]))
    torch.testing.assert_close(mixture.log_prob(z)[:, 1], own.log_prob(one))
    torch.testing.assert_close(mixture.mu[:3], torch.tensor([[-80.0] * 2, [100.0] * 2, [0.0] * 2]))
    assert (mixture.log_prob(z)[:, 3] == -math.inf).all()


@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1 / 7] * 7 + [0.0], [0.0, 1.0]])
def test_no_noise_draws_a_component_of_no_weight(weights: list[float]) -> None:
    """Φ(noise) is 1 in float32 from about 5.4 on, and cumulated weights may end below 1."""
    weight, noise = torch.tensor(weights)[:, None], torch.zeros(2, 1, 2)
    noise[:, 0, 1] = torch.tensor([-6.7, 6.7])  # as far out as the project's noise goes
    centres = torch.arange(len(weights)).float()[:, None, None]
    drawn = Mixture(Gaussian(centres, torch.full_like(centres, -50.0)), weight).sample(noise)[:, 0, 0].round().long()
    there = np.flatnonzero(weights)
    assert drawn.tolist() == [there[0], there[-1]]


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_a_mixture_s_density_integrates_to_one_and_to_its_mean(kind: type[Gaussian] | type[Laplace]) -> None:
    weight = torch.tensor([[0.2, 0.8, 0.0], [1 / 3] * 3]).T.double()
    mu = torch.tensor([[-2.0, 1.0, 5.0], [0.0, 0.5, -3.0]]).T[..., None].double()
    spread = torch.tensor([[0.3, -0.5, 0.1], [0.0, 0.7, -0.2]]).T[..., None].double()
    mixture, z = Mixture(kind(mu, spread), weight), torch.linspace(-60, 60, 60_001, dtype=torch.float64)
    density = mixture.log_prob(z[:, None, None].expand(-1, 2, 1)).exp()
    torch.testing.assert_close(torch.trapezoid(density, z, dim=0), torch.ones(2).double(), atol=1e-5, rtol=0)
    first = torch.trapezoid(density * z[:, None], z, dim=0)
    torch.testing.assert_close(first[:, None], mixture.mu, atol=1e-4, rtol=0)


@pytest.mark.parametrize("system", ["mmvae", "bivcca", "mopoe"])
def test_components_are_those_of_what_each_row_has(system: str) -> None:
    """Each modality's own, or the product of every subset; equal weights that sum to 1, or to 0 where nothing is."""
    model = small_model(some_modalities(3), 0, system)
    batch = batch_of(model.modalities, list(product((False, True), repeat=3)))
    mixture = model.posterior(batch)
    assert isinstance(mixture, Mixture)
    sizes = (1, 2, 3) if system == "mopoe" else (1,)
    subsets = [set(subset) for size in sizes for subset in combinations(range(3), size)]
    assert len(subsets) == len(mixture.weight_TB)
    for b, row in enumerate(batch.present_BM):
        there = [t for t, subset in enumerate(subsets) if all(row[m] for m in subset)]
        expected = [(t in there) / max(1, len(there)) for t in range(len(subsets))]
        assert mixture.weight_TB[:, b].tolist() == pytest.approx(expected)
        values = {m: batch.values[f"m{m}"][batch.rows_of[f"m{m}"] == b] for m in range(3) if row[m]}
        outputs = {m: model.encoders[f"m{m}"](value) for m, value in values.items()}
        for t in there:
            precision = sum((-outputs[m][1][0]).exp() for m in subsets[t])
            mean_of = sum(outputs[m][0][0] * (-outputs[m][1][0]).exp() for m in subsets[t]) / precision
            spread = outputs[t][1][0].log_softmax(0) + math.log(LATENT) if system == "mmvae" else -precision.log()
            found = mixture.components.map(lambda tensor, t=t, b=b: tensor[t, b])
            torch.testing.assert_close(found.mu, mean_of, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(vars(found)["logscale" if system == "mmvae" else "logvar"], spread)


def test_a_modality_that_is_not_there_does_no_harm_where_a_cpu_flushes_denormals() -> None:
    """A row of the first modality alone: nothing of the second's has weight, and 0 / 0 would be NaN."""
    seen = np.array([[[True, False]], [[False, False]]])
    log_q = torch.zeros(1, 2, 2, 1)
    log_q[0, 1, 0] = -300.0  # q_1 where q_2's sample lies, which has a weight of 0 itself
    weight, target = np.array([[1.0], [0.0]], np.float32), np.array([[[1.0, 0.0]], [[0.0, 0.0]]], np.float32)
    plan = Plan(seen, LaplaceMixtures(["a", "b"]).of(seen), target, weight, sampling=Sampling(1, "linear", "iwae"))
    z = torch.zeros(1, 2, 1, 1, requires_grad=True)
    likely = -2 * torch.from_numpy(seen)[None].float() + z
    densities = Densities(likely, torch.zeros(1, 2, 1), torch.zeros(1, 2, 2, 1), log_q, z, z, torch.zeros(()))
    with flushing_denormals():  # as training does: 1e-38 is 0
        found = bound(densities, plan, np.ones(2), 1.0)
        (slope,) = torch.autograd.grad(found.sum(), z)
    assert found.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("log_ratio", [25.0, 300.0])
def test_ratios_of_appendix_b_are_exact_and_where_they_would_overflow_cut_off(log_ratio: float) -> None:
    """z_2 lies where q_1 is much denser than q_2, from which it came."""
    log_q, z, seen = torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 1, 1), np.eye(2, dtype=bool)[:, None]
    log_q[0, 1, 0] = log_ratio
    log_q.requires_grad_()
    weight, target = np.full((2, 1), 0.5, np.float32), np.ones((2, 1, 2), np.float32)
    plan = Plan(seen, LaplaceMixtures(["a", "b"]).of(seen), target, weight, sampling=Sampling(1, "linear", "iwae"))
    likely = -2 * torch.from_numpy(seen)[None].float()
    densities = Densities(likely, torch.zeros(1, 2, 1), torch.zeros(1, 2, 2, 1), log_q, z, z, torch.zeros(()))
    found = bound(densities, plan, np.ones(2), 1.0)
    (slope,) = torch.autograd.grad(found.sum(), log_q)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    if log_ratio < 30:
        assert found.item() == pytest.approx(-0.5 * (4 + math.exp(log_ratio) * 2 + 2), rel=1e-5)
