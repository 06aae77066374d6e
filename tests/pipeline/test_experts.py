"""Products of Gaussian experts against loops, torch.distributions and exact Bayesian posteriors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from pipeline.experts import Gaussian, product

T, B, M, Z = 4, 5, 3, 6


def experts(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return 2 * torch.randn(M, B, Z), torch.randn(M, B, Z).mul(2).exp(), torch.rand(T, B, M) < 0.5


def test_product_is_the_paper_s_formula_in_loops() -> None:
    mu, precision, mask = experts()
    result = product(mu * precision, precision, mask)
    assert result.mu.shape == result.logvar.shape == (T, B, Z)
    for t, b, z in np.ndindex(T, B, Z):
        total, weighted = 1.0, 0.0  # the prior expert N(0, 1)
        for m in range(M):
            if mask[t, b, m]:
                total += float(precision[m, b, z])
                weighted += float(mu[m, b, z]) * float(precision[m, b, z])
        assert float(result.mu[t, b, z]) == pytest.approx(weighted / total, rel=1e-5, abs=1e-6)
        assert float(result.logvar[t, b, z].exp()) == pytest.approx(1 / total, rel=1e-5)


def test_product_is_proportional_to_the_densities() -> None:
    """log q(z|A) - log p(z) - Σ log q_m(z) is the same for every z: no other Gaussian has this."""
    mu, precision, _ = experts(1)
    fused = product(mu * precision, precision, torch.ones(1, B, M, dtype=torch.bool))
    z = torch.randn(50, B, Z)
    log_q = Normal(fused.mu[0], (0.5 * fused.logvar[0]).exp()).log_prob(z)
    log_parts = Normal(0.0, 1.0).log_prob(z) + sum(Normal(mu[m], precision[m].rsqrt()).log_prob(z) for m in range(M))
    torch.testing.assert_close((log_q - log_parts).std(0), torch.zeros(B, Z), atol=1e-3, rtol=0)


def test_no_expert_is_the_prior() -> None:
    mu, precision, mask = experts()
    nobody = product(mu * precision, precision, torch.zeros_like(mask))
    assert torch.equal(nobody.mu, torch.zeros(T, B, Z))
    assert torch.equal(nobody.kl_to_prior(), torch.zeros(T, B))
    assert torch.equal(nobody.sample(mu[:1].expand(T, -1, -1)), mu[:1].expand(T, -1, -1))


def test_an_absent_expert_takes_no_part() -> None:
    mu, precision, _ = experts()
    everybody = torch.ones(1, B, M, dtype=torch.bool)
    precision[1, 2:] = 0.0
    with_absent = product(mu * precision, precision, everybody)
    masked = everybody.clone()
    masked[:, 2:, 1] = False
    without = product(mu * precision, precision, masked)
    assert torch.equal(with_absent.mu, without.mu)
    assert torch.equal(with_absent.logvar, without.logvar)
    mu[1, 2:] = 1e30  # whatever stands there
    assert torch.equal(product(mu * precision, precision, everybody).mu, with_absent.mu)


def test_kl_is_torchs() -> None:
    torch.manual_seed(0)
    q = Gaussian(3 * torch.randn(T, B, Z), 2 * torch.randn(T, B, Z))
    theirs = kl_divergence(
        Independent(Normal(q.mu, (0.5 * q.logvar).exp()), 1), Independent(Normal(torch.zeros(Z), torch.ones(Z)), 1)
    )
    assert q.kl_to_prior().shape == (T, B)
    torch.testing.assert_close(q.kl_to_prior(), theirs)
    assert (q.kl_to_prior() >= 0).all()


def test_samples_have_the_mean_and_the_standard_deviation() -> None:
    """A variance taken for a standard deviation is a known slip."""
    q = Gaussian(torch.full((1, 1, 2), 3.0), torch.tensor([4.0, 0.25]).log().view(1, 1, 2))
    torch.manual_seed(0)
    z = q.sample(torch.randn(40_000, 1, 2))
    torch.testing.assert_close(z.mean((0, 1)), torch.tensor([3.0, 3.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std((0, 1)), torch.tensor([2.0, 0.5]), atol=0, rtol=0.02)
    torch.testing.assert_close(q.sample(torch.ones(1, 1, 2)), torch.tensor([[[5.0, 3.5]]]))


@pytest.mark.parametrize("seen", [[0], [1, 2], [0, 1, 2, 3]])
def test_linear_gaussian_posterior_is_exact(seen: list[int]) -> None:
    """p(z) = N(0, 1), p(x_i|z) = N(a_i z, s_i²): as experts in z the likelihoods are N(x_i/a_i, s_i²/a_i²), and their
    product with the prior is the posterior, which conditioning the joint Gaussian of (z, x) gives independently."""
    rng = np.random.default_rng(len(seen))
    a, s, x = rng.normal(size=(4, Z)), rng.uniform(0.3, 2, (4, Z)), rng.normal(size=(4, Z))
    mask = torch.tensor([[i in seen for i in range(4)]])[None]
    fused = product(
        torch.tensor(x / a * (a / s) ** 2, dtype=torch.float32)[:, None],
        torch.tensor((a / s) ** 2, dtype=torch.float32)[:, None],
        mask,
    )
    for z in range(Z):
        slope = a[seen, z]
        covariance = np.outer(slope, slope) + np.diag(s[seen, z] ** 2)
        gain = slope @ np.linalg.inv(covariance)
        assert float(fused.mu[0, 0, z]) == pytest.approx(gain @ x[seen, z], rel=1e-4, abs=1e-5)
        assert float(fused.logvar[0, 0, z].exp()) == pytest.approx(1 - gain @ slope, rel=1e-4)


def test_gradients_reach_the_experts_that_take_part_and_no_other() -> None:
    mu, precision, mask = experts()
    mask[:, :, 2] = False
    mu.requires_grad_()
    precision.requires_grad_()
    q = product(mu * precision, precision, mask)
    (q.kl_to_prior().sum() + q.mu.sum()).backward()
    for gradient in (mu.grad, precision.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert (gradient[2] == 0).all()
        assert ((gradient[:2] != 0).all(2) == mask.any(0).T[:2]).all()
