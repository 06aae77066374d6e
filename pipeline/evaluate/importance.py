"""Log-likelihoods by importance sampling: log p(x_i), log p(X), log p(x_i | x_j), from any posterior of the model.

log p(x_i | x_j) is log p(x_i, x_j) - log p(x_j) (MVAE section 5). The paper estimates p(x_j) from samples of the prior,
which do for a label but miss every picture: here half of them come from q(z | x_j), and a weight is p(x_j, z) over the
mean of both densities (defensive importance sampling, Owen & Zhou 2000), at worst half as good as the better source.

All in nats, with λ = β = 1 and with -log K. Shape legend: K samples, B rows, M modalities, Z latent dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.experts import Mixture
from pipeline.model import MultimodalVAE
from pipeline.noise import normal

SAMPLES = 1000
"""MVAE section 5; 100 on CelebA."""
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

    `given` may be any subset of the modalities; of none the posterior is the prior.
    """
    return _weights(model, batch, wanted, given, samples, seed).of(batch, wanted)


def importance_sampled(
    module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch, samples: int
) -> dict[str, Tensor]:
    """`log_p/…` and `log_weight_variance/…` of each row (B,); NaN where it lacks what is asked for.

    Each modality from its own posterior, all of them from the joint one (`log_p/all`), and with at most MANY modalities
    each given each other (`log_p/X_given_Y`, from q(z | y)), whose log weights vary as those of both. The same from
    other posteriors is named after these: `log_p/X.by_all` (MVAE table 6), `log_p/all.by_X` (tables 2 and 3). With more
    modalities the first and the joint posterior serve for that, and only the first is conditioned, on all others
    (`log_p/X_given_others.by_all`). A model with conditions has a likelihood of what it generates given these, and no
    other.
    """
    told = {}
    for name, estimate in _estimates(model, batch, samples, run.seed).items():
        told[f"log_p/{name}"] = estimate.log_p_B
        if samples > 1 and ("_given_" not in name or model.family.conditions):
            told[f"log_weight_variance/{name}"] = estimate.variance_B
    return told


def _estimates(model: MultimodalVAE, batch: Batch, samples: int, seed: int) -> dict[str, Estimate]:
    names = list(model.modalities)
    everything = frozenset(names)
    if model.family.conditions:
        (first,) = model.generated
        title = "_".join([first, "given", *model.family.conditions])
        return {title: log_likelihood(model, batch, frozenset([first]), everything, samples, seed)}
    few = len(names) <= MANY
    estimates, marginals, joints = {}, {}, {}
    for source in [*names, "all"] if len(names) > 1 else names:
        given = everything if source == "all" else frozenset([source])
        answers = few or source in (names[0], "all")  # more than its own modality
        weights = _weights(model, batch, everything if answers else given, given, samples, seed)
        if few and len(names) > 1 and source != "all":
            marginals[source] = _marginal(model, batch, weights, samples, seed)
        for name in names if answers else [source]:
            estimates[_by(name, name, source)] = weights.of(batch, frozenset([name]))
        if answers and len(names) > 1:
            estimates[_by("all", "all", source)] = weights.of(batch, everything)
        for one, other in permutations(names, 2) if few else ():
            if source in (one, other, "all"):
                joints[_by(f"{one}_given_{other}", other, source)] = weights.of(batch, frozenset([one, other])), other
        if answers and not few:
            joints[f"{names[0]}_given_others.by_{source}"] = weights.of(batch, everything), "others"
    if not few:
        others = everything - {names[0]}
        own = _weights(model, batch, others, others, samples, seed)
        marginals["others"] = _marginal(model, batch, own, samples, seed)
    for title, (joint, other) in joints.items():
        estimates[title] = Estimate(joint.log_p_B - marginals[other].log_p_B, joint.variance_B)
    if "all" not in estimates:  # of one modality
        estimates["all"] = estimates[names[0]]
    return estimates


def _marginal(model: MultimodalVAE, batch: Batch, own: _Weights, samples: int, seed: int) -> Estimate:
    """log p(x_given), of weights from q(z | x_given)."""
    prior = _weights(model, batch, own.given, own.given, samples, seed + 1, from_prior=True)
    return own.defended(prior).of(batch, own.given)


def _by(title: str, usual: str, source: str) -> str:
    return title if source == usual else f"{title}.by_{source}"


@dataclass(frozen=True)
class _Weights:
    """What log weights are made of, from K samples of one posterior."""

    likely_KBM: Tensor
    """log p(x_m | z); 0 where it was not asked for, or the row lacks it."""
    density_KB: Tensor
    """log p(z) less the log density that z was drawn from, such as q(z | x_given)."""
    given: frozenset[str]

    def defended(self, prior: _Weights) -> _Weights:
        """With as many of the prior beside them, whose `density_KB` is that of q(z | x_given) as well."""
        density = torch.cat([self.density_KB, prior.density_KB])
        mean_of_both = math.log(2) - torch.nn.functional.softplus(-density)  # log p - log (q / 2 + p / 2)
        return _Weights(torch.cat([self.likely_KBM, prior.likely_KBM]), mean_of_both, self.given)

    def of(self, batch: Batch, wanted: frozenset[str]) -> Estimate:
        """The likelihood of these modalities."""
        columns = [column for column, name in enumerate(batch.values) if name in wanted]
        weights = self.likely_KBM[:, :, columns].sum(2) + self.density_KB
        log_p = torch.logsumexp(weights, 0) - math.log(len(weights))
        there = on_device(_has(batch, wanted | self.given), log_p.device)
        nothing = torch.full_like(log_p, torch.nan)
        variance = weights.var(0) if len(weights) > 1 else nothing
        return Estimate(torch.where(there, log_p, nothing), torch.where(there, variance, nothing))


def _weights(
    model: MultimodalVAE,
    batch: Batch,
    wanted: frozenset[str],
    given: frozenset[str],
    samples: int,
    seed: int,
    from_prior: bool = False,
) -> _Weights:
    """Of samples of q(z | x_given), or of the prior: `density_KB` has q(z | x_given) in either case."""
    device = batch.row_B.device
    prior = model.prior(device).map(lambda tensor: tensor.expand(len(batch), -1))
    posterior = model.posterior(batch.only(given)) if given else prior
    width = posterior.noise if isinstance(posterior, Mixture) else model.latent
    asked = np.array([name in wanted and name in model.generated for name in batch.values]) & batch.present_BM
    likely, density = [], []
    for part in range(-(-samples // PART)):
        count = min(PART, samples - part * PART)
        noise = normal(seed, f"importance {part}", batch.row_B, PART, width)[:count]
        z = prior.sample(noise[..., : model.latent]) if from_prior else posterior.sample(noise)
        likely.append(model.decode_all(batch, z, np.broadcast_to(asked, (count, *asked.shape)))[0])
        density.append(prior.log_prob(z) - posterior.log_prob(z))
    return _Weights(torch.cat(likely), torch.cat(density), given)


def _has(batch: Batch, names: frozenset[str]) -> np.ndarray:
    """Which rows have all of these modalities: (B,)."""
    columns = [column for column, name in enumerate(batch.values) if name in names]
    return np.asarray(batch.present_BM[:, columns].all(1))
