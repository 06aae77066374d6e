"""Products of diagonal Gaussian experts. Shape legend: T terms, B rows, M modalities, Z latent dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussians in float32: mean and log-variance of equal shape (..., Z)."""

    mu: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised samples from standard normal noise of the mean's shape."""
        return self.mu + torch.exp(0.5 * self.logvar) * noise

    def kl_to_prior(self) -> Tensor:
        """KL(q || N(0, I)) in nats, summed over Z: shape (...)."""
        return 0.5 * (self.mu.square() + self.logvar.exp() - 1.0 - self.logvar).sum(-1)


def product_with_prior(mu_MBZ: Tensor, precision_MBZ: Tensor, mask_TBM: Tensor) -> Gaussian:
    """q(z|A) ∝ p(z) Π_{m in A} q_m(z) for every term and row at once (MVAE section 2.2, prior expert N(0, I)).

    The mean is Σ μ_i T_i / (1 + Σ T_i) with precisions T_i = 1 / V_i. `mask_TBM` says which experts take part; an
    expert whose precision is 0 (an absent modality) takes no part in any case.
    """
    mask = mask_TBM.to(precision_MBZ.dtype)
    total = 1.0 + torch.einsum("tbm,mbz->tbz", mask, precision_MBZ)
    mean = torch.einsum("tbm,mbz->tbz", mask, precision_MBZ * mu_MBZ) / total
    return Gaussian(mean, -total.log())
