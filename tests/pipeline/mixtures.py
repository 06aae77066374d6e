"""MMVAE's bounds as plain loops, in float64: one row, one component and one sample at a time (Shi et al. 2019).

Nothing here knows how the project plans terms, fuses experts or turns gradients; densities are torch's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Laplace, Normal

from modalities import Label
from pipeline.batch import Batch
from pipeline.model import MultimodalVAE
from tests.pipeline.batches import value_of
from tests.pipeline.test_linear_gaussian import World


def laplace(mu: Tensor, raw: Tensor) -> Laplace:
    """Scales that sum to the number of dimensions (section 4.1)."""
    return Laplace(mu, len(raw) * raw.exp() / raw.exp().sum(), validate_args=False)


def log_mixture(components: list[Laplace], z: Tensor) -> Tensor:
    """log q_Φ(z | x_1:M), the experts weighing the same (section 3)."""
    densities = torch.stack([q.log_prob(z).sum() for q in components])
    return torch.logsumexp(densities, 0) - math.log(len(components))


@dataclass
class Row:
    """One row and the noise of its samples."""

    model: MultimodalVAE
    values: dict[int, Tensor]
    """By modality, of those that are present."""
    noise_KTZ: Tensor
    """Of all M modalities, those that are absent too."""
    lambdas: list[float]
    beta: float

    def experts(self) -> dict[int, Laplace]:
        """q_m(z | x_m) of what is present."""
        outputs = {m: self.model.encoders[f"m{m}"](value[None]) for m, value in self.values.items()}
        return {m: laplace(mu[0], raw[0]) for m, (mu, raw) in outputs.items()}

    def prior(self) -> Laplace:
        assert self.model.prior_raw is not None
        return laplace(torch.zeros_like(self.model.prior_raw), self.model.prior_raw)

    def draw(self, q: Laplace, k: int, m: int) -> Tensor:
        """The sample whose quantile is that of the normal noise."""
        return q.icdf(Normal(0.0, 1.0).cdf(self.noise_KTZ[k, m]))

    def likely(self, m: int, z: Tensor) -> Tensor:
        """λ_m log p(x_m | z)."""
        kind, parameters = self.model.modalities[f"m{m}"], self.model.decoders[f"m{m}"](z[None])[0]
        if isinstance(kind, Label):
            return self.lambdas[m] * Categorical(logits=parameters).log_prob(self.values[m])
        levels = self.values[m].flatten().double()
        return self.lambdas[m] * Bernoulli(logits=parameters, validate_args=False).log_prob(levels).sum()

    def log_w(self, z: Tensor, components: list[Laplace]) -> Tensor:
        """log p(z, x) - log q_Φ(z | x), with the weights of the objective."""
        likely = torch.stack([self.likely(m, z) for m in self.values]).sum()
        return likely + self.beta * (self.prior().log_prob(z).sum() - log_mixture(components, z))

    def bound(self, name: str, gradient: str) -> tuple[Tensor, Tensor]:
        """(eq. 3, eq. 5 or appendix B; something whose gradient is the estimator's)."""
        if not self.values:
            return torch.zeros(()), torch.zeros(())
        if name == "linear":
            return (self.appendix_b(),) * 2
        experts = self.experts()
        frozen = [Laplace(q.loc.detach(), q.scale.detach(), validate_args=False) for q in experts.values()]
        z = {m: [self.draw(q, k, m) for k in range(len(self.noise_KTZ))] for m, q in experts.items()}
        # eq. 3: one logarithm for each modality; eq. 5: one for all samples
        groups = list(z.values()) if name == "stratified" else [[sample for some in z.values() for sample in some]]
        value, estimator = torch.zeros(()), torch.zeros(())
        for group in groups:
            log_w = torch.stack([self.log_w(sample, list(experts.values())) for sample in group])
            value = value + (torch.logsumexp(log_w, 0) - math.log(len(group))) / len(groups)
            normalised = (log_w - torch.logsumexp(log_w, 0)).exp().detach()
            for sample, share in zip(group, normalised, strict=True):
                leaf = sample.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.log_w(leaf, frozen), leaf)
                # eq. 8 for Φ: w̄² ∂ log w / ∂z · dz / dΦ; Burda et al.'s w̄ ∂ log w for Θ
                estimator = estimator + share**2 * (slope * sample).sum() / len(groups)
                estimator = estimator + share * self.log_w(sample.detach(), frozen) / len(groups)
        return value, estimator if gradient == "dreg" else value

    def appendix_b(self) -> Tensor:
        """Decodes x_j from z_j once more under every i."""
        total = torch.zeros(())
        for k in range(len(self.noise_KTZ)):
            for i in self.values:
                experts = self.experts()
                z = self.draw(experts[i], k, i)
                prior, mixture = self.prior().log_prob(z).sum(), log_mixture(list(experts.values()), z)
                part = self.likely(i, z) + self.beta * (prior - mixture)
                for j in self.values:
                    if j != i:
                        part = part + self.borrowed(experts, i, j, k)
                total = total + part / len(self.values) / len(self.noise_KTZ)
        return total

    def borrowed(self, experts: dict[int, Laplace], i: int, j: int, k: int) -> Tensor:
        """A_j: q_i(z_j) / q̄_j(z_j) log p(x_j | z_j), z_j being drawn from q̄_j, through which no gradient goes."""
        fixed = Laplace(experts[j].loc.detach(), experts[j].scale.detach(), validate_args=False)
        z = self.draw(fixed, k, j)
        return (experts[i].log_prob(z).sum() - fixed.log_prob(z).sum()).exp() * self.likely(j, z)

    @torch.no_grad()
    def metrics(self, name: str) -> dict[str, float]:
        """Means over the samples with λ = β = 1; log p(x_m | z) by the linear bound's own estimator."""
        row = replace(self, lambdas=[1.0] * len(self.lambdas), beta=1.0)
        experts, samples = row.experts(), len(row.noise_KTZ)
        found = dict.fromkeys([f"recon.m{m}" for m in range(len(self.lambdas))] + ["kl"], 0.0)
        for k in range(samples):
            for i, q in experts.items():
                z, share = row.draw(q, k, i), 1 / len(experts) / samples
                kl = log_mixture(list(experts.values()), z) - row.prior().log_prob(z).sum()
                found["kl"] += share * float(kl)
                for j in experts:
                    other = name == "linear" and i != j
                    likely = row.borrowed(experts, i, j, k) if other else row.likely(j, z)
                    found[f"recon.m{j}"] += share * float(likely)
        return found | {"elbo": sum(value for key, value in found.items() if key != "kl") - found["kl"]}


