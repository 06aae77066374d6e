"""How q(z|A) is made of experts, for every subset A of the modalities.

An expert is a network that looks at one modality, or at several together. Shape legend: T terms, B rows, M modalities,
E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError

MOST_RAW = 80.0
"""Where exp(-raw) is still a normal number in float32."""
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

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        """The posterior of each subset; the prior where it is empty. `leader_T`: see `Substitutes`."""

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """What an expert adds to Σ μ T and to Σ T, from its network's mean and log-variance."""


class Products:
    """Products of one expert per modality, with the prior as another expert (MVAE) or without it (VAEVAE (a), VAE)."""

    def __init__(self, names: Sequence[str], prior: bool) -> None:
        self.experts: Sequence[Expert] = [Expert(name, (name,)) for name in names]
        self._prior = float(prior)

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        return Recipe(seen_TBM, np.full(seen_TBM.shape[:2], self._prior, np.float32))

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return _natural(mu, raw)


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


class Networks:
    """A network of its own for subsets of several modalities: for all of them (JMVAE) or every one (VAEVAE (b))."""

    def __init__(self, names: Sequence[str], every: bool) -> None:
        if every and len(names) > MANY:
            raise UserError(
                f"{len(names)} modalities need {2 ** len(names) - 1:,} networks, one for every subset; at most {MANY} "
                "modalities are built that way: choose a model.system that is a product of experts"
            )
        sizes = range(1, len(names) + 1) if every else sorted({1, len(names)})
        subsets = [subset for size in sizes for subset in combinations(range(len(names)), size)]
        self.experts: Sequence[Expert] = [
            Expert("+".join(names[i] for i in subset), tuple(names[i] for i in subset)) for subset in subsets
        ]
        self._subsets = np.array([[i in subset for i in range(len(names))] for subset in subsets])

    def of(self, seen_TBM: np.ndarray, leader_T: np.ndarray | None = None) -> Recipe:
        """Of a subset that has no network the prior."""
        mask = (seen_TBM[:, :, None, :] == self._subsets).all(3)
        return Recipe(mask, np.zeros(seen_TBM.shape[:2], np.float32))

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return _natural(mu, raw)


class Substitutes:
    """SVAE: products of experts in which one present modality, the leader, stands in for each missing one.

    q^i(z|A) ∝ Π_{j in A} q_j(z|x_j) Π_{k not in A} q_k*(z|x_i): M^2 networks, no prior expert (In Defense of
    Product-of-Experts, eq. 3-6 and appendix D).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        singles = [Expert(name, (name,)) for name in names]
        stands = [Expert(f"{name} for {other}", (name,)) for name in names for other in names if name != other]
        self.experts: Sequence[Expert] = singles + stands
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

    def natural(self, mu: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return _natural(mu, raw)


def _natural(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    precision = torch.exp(-logvar)
    return mu * precision, precision
