"""A world whose posteriors are known: linear decoders with Gaussian noise, and encoders set to the exact experts.

p(z) = N(0, I) and p(x_m|z) = N(W_m z + b_m, s_m² I), the columns of W_m at right angles, so that p(x_m|z) as a function
of z is a diagonal Gaussian: that is the expert. What is expected comes from conditioning the joint Gaussian of x and z,
which knows nothing of products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from modalities import Modality
from modalities.spec import Buffer
from pipeline.batch import Batch
from pipeline.experts import Gaussian
from pipeline.model import MultimodalVAE
from pipeline.objectives.plan import joint_plan
from pipeline.objectives.systems import SYSTEMS

Z, ROWS = 3, 5
SIZES = (4, 3, 6)
NAMES = ["one", "two", "three"]


@dataclass(frozen=True)
class Linear(Modality):
    """Reals of a fixed number: W z + b and noise of standard deviation `noise`, all drawn from `seed`."""

    size: int
    noise: float
    seed: int
    quotient_of: int = 0
    """0: the expert is the likelihood (MVAE). N: it is p(z|x_m), as one of the N of MVAE-Q gives it."""

    extension = "npy"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def encode(self, value: np.ndarray) -> bytes:
        return value.astype(np.float32).tobytes()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        return np.frombuffer(b"".join(members), np.float32).reshape(-1, self.size)

    def law(self) -> tuple[Tensor, Tensor]:
        """(W, b) in float64."""
        rng = np.random.default_rng(self.seed)
        columns, _ = np.linalg.qr(rng.normal(size=(self.size, Z)))
        return torch.from_numpy(columns * rng.uniform(0.5, 2, Z)), torch.from_numpy(rng.normal(size=self.size))

    def encoder(self, latent: int) -> nn.Module:
        return Exact(self)

    def features(self) -> tuple[nn.Module, int]:
        raise NotImplementedError

    def decoder(self, latent: int) -> nn.Module:
        slope, offset = self.law()
        layer = nn.Linear(latent, self.size)
        layer.load_state_dict({"weight": slope, "bias": offset})
        return layer

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        logvar = torch.full_like(parameters, 2 * math.log(self.noise))
        return Gaussian(parameters, logvar).log_prob(value)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters


class Exact(nn.Module):
    """The expert of `Linear`: mean (WᵀW)⁻¹ Wᵀ(x - b), precision WᵀW / s²."""

    def __init__(self, modality: Linear) -> None:
        super().__init__()
        slope, offset = modality.law()
        precision = slope.square().sum(0) / modality.noise**2
        back = slope.T / slope.square().sum(0)[:, None]
        if modality.quotient_of:  # p(z|x_m) ∝ p(z) p(x_m|z), and V = N / (N - 1) sigmoid(raw)
            back = back * (precision / (precision + 1))[:, None]
            raw = torch.logit((modality.quotient_of - 1) / modality.quotient_of / (precision + 1))
        else:
            raw = -precision.log()
        self.back, self.offset, self.raw = (nn.Parameter(t.float()) for t in (back, -back @ offset, raw))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        mu = value @ self.back.T + self.offset
        return mu, self.raw.expand_as(mu)


class World:
    """A model of `count` modalities whose experts are exact, rows of it, and the joint Gaussian that they come from."""

    def __init__(self, system: str, count: int) -> None:
        of = count if system == "mvae-q" else 0
        self.kinds = {NAMES[m]: Linear(SIZES[m], 0.4 + 0.3 * m, m, of) for m in range(count)}
        self.model = MultimodalVAE(self.kinds, Z, SYSTEMS[system].posterior(list(self.kinds)))
        laws = [kind.law() for kind in self.kinds.values()]
        self.slope, self.centre = (torch.cat(parts) for parts in zip(*laws, strict=True))
        noise = torch.cat([torch.full((kind.size,), kind.noise**2).double() for kind in self.kinds.values()])
        self.covariance = self.slope @ self.slope.T + noise.diag()
        generator = torch.Generator().manual_seed(count)
        z = torch.randn(ROWS, Z, generator=generator, dtype=torch.float64)
        own = noise.sqrt() * torch.randn(ROWS, len(noise), generator=generator, dtype=torch.float64)
        self.values = self.centre + z @ self.slope.T + own
        self.columns = [np.arange(a, b) for a, b in pairwise(accumulate(SIZES[:count], initial=0))]

    def seen(self, subset: tuple[int, ...]) -> np.ndarray:
        """The places of a subset's numbers."""
        return np.concatenate([self.columns[m] for m in subset])

    def evidence(self, subset: tuple[int, ...]) -> Tensor:
        """log p(x of the subset) of each row, z integrated out."""
        seen = self.seen(subset)
        return MultivariateNormal(self.centre[seen], self.covariance[seen][:, seen]).log_prob(self.values[:, seen])

    def posterior(self, subset: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean (ROWS, Z) and covariance (Z, Z) of z given the subset, by conditioning."""
        seen = self.seen(subset)
        gain = self.slope[seen].T @ torch.linalg.inv(self.covariance[seen][:, seen])
        return (self.values - self.centre)[:, seen] @ gain.T, torch.eye(Z) - gain @ self.slope[seen]

    def batch(self, subset: tuple[int, ...]) -> Batch:
        """All rows with these modalities."""
        has = [m in subset for m in range(len(self.kinds))]
        values = [
            (self.values if has[m] else torch.zeros(1, len(self.centre)))[:, c] for m, c in enumerate(self.columns)
        ]
        rows = [np.arange(ROWS if there else 0) for there in has]
        return Batch(
            values={name: value.float() for name, value in zip(self.kinds, values, strict=True)},
            rows_of=dict(zip(self.kinds, rows, strict=True)),
            present_BM=np.tile(has, (ROWS, 1)),
            weight_B=torch.ones(ROWS),
            row_B=torch.arange(ROWS),
            keys=[str(row) for row in range(ROWS)],
        )

    def scores(self, subset: tuple[int, ...], noise: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ log p(x|z), KL) of each row's joint term."""
        batch = self.batch(subset)
        scores = self.model(batch, joint_plan(batch.present_BM, self.model.family), noise.expand(1, ROWS, Z))
        return scores.log_likelihood_TBM[0].sum(1), scores.kl_TB[0]

    def elbo(self, subset: tuple[int, ...]) -> Tensor:
        """Of each row, without variance: two samples, a deviation above the mean and one below, give the expectation
        of a quadratic without mixed terms exactly."""
        above, kl = self.scores(subset, torch.ones(()))
        below, _ = self.scores(subset, -torch.ones(()))
        return (above + below) / 2 - kl


CASES = [
    (system, count, subset)
    for system in ("mvae", "mvae-q")
    for count in (2, 3)
    for size in range(1, count + 1)
    for subset in combinations(range(count), size)
]
CALLS = ("system", "count", "subset")


@pytest.mark.parametrize(CALLS, CASES)
def test_the_product_of_exact_experts_is_the_exact_posterior(system: str, count: int, subset: tuple[int, ...]) -> None:
    """MVAE eq. 3 and 4 are equalities where every expert is exact."""
    world = World(system, count)
    mean, covariance = world.posterior(subset)
    q = world.model.posterior(world.batch(subset))
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-9, rtol=0)  # nothing is left out
    torch.testing.assert_close(q.mu.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.logvar.double().exp(), covariance.diag().expand(ROWS, Z), rtol=1e-4, atol=0)


