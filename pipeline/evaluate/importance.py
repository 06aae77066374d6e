"""Log-likelihoods by importance sampling: log p(x_i), log p(X), log p(x_i | x_j), from any posterior of the model.

All in nats, with λ = β = 1 and with -log K. Shape legend: K samples, B rows, M modalities, Z latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.experts import Mixture
from pipeline.model import MultimodalVAE
from pipeline.noise import normal

SAMPLES, PRIOR_SAMPLES = 1000, 5000
"""MVAE section 5; 100 and 1,000 on CelebA."""
MANY = 4
"""Modalities beyond which the likelihoods of each given each other are left out."""
PART = 50
"""Samples that are drawn and decoded together, which bounds the memory; the noise of a sample hangs on its part."""


@dataclass(frozen=True)
class Estimate:
    """Of every row; NaN where a row lacks what is asked for or what is given."""

    log_p_B: Tensor
    """log 1/K Σ_k w_k: an importance-weighted bound (Burda et al. 2016), exact as K grows."""
    variance_B: Tensor
    """Variance of the log weights over the samples (MVAE table 3)."""

    def means(self) -> tuple[float, float, int]:
        """Mean log-likelihood, mean variance of log weights, and over how many rows."""
        there = ~self.log_p_B.isnan()
        return float(self.log_p_B[there].mean()), float(self.variance_B[there].mean()), int(there.sum())


@torch.no_grad()
def log_likelihood(
    model: MultimodalVAE,
    batch: Batch,
    wanted: frozenset[str],
    given: frozenset[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Estimate:
    """log p(x_wanted) with q(z | x_given) as the importance distribution (MVAE eq. 5, 6 of its earlier version).

    `given` may be any subset of the modalities; where it is empty, samples come from the prior.
    """
    weights = torch.cat(list(_log_weights(model, batch, wanted, given, samples, seed)))
    log_p = torch.logsumexp(weights, 0) - math.log(samples)
    there = on_device(_has(batch, wanted | given), log_p.device)
    nothing = torch.full_like(log_p, torch.nan)
    variance = weights.var(0) if samples > 1 else nothing
    return Estimate(torch.where(there, log_p, nothing), torch.where(there, variance, nothing))


@torch.no_grad()
def conditional(
    model: MultimodalVAE,
    batch: Batch,
    wanted: frozenset[str],
    condition: frozenset[str],
    given: frozenset[str] | None = None,
    samples: int = SAMPLES,
    prior_samples: int = PRIOR_SAMPLES,
    from_prior: bool = True,
    seed: int = 0,
) -> Estimate:
    """log p(x_wanted | x_condition) = log p(x_wanted, x_condition) - log p(x_condition) (eq. 7).

    The joint is estimated from q(z | x_given), which is q(z | x_condition) where nothing else is said; the marginal by
    samples from the prior, as the paper does, or else by importance sampling from q(z | x_condition).
    """
    joint = log_likelihood(model, batch, wanted | condition, condition if given is None else given, samples, seed)
    if from_prior:
        return _given(joint, _from_prior(model, batch, condition, prior_samples, seed))
    return _given(joint, log_likelihood(model, batch, condition, condition, samples, seed + 1))


def _from_prior(model: MultimodalVAE, batch: Batch, names: frozenset[str], samples: int, seed: int) -> Estimate:
    """log E_p(z)[p(x_names | z)], from other noise than the joint's estimate."""
    return log_likelihood(model, batch, names, frozenset(), samples, seed + 1)


def _given(joint: Estimate, marginal: Estimate) -> Estimate:
    return Estimate(joint.log_p_B - marginal.log_p_B, joint.variance_B)


def importance_sampled(
    module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch, samples: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and counts of `log_p/…` and `log_weight_variance/…` over rows that have what is asked for.

    Each modality from its own posterior, all of them from the joint one (`log_p/all`), and with at most MANY modalities
    each given each other (`log_p/X_given_Y`), p(y) being estimated from five times as many samples of the prior. A
    model with conditions has a likelihood of what it generates given these, and no other.
    """
    sums, counts = {}, {}
    for name, estimate in _estimates(model, batch, samples, run.seed).items():
        there = ~estimate.log_p_B.isnan()
        for metric, values in (("log_p", estimate.log_p_B), ("log_weight_variance", estimate.variance_B)):
            if metric == "log_p" or samples > 1:
                sums[f"{metric}/{name}"], counts[f"{metric}/{name}"] = float(values[there].sum()), float(there.sum())
    return sums, counts


def _estimates(model: MultimodalVAE, batch: Batch, samples: int, seed: int) -> dict[str, Estimate]:
    names = list(model.modalities)
    if model.family.conditions:
        (first,), everything = model.generated, frozenset(names)
        title = "_".join([first, "given", *model.family.conditions])
        return {title: log_likelihood(model, batch, frozenset([first]), everything, samples, seed)}
    asked = {name: frozenset([name]) for name in names} | {"all": frozenset(names)}
    estimates = {name: log_likelihood(model, batch, them, them, samples, seed) for name, them in asked.items()}
    for given in names if 1 < len(names) <= MANY else ():
        marginal = _from_prior(model, batch, asked[given], 5 * samples, seed)  # the same whatever is wanted
        for wanted in (name for name in names if name != given):
            joint = log_likelihood(model, batch, asked[wanted] | asked[given], asked[given], samples, seed)
            estimates[f"{wanted}_given_{given}"] = _given(joint, marginal)
    return estimates


def _log_weights(
    model: MultimodalVAE, batch: Batch, wanted: frozenset[str], given: frozenset[str], samples: int, seed: int
) -> Iterator[Tensor]:
    """log p(x_wanted | z) + log p(z) - log q(z | x_given), some samples at a time: (k, B)."""
    device = batch.row_B.device
    prior = model.prior(device).map(lambda tensor: tensor.expand(len(batch), -1))
    posterior = model.posterior(batch.only(given)) if given else prior
    width = posterior.noise if isinstance(posterior, Mixture) else model.latent
    asked = np.array([name in wanted and name in model.generated for name in batch.values]) & batch.present_BM
    for part in range(-(-samples // PART)):
        count = min(PART, samples - part * PART)
        noise = normal(seed, f"importance {part}", batch.row_B, PART, width)[:count]
        z = posterior.sample(noise)
        log_likelihood_KBM, _ = model.decode_all(batch, z, np.broadcast_to(asked, (count, *asked.shape)))
        yield log_likelihood_KBM.sum(2) + prior.log_prob(z) - posterior.log_prob(z)


def _has(batch: Batch, names: frozenset[str]) -> np.ndarray:
    """Which rows have all of these modalities: (B,)."""
    columns = [column for column, name in enumerate(batch.values) if name in names]
    return np.asarray(batch.present_BM[:, columns].all(1))
