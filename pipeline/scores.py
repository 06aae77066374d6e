"""What a model says of the terms of a plan.

Shape legend: T, S terms, B rows, M modalities, P pairs of terms, K samples, Z latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What every term says of every row by one sample and closed-form divergences, in nats, float32, unweighted."""

    log_likelihood_TBM: Tensor
    """log p(x_m | z_tb) where the term reconstructs modality m of the row, else 0."""
    kl_TB: Tensor
    """KL(q(z | A_tb) || p(z)); 0 where the term sees nothing."""
    kl_PB: Tensor
    """KL(q_t || q_s) of the pairs of terms that were asked for."""
    anchor: Tensor
    """A zero that every parameter leads to, also those that no row of this rank needed."""


@dataclass(frozen=True)
class Densities:
    """What is known of K samples of every term, for objectives over mixtures, in nats, float32, unweighted."""

    log_likelihood_KTBM: Tensor
    """log p(x_m | z_ktb) where modality m was decoded from it, else 0."""
    log_prior_KTB: Tensor
    """log p(z_ktb)."""
    log_q_KTSB: Tensor
    """log q_s(z_ktb): each term's samples under every term's posterior; with DReG these posteriors are constants."""
    log_q_fixed_KTSB: Tensor | None
    """The same with the samples as constants (linear bound)."""
    z_KTBZ: Tensor
    """The samples, for gradients that are weighed on their way back to the encoders."""
    decoded_KTBZ: Tensor
    """The same as the decoders see them: a gradient here is of the likelihoods only."""
    anchor: Tensor
    """As in `Scores`."""