@pytest.mark.parametrize(CALLS, CASES)
def test_the_elbo_of_the_exact_posterior_is_the_evidence(system: str, count: int, subset: tuple[int, ...]) -> None:
    world = World(system, count)
    elbo = world.elbo(subset)
    torch.testing.assert_close(elbo.double(), world.evidence(subset), rtol=1e-4, atol=1e-4)
    # a maximum: no encoder has anything left to learn
    looking = [p for m in subset for p in world.model.encoders[NAMES[m]].parameters()]
    sizes = torch.autograd.grad(world.scores(subset, torch.ones(()))[1].sum(), looking)
    for slope, size in zip(torch.autograd.grad(elbo.sum(), looking), sizes, strict=True):
        assert float(slope.abs().max()) < 1e-4 * float(size.abs().max())


@pytest.mark.parametrize("count", [2, 3])
def test_log_weights_of_the_exact_posterior_have_no_variance(count: int) -> None:
    """log p(x, z) - log q(z|x) is log p(x) whatever z is: importance sampling would need one sample."""
    world, everything = World("mvae", count), tuple(range(count))
    q, prior = world.model.posterior(world.batch(everything)), Gaussian(torch.zeros(Z), torch.zeros(Z))
    for seed in range(5):
        noise = 2 * torch.randn(ROWS, Z, generator=torch.Generator().manual_seed(seed))
        z = q.sample(noise)
        log_weight = world.scores(everything, noise)[0] + prior.log_prob(z) - q.log_prob(z)
        torch.testing.assert_close(log_weight.double(), world.evidence(everything), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("system", ["vaevae-a", "svae", "mvae"])
def test_the_elbo_of_any_other_posterior_is_below_the_evidence(system: str) -> None:
    """Without the prior expert the experts of MVAE are not exact, nor are any that were disturbed."""
    world = World(system, 2)
    if system == "mvae":
        with torch.no_grad():
            world.model.encoders["one"].raw += 0.3  # type: ignore[operator]
    assert (world.elbo((0, 1)).double() < world.evidence((0, 1)) - 1e-3).all()
