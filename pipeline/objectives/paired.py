"""Objectives of pairs: one bound of all that a row has (VAE, CVAE, BiVCCA, TELBO), or posteriors tied by KL terms.

Shape legend: T terms, B rows, M modalities, P pairs of terms.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from pipeline.objectives.plan import Plan, joint_plan
from pipeline.objectives.subsampled import targets
from pipeline.posteriors import Posterior
from pipeline.settings import Objective


def bivcca(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    """BiVCCA (Wang et al. 2016): each modality's own posterior reconstructs every present modality.

    μ (E_{q_1}[Σ log p] - KL(q_1 || p)) + (1 - μ) (the same with q_2); with more than two modalities, or where some are
    absent, the weights are shared out among those present: μ to the first modality, 1 - μ to the others together.
    """
    modalities = present_BM.shape[1]
    seen = np.eye(modalities, dtype=bool)[:, None, :] & present_BM[None]
    share = np.full(modalities, 1.0)
    if modalities > 1:
        share[0], share[1:] = objective.mu, (1 - objective.mu) / (modalities - 1)
    weight = present_BM.T * share[:, None]
    total = weight.sum(0)
    weight = (weight / np.where(total > 0, total, 1.0)).astype(np.float32)
    target = np.broadcast_to(present_BM[None], seen.shape).astype(np.float32)
    return Plan(seen, posterior.of(seen), target, weight, joint_TB=weight)


def jmvae(present_BM: np.ndarray, objective: Objective, posterior: Posterior, seed: int, step: int) -> Plan:
    """JMVAE-kl (Suzuki et al. 2017): the joint ELBO - α Σ_i KL(q(z|X) || q(z|x_i)), on complete rows only.

    α is 0.01 in MVAE section 5.1, and 1 in SVAE's eq. 2. Rows that lack a modality weigh nothing: the joint network
    takes all of them.
    """
    rows, modalities = present_BM.shape
    whole: np.ndarray = np.asarray(present_BM.all(1))
    subsets = np.concatenate([np.ones((1, modalities), bool), np.eye(modalities, dtype=bool)])
    seen = subsets[:, None, :] & whole[None, :, None]
    weight = np.zeros((len(subsets), rows), np.float32)
    weight[0] = whole
    target = np.zeros(seen.shape, np.float32)
    target[0] = seen[0]
    pairs = np.array([[0, single] for single in range(1, modalities + 1)])
    return Plan(
        seen, posterior.of(seen), target, weight, None, pairs, np.tile(objective.alpha * weight[0], (modalities, 1))
    )


def whole_rows(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    """The joint ELBO on complete rows only: TELBO's first stage (Vedantam et al. 2018)."""
    return joint_plan(present_BM & present_BM.all(1, keepdims=True), posterior)


def cvae(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    """CVAE (Sohn et al. 2015): E_q(z|X)[log p(x_1 | z, the others)] - KL(q(z|X) || p), on complete rows only.

    Its bound is one on log p(x_1 | the others), nothing else.
    """
    plan = whole_rows(present_BM, objective, posterior)
    return replace(plan, target_TBM=plan.target_TBM * (np.arange(present_BM.shape[1]) == 0))


def telbo_singles(present_BM: np.ndarray, objective: Objective, posterior: Posterior, seed: int, step: int) -> Plan:
    """TELBO's second stage: each modality's own ELBO, while the joint network and the decoders stay as they are.

    Rows need not be complete any more. No term is a row's joint ELBO.
    """
    seen = np.eye(present_BM.shape[1], dtype=bool)[:, None, :] & present_BM[None]
    weight = seen.any(2).astype(np.float32)
    return Plan(seen, posterior.of(seen), seen.astype(np.float32), weight, joint_TB=np.zeros_like(weight))


def tied(
    present_BM: np.ndarray,
    objective: Objective,
    posterior: Posterior,
    singles_of_pairs: bool,
    leaders: bool,
) -> Plan:
    """The losses of VAEVAE and SVAE (In Defense of Product-of-Experts, eq. 7-10; three modalities: D.28-D.31).

    For every subset S of what a row has, of two or more modalities: E_{q(z|S)}[Σ_{i in S} log p_i] - Σ KL(q(z|S) ||
    q(z|R)) over the subsets R of the row with one modality less. A pair that is not all modalities also has the prior
    among them (D.29). Single modalities: their ELBO; that of rows with several modalities only with `singles_of_pairs`
    (SVAE's loss; VAEVAE's has it for rows of one modality only). With `leaders` each subset that
    is not whole stands once for each of its members, who stands in for the missing ones: f(q) = Σ_i f(q^i), D.34.
    """
    rows, modalities = present_BM.shape
    chosen = [s for size in range(modalities, 0, -1) for s in combinations(range(modalities), size)]
    terms = [(s, i) for s in chosen for i in (s if leaders and len(s) < modalities else s[:1])]
    subsets = np.array([[m in s for m in range(modalities)] for s, _ in terms])
    there = (present_BM[None] | ~subsets[:, None]).all(2)  # (T, B): the row has all of the subset
    seen = subsets[:, None, :] & there[:, :, None]
    counts = present_BM.sum(1)
    weight, prior = there.astype(np.float32), np.zeros((len(terms), rows), np.float32)
    pairs, pair_weight = [], []
    for t, (subset, _) in enumerate(terms):
        if len(subset) == 1:
            prior[t] = 1.0
            if not singles_of_pairs:
                weight[t] *= counts == 1
            continue
        if len(subset) == 2 < modalities:
            prior[t] = 1.0
        for s, (other, _) in enumerate(terms):
            if len(other) == len(subset) - 1:
                pairs.append((t, s))
                pair_weight.append(weight[t] * there[s])
    recipe = posterior.of(seen, np.array([leader for _, leader in terms]))
    whole = (subsets[:, None] == present_BM[None]).all(2)  # the terms that see all that a row has
    joint = (whole / np.maximum(whole.sum(0), 1)).astype(np.float32)
    return Plan(
        seen, recipe, targets(seen, present_BM, objective), weight, prior, np.array(pairs).reshape(-1, 2),
        np.array(pair_weight, np.float32).reshape(-1, rows), joint_TB=joint,
    )  # fmt: skip