def rows_of(
    model: MultimodalVAE, batch: Batch, noise_KTBZ: Tensor, lambdas: dict[str, float], beta: float
) -> list[Row]:
    """The rows of a batch, for a model in float64."""
    weights = [lambdas.get(name, 1.0) for name in model.modalities]
    return [
        Row(
            model,
            {
                m: torch.from_numpy(np.asarray(value_of(kind, int(batch.row_B[b]), m)))
                for m, kind in enumerate(model.modalities.values())
                if batch.present_BM[b, m]
            },
            noise_KTBZ[:, :, b].double(),
            weights,
            beta,
        )
        for b in range(len(batch))
    ]


def parabola(world: World, subset: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(c_B, b_BZ, a_Z) of log p(x | z) = c + Σ b z - a z² / 2, a world's columns being at right angles."""
    seen = world.seen(subset)
    noise = torch.cat([torch.full((kind.size,), kind.noise).double() for kind in world.kinds.values()])[seen]
    slope, rest = world.slope[seen] / noise[:, None], (world.values - world.centre)[:, seen] / noise
    constant = -(0.5 * rest.square() + noise.log() + 0.5 * math.log(2 * math.pi)).sum(1)
    return constant, rest @ slope, slope.square().sum(0)


def evidence(world: World, subset: tuple[int, ...]) -> Tensor:
    """log p(x of the subset) of each row under the Laplace prior: every latent dimension by itself, by quadrature."""
    constant, linear, square = parabola(world, subset)
    assert world.model.prior_raw is not None
    scale = world.model.prior_raw.detach().double().softmax(0) * len(square)
    z = torch.linspace(-40, 40, 80_001, dtype=torch.float64)[:, None, None]  # 0, where the density has its edge, is one
    log_p = -z.abs() / scale - (2 * scale).log() + linear * z - square * z.square() / 2
    return constant + (torch.logsumexp(log_p, 0) + math.log(80 / 80_000)).sum(1)
