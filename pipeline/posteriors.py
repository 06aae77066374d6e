"""How q(z|A) is made of experts, for every subset A of the modalities.

An expert is a network that looks at one modality, or at several together. Shape legend: T terms, B rows, M modalities,
E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from pipeline.experts import Gaussian, Laplace, product

Distribution = Gaussian | Laplace
MOST_RAW = 80.0
"""Where exp(-raw) is still a normal number in float32."""
LEAST_LOG_SHARE = math.log(1e-6)
"""Of one dimension in the sum of a Laplace distribution's scales: beyond it |z - mu| / scale is 0 / 0 in float32."""
MANY = 8
"""Modalities beyond which a network for every subset is refused: there are 2^M - 1 of them."""


@dataclass(frozen=True)
class Expert:
    """A network q_e(z | its inputs), by name."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """What makes each posterior: q_tb ∝ p(z)^c Π_{e in mask} q_e."""

    mask_TBE: np.ndarray
    """Boolean: which experts take part."""
    prior_TB: np.ndarray
    """c: how much of the prior takes part; 1 makes it an expert."""


class Posterior(Protocol):
    """A family of posteriors."""

    experts: Sequence[Expert]
    conditions: Sequence[str]
    """Modalities that are given, never generated: the decoders of the others see them beside z."""
    laplace: bool
    """Whether the prior is a Laplace distribution with a scale that is learnt, instead of N(0, I)."""

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        """The posterior of each subset; the prior where it is empty. `leader_T`: see `Substitutes`."""

    def components(self, present_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the posterior of all that a row has is a mixture of: (seen_TBM, weight_TB); mostly one term."""

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """What an expert adds to the sums of which `fuse` makes posteriors, from what its network gives."""

    def fuse(self, weighted_EBZ: Tensor, precision_EBZ: Tensor, mask_TBE: Tensor, prior_TB: Tensor) -> Distribution:
        """The posteriors of a recipe, of what `natural` gave: (T, B, Z)."""


