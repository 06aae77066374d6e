"""The objectives of the papers as plain loops: one row, one term and one network at a time, in float64.

Nothing here knows how the project plans terms or makes posteriors; densities and divergences are torch's own. A term's
noise has the term's number: the joint one, then smaller subsets in the order of combinations, each leader in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from modalities import Label, Modality
from pipeline.batch import Batch
from pipeline.model import MultimodalVAE
from pipeline.settings import Objective
from tests.pipeline.batches import value_of

TIED = {
    2: [(0, 1), (0,), (1,)],
    3: [(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)],
}
"""The subsets of the losses of VAEVAE and SVAE: equations 7-10 for two modalities, D.28-D.31 for three."""


def product_of(experts: list[Normal], priors: int) -> Normal:
    """Lemmas B.1 and C.1 of MVAE: the experts times N(0, 1) to the power of `priors`."""
    precision, weighted = float(priors), torch.zeros(())
    for expert in experts:
        precision = precision + 1 / expert.variance
        weighted = weighted + expert.mean / expert.variance
    return Normal(weighted / precision, (1 / precision).sqrt(), validate_args=False)


def log_likelihood(modality: Modality, parameters: Tensor, value: Tensor) -> Tensor:
    """log p(x_m | z) of one row; grey levels by the cross-entropy that MVAE calls Bernoulli."""
    if isinstance(modality, Label):
        return Categorical(logits=parameters).log_prob(value)
    return Bernoulli(logits=parameters, validate_args=False).log_prob(value.flatten().double()).sum()


def one_row(value: Tensor) -> Tensor:
    """A batch of one, as feature layers take it."""
    return value.double().flatten()[None] if value.is_floating_point() else value[None]


@dataclass
class Row:
    """One row under one system."""

    system: str
    model: MultimodalVAE
    values: dict[int, Tensor]
    """By modality, of those that are present."""
    noise_TZ: Tensor
    objective: Objective
    beta: float
    subsets: list[tuple[int, ...]]
    """The random ones of MVAE's objective."""

    def __post_init__(self) -> None:
        self.names = list(self.model.modalities)
        self.count = len(self.names)
        self.present = tuple(self.values)

    def network(self, name: str, *inputs: int) -> Normal:
        """q_name(z | these modalities)."""
        mu, raw = self.model.encoders[name](*(self.values[m][None] for m in inputs))
        variance = raw[0].exp()
        if self.system == "mvae-q" and self.count > 1:  # MVAE supplement C: V = N / (N - 1) sigm(V)
            variance = self.count / (self.count - 1) * raw[0].sigmoid()
        return Normal(mu[0], variance.sqrt(), validate_args=False)

    def q(self, subset: tuple[int, ...], leader: int = -1) -> Normal:
        """q(z | subset)."""
        if self.system in (
            "jmvae",
            "telbo",
            "telbo, later",
            "cvae",
            "vaevae-b",
            "vaevae-star",
        ):  # VAEVAE (b): a network for each
            return self.network("+".join(self.names[m] for m in subset), *subset)
        experts = [self.network(self.names[m], m) for m in subset]
        if self.system in ("svae", "svae-star"):  # SVAE eq. 3-5, D.32-D.36
            missing = [m for m in range(self.count) if m not in subset]
            experts += [self.network(f"{self.names[leader]} for {self.names[m]}", leader) for m in missing]
        priors = {"mvae": 1, "mvae-q": 1 - len(subset)}  # MVAE eq. 4 and 3
        return product_of(experts, priors.get(self.system, 0))

    def recon(self, q: Normal, term: int, targets: tuple[int, ...]) -> Tensor:
        """E_q Σ λ_m log p(x_m | z) by one sample; what is present but no target weighs `cross`."""
        z = q.mean + q.stddev * self.noise_TZ[term]
        total = torch.zeros((), dtype=torch.float64)
        for m in self.present:
            name = self.names[m]
            weight = self.objective.lambda_.get(name, 1.0) * (1.0 if m in targets else self.objective.cross)
            parameters = self.model.decoders[name](z[None])[0]
            total = total + weight * log_likelihood(self.model.modalities[name], parameters, self.values[m])
        return total

    def kl(self, q: Normal, other: Normal | None = None) -> Tensor:
        """β KL(q || other), or the prior."""
        standard = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)
        return self.beta * kl_divergence(q, other or standard).sum()

    def elbo(self, subset: tuple[int, ...], term: int) -> Tensor:
        """MVAE eq. 2."""
        q = self.q(subset)
        return self.recon(q, term, subset) - self.kl(q)

    def vae(self) -> Tensor:
        """SVAE eq. 1."""
        return self.elbo((0,), 0)

    def bivcca(self) -> Tensor:
        """μ (E_q1[log p_1 + log p_2] - KL(q_1 || p)) + (1 - μ) (the same with q_2).

        The papers have two modalities, both present. Beyond that the weights are shared out as `bivcca` says.
        """
        mu = self.objective.mu
        shares = {m: mu if m == 0 else (1 - mu) / (self.count - 1) for m in self.present}
        total = torch.zeros((), dtype=torch.float64)
        for m, share in shares.items():
            q = self.q((m,))
            total = total + share / sum(shares.values()) * (self.recon(q, m, self.present) - self.kl(q))
        return total

    def jmvae(self) -> Tensor:
        """SVAE eq. 2, with the weight α of MVAE section 5.1; rows that lack something cannot be learnt from."""
        if not self.whole():
            return torch.zeros((), dtype=torch.float64)
        total = self.elbo(self.present, 0)
        for m in self.present:
            total = total - self.objective.alpha * self.kl(self.q(self.present), self.q((m,)))
        return total

    def whole(self) -> bool:
        return len(self.present) == self.count

    def telbo(self) -> Tensor:
        """Vedantam et al. 2018: first the joint ELBO alone."""
        return self.elbo(self.present, 0) if self.whole() else torch.zeros((), dtype=torch.float64)

    def telbo_later(self) -> Tensor:
        """Then each modality's own; what stays as it is, is up to the optimizer."""
        return torch.stack([self.elbo((m,), m) for m in self.present]).sum()

    def cvae(self) -> Tensor:
        """Sohn et al. 2015: E_q(z|x_1, x_2) log p(x_1 | z, x_2) - KL(q || N(0, I))."""
        if not self.whole():
            return torch.zeros((), dtype=torch.float64)
        q = self.q(self.present)
        given = [self.model.context[self.names[m]](one_row(self.values[m])) for m in self.present[1:]]
        seen = torch.cat([(q.mean + q.stddev * self.noise_TZ[0])[None], *given], 1)
        first = self.names[0]
        parameters = self.model.decoders[first](seen)[0]
        likely = log_likelihood(self.model.modalities[first], parameters, self.values[0])
        return self.objective.lambda_.get(first, 1.0) * likely - self.kl(q)

    def mopoe(self) -> Tensor:
        """Sutter et al. 2021: the mean over the subsets of E_q_S log p(x | z) - KL(q_S || p)."""
        every = [s for size in range(1, self.count + 1) for s in combinations(range(self.count), size)]
        parts = [
            self.recon(self.q(subset), number, self.present) - self.kl(self.q(subset))
            for number, subset in enumerate(every)
            if set(subset) <= set(self.present)
        ]
        return torch.stack(parts).mean()

    def mvae(self) -> Tensor:
        """MVAE eq. 5; the joint and the single term of a row with one modality are one."""
        total = self.bound(self.present, 0)
        for m in self.present if len(self.present) > 1 else ():
            total = total + self.bound((m,), 1 + m)
        for number, subset in enumerate(self.subsets):
            seen = tuple(m for m in subset if m in self.present)
            if seen:
                total = total + self.bound(seen, 1 + self.count + number)
        return total

    def bound(self, subset: tuple[int, ...], term: int) -> Tensor:
        """The ELBO of a product, or one of a mixture (MMVAE appendix B and E).

        That of a mixture is looser than the paper's: it has Σ KL(q_m || p) / M for KL(Σ q_m / M || p). A member has the
        same noise in every term.
        """
        if self.system != "mvae-moe":
            return self.elbo(subset, term)
        members = [self.q((m,)) for m in subset]
        parts = [self.recon(q, m, subset) - self.kl(q) for m, q in zip(subset, members, strict=True)]
        return torch.stack(parts).mean()

    def tied(self) -> Tensor:
        """SVAE eq. 7-10 (two modalities), D.28-D.31 (three, each pair once); pairs by each leader (below D.37).

        VAEVAE has no ELBO of single modalities for rows that have more (bold in algorithm 1).
        """
        terms, total = self.led(), torch.zeros((), dtype=torch.float64)
        for number, (subset, leader) in enumerate(terms):
            if not set(subset) <= set(self.present):
                continue
            if len(subset) == 1:
                if self.system in ("svae", "vaevae-star") or len(self.present) == 1:
                    q = self.q(subset, leader)
                    total = total + self.recon(q, number, subset) - self.kl(q)
                continue
            q = self.q(subset, leader)
            total = total + self.recon(q, number, subset)
            if len(subset) == 2 and self.count == 3:  # D.29: - KL(q(z|x_i, x_j) || q(z))
                total = total - self.kl(q)
            for other, its_leader in terms:
                if len(other) == len(subset) - 1 and set(other) <= set(self.present):
                    total = total - self.kl(q, self.q(other, its_leader))
        return total

    def led(self) -> list[tuple[tuple[int, ...], int]]:
        """The subsets of `TIED`, those of SVAE that lack something once for each leader."""
        every = self.system in ("svae", "svae-star")
        return [
            (subset, leader)
            for subset in TIED[self.count]
            for leader in (subset if every and len(subset) < self.count else subset[:1])
        ]

    def joint(self) -> float:
        """The ELBO of all that the row has, λ = β = 1; the mean over the leaders where there are several."""
        row = replace(self, objective=replace(self.objective, lambda_={}, cross=0.0), beta=1.0)
        own = {"bivcca": row.bivcca, "cvae": row.cvae, "mopoe": row.mopoe}
        if self.system in own:
            return own[self.system]().item()
        if self.system in ("vae", "jmvae", "telbo") or self.system.startswith("mvae"):
            return row.bound(self.present, 0).item()
        led = [(number, leader) for number, (subset, leader) in enumerate(self.led()) if subset == self.present]
        posteriors = [(number, row.q(self.present, leader)) for number, leader in led]
        return float(np.mean([(row.recon(q, number, self.present) - row.kl(q)).item() for number, q in posteriors]))

    def score(self) -> Tensor:
        """The row's objective."""
        if not self.present:
            return torch.zeros((), dtype=torch.float64)
        own = {
            "vae": self.vae, "bivcca": self.bivcca, "jmvae": self.jmvae, "cvae": self.cvae, "mopoe": self.mopoe,
            "telbo": self.telbo, "telbo, later": self.telbo_later,
        }  # fmt: skip
        return own.get(self.system, self.mvae if self.system.startswith("mvae") else self.tied)()


def rows_of(
    system: str, model: MultimodalVAE, batch: Batch, objective: Objective, subsets: list[tuple[int, ...]],
    noise_TBZ: Tensor, beta: float,
) -> list[Row]:  # fmt: skip
    """The rows of a batch, for a model in float64."""
    rows = []
    for b in range(len(batch)):
        values = {
            m: torch.from_numpy(np.asarray(value_of(modality, int(batch.row_B[b]), m)))
            for m, modality in enumerate(model.modalities.values())
            if batch.present_BM[b, m]
        }
        rows.append(Row(system, model, values, noise_TBZ[:, b].double(), objective, beta, subsets))
    return rows


def naive(rows: list[Row], weight_B: Tensor, divisor: float) -> tuple[Tensor, list[float]]:
    """(loss, objective of each row); a parameter that no term needs has a gradient of zero."""
    loss = torch.stack([0.0 * parameter.sum() for parameter in rows[0].model.parameters()]).sum()
    scores = []
    for row, weight in zip(rows, weight_B.tolist(), strict=True):
        score = row.score()
        scores.append(score.item())
        loss = loss - weight * score / divisor
    return loss, scores
