"""Distributions over the latent space and the ways in which experts make one: products, quotients, mixtures.

Everything is float32 whatever the networks' precision. Shape legend: E experts, T terms, B rows, M modalities,
Z latent dimensions, K samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
LEAST = torch.finfo(torch.float32).tiny
"""What a weight of 0 is divided by: any smaller number is 0 to a CPU that flushes denormals (`infra.distributed`)."""


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussians: mean and log-variance of equal shape (..., Z)."""

    mu: Tensor
    logvar: Tensor

    @property
    def deviation(self) -> Tensor:
        """The standard deviation, of the same shape."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised samples from standard normal noise."""
        return torch.addcmul(self.mu, torch.exp(0.5 * self.logvar), noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, summed over Z."""
        return -0.5 * (LOG_2PI + self.logvar + (z - self.mu).square() * torch.exp(-self.logvar)).sum(-1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats, summed over Z."""
        difference = (self.mu - other.mu).square()
        ratio = torch.exp(self.logvar - other.logvar) + difference * torch.exp(-other.logvar)
        return 0.5 * (other.logvar - self.logvar + ratio - 1.0).sum(-1)

    def kl_to_prior(self) -> Tensor:
        """KL(self || N(0, I)) in nats, summed over Z."""
        return 0.5 * (self.mu.square() + self.logvar.exp() - 1.0 - self.logvar).sum(-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussian:
        """With a function of both tensors, such as a selection or `Tensor.detach`."""
        return Gaussian(function(self.mu), function(self.logvar))


@dataclass(frozen=True)
class Laplace:
    """Factorised Laplace distributions: location and log-scale of equal shape (..., Z) (MMVAE section 4.1)."""

    mu: Tensor
    logscale: Tensor

    @property
    def deviation(self) -> Tensor:
        """The standard deviation, of the same shape."""
        return math.sqrt(2) * torch.exp(self.logscale)

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised samples from standard normal noise, by way of the quantile function.

        |noise| of a half normal has the tail probability p = erfc(|noise| / √2), and the Laplace distribution's point
        of the same tail lies at -log p scales from its centre; log p by `log_ndtr` is exact far into the tail.
        """
        tail = torch.special.log_ndtr(-noise.abs()) + math.log(2)
        return self.mu - torch.sign(noise) * torch.exp(self.logscale) * tail

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, summed over Z."""
        return -(math.log(2) + self.logscale + (z - self.mu).abs() * torch.exp(-self.logscale)).sum(-1)

    def kl(self, other: Laplace) -> Tensor:
        """KL(self || other) in nats, summed over Z."""
        distance = (self.mu - other.mu).abs()
        scale, against = torch.exp(self.logscale), torch.exp(-other.logscale)
        near = scale * torch.exp(-distance / scale)
        return (other.logscale - self.logscale + (near + distance) * against - 1.0).sum(-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Laplace:
        """With a function of both tensors, such as a selection or `Tensor.detach`."""
        return Laplace(function(self.mu), function(self.logscale))


@dataclass(frozen=True)
class Mixture:
    """Σ_t w_t q_t(z) of each row."""

    components: Gaussian | Laplace
    """q_t: (T, B, Z)."""
    weight_TB: Tensor
    """w: sums to 1, or to 0 in a row that has no posterior."""

    @property
    def mu(self) -> Tensor:
        """The mean: (B, Z)."""
        return torch.einsum("tb,tbz->bz", self.weight_TB, self.components.mu)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation: (B, Z)."""
        around = self.components.deviation.square() + (self.components.mu - self.mu).square()
        return torch.einsum("tb,tbz->bz", self.weight_TB, around).sqrt()

    @property
    def noise(self) -> int:
        """Normal numbers that a sample takes: one for each latent dimension, and one that draws the component."""
        return self.components.mu.shape[-1] + 1

    def sample(self, noise: Tensor) -> Tensor:
        """(K, B, Z) from noise (K, B, Z + 1); not differentiable with respect to the weights."""
        return self.component(noise[..., -1]).sample(noise[..., :-1])

    def component(self, noise_KB: Tensor) -> Gaussian | Laplace:
        """q_t of each row, (K, B, Z), t being drawn by weight from standard normal noise."""
        uniform_KB, below_TB = torch.special.ndtr(noise_KB), self.weight_TB.cumsum(0)
        # none beyond the last that weighs something, be the uniform number 1 or the sum a little less
        drawn_KB = ((uniform_KB[:, None] >= below_TB) & (below_TB < below_TB[-1])).sum(1)
        index = drawn_KB[..., None].expand(*drawn_KB.shape, self.components.mu.shape[-1])
        return self.components.map(lambda tensor: tensor.gather(0, index))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats of z (K, B, Z): (K, B)."""
        return mixture_log_prob(self.components.log_prob(z[:, None]), self.weight_TB, 1)


def product(weighted_EBZ: Tensor, precision_EBZ: Tensor, mask_TBE: Tensor, prior_TB: Tensor | float = 1.0) -> Gaussian:
    """q(z|A) ∝ p(z)^c Π_{e in A} q_e(z) for every term and row at once, p being N(0, I).

    The mean is Σ μ_e T_e / (c + Σ T_e), T_e = 1 / V_e being precisions; `weighted_EBZ` is μ_e T_e. c = 1 is MVAE's
    product with the prior expert (section 2.2), 0 a product of the experts alone. `mask_TBE` says which experts take
    part; one whose precision is 0 (an absent modality) takes no part in any case. Where none does, it is the prior.
    """
    mask = mask_TBE.to(precision_EBZ.dtype)
    both_BEZ = torch.cat([weighted_EBZ, precision_EBZ], 2).transpose(0, 1)
    mean, total = torch.bmm(mask.transpose(0, 1), both_BEZ).transpose(0, 1).chunk(2, 2)
    prior = prior_TB[..., None] if isinstance(prior_TB, Tensor) else prior_TB
    total = torch.where(mask_TBE.any(-1, keepdim=True), total + prior, 1.0)
    return Gaussian(mean / total, -total.log())


def mixture_log_prob(log_prob_C: Tensor, weight_C: Tensor, dim: int) -> Tensor:
    """log Σ_c w_c q_c(z) from the components' log densities along `dim`; a weight of 0 leaves its component out."""
    return torch.logsumexp(torch.where(weight_C > 0, log_prob_C + weight_C.clamp_min(LEAST).log(), -torch.inf), dim)