class Family:
    """What most families share: Gaussian experts, added up as products; one posterior per subset; nothing given."""

    experts: Sequence[Expert]
    conditions: Sequence[str] = ()
    laplace = False

    def components(self, present_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return present_BM[None], np.ones((1, len(present_BM)), np.float32)

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """μ T and T = 1 / V."""
        precision = torch.exp(-raw)
        return mu * precision, precision

    def fuse(self, weighted_EBZ: Tensor, precision_EBZ: Tensor, mask_TBE: Tensor, prior_TB: Tensor) -> Distribution:
        return product(weighted_EBZ, precision_EBZ, mask_TBE, prior_TB)


class Products(Family):
    """Products of one expert per modality, with the prior as another expert (MVAE) or without it (VAEVAE (a), VAE)."""

    def __init__(self, names: Sequence[str], prior: bool) -> None:
        self.experts = [Expert(name, (name,)) for name in names]
        self._prior = float(prior)

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        return Recipe(seen_TBM, np.full(seen_TBM.shape[:2], self._prior, np.float32))


class Mixtures(Products):
    """Equal mixtures: of each modality's own Gaussian (BiVCCA, MVAE-MoE), or of the products of all subsets (MoPoE).

    The products are without a prior expert (Sutter et al. 2021).
    """

    def __init__(self, names: Sequence[str], subsets: bool = False) -> None:
        super().__init__(names, prior=False)
        if subsets:
            _refuse_many(names)
        sizes = range(1, len(names) + 1) if subsets else [1]
        chosen = [subset for size in sizes for subset in combinations(range(len(names)), size)]
        self._subsets = np.array([[i in subset for i in range(len(names))] for subset in chosen])

    def components(self, present_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = ~(self._subsets[:, None] & ~present_BM[None]).any(2)
        weight = there / np.maximum(there.sum(0), 1)
        return self._subsets[:, None] & there[:, :, None], weight.astype(np.float32)


class LaplaceMixtures(Mixtures):
    """MMVAE: equal mixtures of Laplace distributions, whose scales sum to Z, the latent dimensions (section 4.1)."""

    laplace = True

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """μ and the logarithm of Z softmax(raw)."""
        return mu, log_scale(raw)

    def fuse(self, weighted_EBZ: Tensor, precision_EBZ: Tensor, mask_TBE: Tensor, prior_TB: Tensor) -> Distribution:
        """Of at most one expert each; where there is none, around 0 with scale 1."""
        mask = mask_TBE.to(weighted_EBZ.dtype)
        return Laplace(
            torch.einsum("tbe,ebz->tbz", mask, weighted_EBZ), torch.einsum("tbe,ebz->tbz", mask, precision_EBZ)
        )


def log_scale(raw: Tensor) -> Tensor:
    """log(Z softmax(raw)): the scales of the Z latent dimensions sum to Z (MMVAE section 4.1)."""
    return torch.log_softmax(raw, -1).clamp_min(LEAST_LOG_SHARE) + math.log(raw.shape[-1])


class Quotients(Products):
    """MVAE-Q: the product of the experts, divided by the prior once less than there are of them (MVAE eq. 3).

    V_i < N/(N-1) keeps every subset's quotient proper (the paper's text turns the inequality round). Of n experts
    Σ T_i - (n - 1) = (1 - n/N) + Σ (T_i - (N-1)/N), in which nothing is subtracted that could cancel.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names, prior=False)

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        return Recipe(seen_TBM, (1 - seen_TBM.sum(2) / seen_TBM.shape[2]).astype(np.float32))

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """With V = N/(N-1) · sigmoid(raw): T = (N-1)/N + (N-1)/N · exp(-raw), of which the second part is summed."""
        count = len(self.experts)
        least = (count - 1) / count
        excess = (least or 1.0) * torch.exp(-raw.clamp_max(MOST_RAW))
        return mu * (least + excess), excess


class Networks(Family):
    """A network of its own for subsets of several modalities: for all of them (JMVAE) or every one (VAEVAE (b))."""

    def __init__(self, names: Sequence[str], every: bool) -> None:
        if every:
            _refuse_many(names)
        sizes = range(1, len(names) + 1) if every else sorted({1, len(names)})
        subsets = [subset for size in sizes for subset in combinations(range(len(names)), size)]
        self.experts = [
            Expert("+".join(names[i] for i in subset), tuple(names[i] for i in subset)) for subset in subsets
        ]
        self._subsets = np.array([[i in subset for i in range(len(names))] for subset in subsets])

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        """Of a subset that has no network the prior."""
        mask = (seen_TBM[:, :, None, :] == self._subsets).all(3)
        return Recipe(mask, np.zeros(seen_TBM.shape[:2], np.float32))


class Conditional(Family):
    """CVAE: one network of all modalities, of which the first is generated given the others (Sohn et al. 2015).

    Where one of them is not seen, the posterior is the prior N(0, I), from which the first modality is generated.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.experts = [Expert("+".join(names), tuple(names))]
        self.conditions = tuple(names[1:])

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        return Recipe(np.asarray(seen_TBM.all(2, keepdims=True)), np.zeros(seen_TBM.shape[:2], np.float32))


class Substitutes(Family):
    """SVAE: products of experts in which one present modality, the leader, stands in for each missing one.

    q^i(z|A) ∝ Π_{j in A} q_j(z|x_j) Π_{k not in A} q_k*(z|x_i): M^2 networks, no prior expert (In Defense of
    Product-of-Experts, eq. 3-6 and appendix D).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        singles = [Expert(name, (name,)) for name in names]
        stands = [Expert(f"{name} for {other}", (name,)) for name in names for other in names if name != other]
        self.experts = singles + stands
        self._place = {
            (i, j): len(names) + i * (len(names) - 1) + j - (j > i)
            for i in range(len(names))
            for j in range(len(names))
            if i != j
        }

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        """`leader_T`: the modality that stands in; where none is given (-1), or it is not seen, the first one seen."""
        terms, rows, _ = seen_TBM.shape
        first = seen_TBM.argmax(2)
        leader = first if leader_T is None else np.broadcast_to(leader_T[:, None], (terms, rows))
        seen_itself = np.take_along_axis(seen_TBM, np.maximum(leader, 0)[:, :, None], 2)[:, :, 0] & (leader >= 0)
        leader = np.where(seen_itself, leader, first)
        mask = np.zeros((terms, rows, len(self.experts)), bool)
        mask[:, :, : self._count] = seen_TBM
        some = seen_TBM.any(2)
        for (i, j), place in self._place.items():
            mask[:, :, place] = some & (leader == i) & ~seen_TBM[:, :, j]
        return Recipe(mask, np.zeros((terms, rows), np.float32))


def generates(family: Posterior, names: Sequence[str], wanted: str, given: frozenset[str]) -> bool:
    """Whether a family generates a modality given others: all its conditions, or what it has a posterior for."""
    if family.conditions:
        return wanted not in family.conditions and frozenset(family.conditions) <= given
    seen = np.array([[[name in given for name in names]]])
    return bool(family.of(family.components(seen[0])[0]).mask_TBE.any())


def _refuse_many(names: Sequence[str]) -> None:
    if len(names) > MANY:
        raise UserError(
            f"{len(names)} modalities have {2 ** len(names) - 1:,} subsets, and each would be a network or a term of "
            f"its own; at most {MANY} modalities are built that way: choose a model.system of one expert per modality"
        )
