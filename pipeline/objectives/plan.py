"""Which terms the objective of a batch has: what every objective of a system comes down to.

Shape legend: T terms, B rows, M modalities, P pairs of terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from pipeline.noise import normal
from pipeline.posteriors import Posterior, Recipe
from pipeline.settings import Bound, Gradient

NO_PAIRS = np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Sampling:
    """How a bound is made of samples, where terms are the components of a mixture (`sampled.py`)."""

    samples: int
    """K, of each component."""
    bound: Bound
    gradient: Gradient


@dataclass(frozen=True)
class Plan:
    """The terms of a batch, known before any network runs.

    The objective of a row is Σ_t w_t (Σ_m λ_m ρ_tm log p(x_m|z_t) - β KL(q_t || p)) - β Σ_(t,s) v_ts KL(q_t || q_s), or
    with `sampling` a bound for the mixture Σ_t w_t q_t.
    """

    seen_TBM: np.ndarray
    """Boolean: the modalities that the posterior of term t sees of row b (A_tb)."""
    recipe: Recipe
    """The experts that make each posterior."""
    target_TBM: np.ndarray
    """ρ: weight with which term t reconstructs modality m of row b (0: not at all)."""
    weight_TB: np.ndarray
    """w: weight of term t for row b; 0 where the term has nothing to see or repeats another."""
    prior_TB: np.ndarray | None = None
    """Weight of KL(q_t || p) in the term, 1 where it is not given."""
    pairs_P2: np.ndarray = field(default_factory=lambda: NO_PAIRS)
    """Terms (t, s) whose KL(q_t || q_s) is part of the objective."""
    pair_PB: np.ndarray | None = None
    """v: its weight for each row."""
    sampling: Sampling | None = None
    joint_TB: np.ndarray | None = None
    """How much of each term goes into a row's joint ELBO, for the metrics; not given: term 0 is that ELBO."""

    @cached_property
    def wanted_TBM(self) -> np.ndarray:
        """Boolean: what is reconstructed (D_tb)."""
        wanted: np.ndarray = (self.target_TBM > 0) & (self.weight_TB > 0)[:, :, None]
        return wanted

    @property
    def decoded_TBM(self) -> np.ndarray:
        """Boolean: what has to be decoded; for the linear bound each modality from its own samples only."""
        return self.wanted_TBM & self.seen_TBM if self.sampling and self.sampling.bound == "linear" else self.wanted_TBM

    def noise(
        self, seed: int | Sequence[int], purpose: str, row_B: Tensor, latent: int, shared: bool = False
    ) -> Tensor:
        """Noise of every term, (T, B, Z), or of its K samples, (K · T, B, Z); with `shared` all terms have the same.

        Of several runs together `seed` is those of all (`normal`)."""
        samples, terms = self.sampling.samples if self.sampling else 1, len(self.weight_TB)
        drawn = normal(seed, purpose, row_B, samples * (1 if shared else terms), latent)
        return drawn.repeat_interleave(terms, 0) if shared else drawn


def mixture_plan(present_BM: np.ndarray, posterior: Posterior, sampling: Sampling | None = None) -> Plan:
    """Each component of the mixture that a row's posterior is reconstructs all that the row has."""
    seen, weight = posterior.components(present_BM)
    target = np.broadcast_to(present_BM[None], seen.shape).astype(np.float32)
    return Plan(seen, posterior.of(seen), target, weight, sampling=sampling, joint_TB=weight)


def joint_plan(present_BM: np.ndarray, posterior: Posterior) -> Plan:
    """The joint term alone: for evaluation. Rows of whose modalities the family has no posterior weigh nothing."""
    seen = present_BM[None]
    recipe = posterior.of(seen)
    return Plan(seen, recipe, seen.astype(np.float32), np.asarray(recipe.mask_TBE.any(2), np.float32))
