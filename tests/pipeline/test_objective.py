"""The sub-sampled ELBO (MVAE eq. 5) against plain loops, and the terms that it consists of."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from modalities import Label
from pipeline.batch import Batch
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.plan import Plan, joint_plan
from pipeline.objectives.subsampled import random_subsets, subsampled
from pipeline.objectives.terms import beta_at, combine
from pipeline.posteriors import Products
from pipeline.settings import Objective
from tests.pipeline.batches import (
    assert_close,
    batch_of,
    gradients,
    patterns,
    score,
    small_model,
    some_modalities,
    value_of,
)

ROWS = 6


def plan(present_BM: np.ndarray, objective: Objective, seed: int, step: int) -> Plan:
    """The terms of MVAE's objective."""
    family = Products([f"m{number}" for number in range(present_BM.shape[1])], prior=True)
    return subsampled(present_BM, objective, family, seed, step)


def log_likelihood(modality: object, parameters: Tensor, value: Tensor) -> Tensor:
    """One row's, by its definition."""
    if isinstance(modality, Label):
        return parameters[value] - torch.logsumexp(parameters, 0)
    on = value.flatten().double()
    return (on * parameters.sigmoid().log() + (1 - on) * (1 - parameters.sigmoid()).log()).sum()


def naive(
    model: MultimodalVAE, batch: Batch, objective: Objective, subsets: list[list[int]], noise_TBZ: Tensor, beta: float,
    rows: float,
) -> tuple[Tensor, list[list[float]]]:  # fmt: skip
    """Equation 5 as it is written, in float64: (loss, each row's terms). One row, one term, one network at a time."""
    modalities = list(model.modalities.items())
    everything = list(range(len(modalities)))
    terms = [everything, *([i] for i in everything), *subsets]
    loss: Tensor = torch.zeros((), dtype=torch.float64)
    per_row: list[list[float]] = []
    for b in range(len(batch)):
        present = [i for i in everything if batch.present_BM[b, i]]
        per_row.append([])
        for t, subset in enumerate(terms):
            seen = [i for i in subset if i in present]
            single_again = 1 <= t <= len(modalities) and len(present) == 1
            if not seen or single_again:
                continue
            precision = torch.ones(model.latent, dtype=torch.float64)  # the prior's
            weighted = torch.zeros_like(precision)
            for i in seen:
                name, modality = modalities[i]
                value = torch.from_numpy(np.asarray(value_of(modality, int(batch.row_B[b]), i)))[None]
                mu, logvar = model.encoders[name](value)
                precision = precision + 1 / logvar[0].exp()
                weighted = weighted + mu[0] / logvar[0].exp()
            mean, variance = weighted / precision, 1 / precision
            kl = (0.5 * (variance + mean**2 - 1 - variance.log())).sum()
            z = mean + variance.sqrt() * noise_TBZ[t, b].double()
            elbo = -beta * kl
            for i in present:
                name, modality = modalities[i]
                weight = objective.lambda_.get(name, 1.0) * (1.0 if i in seen else objective.cross)
                if weight:
                    value = torch.from_numpy(np.asarray(value_of(modality, int(batch.row_B[b]), i)))
                    elbo = elbo + weight * log_likelihood(modality, model.decoders[name](z[None])[0], value)
            per_row[-1].append(elbo.item())
            loss = loss - float(batch.weight_B[b]) * elbo / rows
    return loss, per_row


@pytest.mark.parametrize("cross", [0.0, 0.5])
@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("modalities", [1, 2, 3, 6, 19])
def test_loss_and_gradients_are_those_of_plain_loops(modalities: int, k: int, cross: float) -> None:
    case = modalities + 10 * k + int(100 * cross)
    rng = np.random.default_rng(case)
    kinds = some_modalities(modalities)
    present = patterns(ROWS, modalities, case)
    present[0] = True  # one complete row, and one of a single modality
    present[1] = np.arange(modalities) == rng.integers(modalities)
    if case % 3 == 0 and modalities > 1:  # a modality that the whole batch lacks
        present[:, rng.integers(modalities)] = False
    weight = present.any(1) * (rng.random(ROWS) < 0.8)
    objective = Objective(
        k=k, cross=cross, lambda_={name: float(rng.uniform(0, 3)) for name in list(kinds)[::2]},
        shared_noise=bool(case % 2),
    )  # fmt: skip
    seed, step, beta = case, case + 1, float(rng.uniform(0.1, 2))
    model = small_model(kinds, seed)
    batch = batch_of(kinds, present, list(weight), numbers=list(rng.permutation(100)[:ROWS]))

    fast = score(model, batch, objective, rows=ROWS, beta=beta, seed=seed, step=step)
    fast_gradients = gradients(model, fast.loss)

    subsets = [list(np.flatnonzero(row)) for row in random_subsets(k, modalities, seed, step)]
    count = 1 + modalities + k
    noise = normal(seed, "train", batch.row_B, 1 if objective.shared_noise else count, model.latent)
    exact = model.double()
    loss, per_row = naive(exact, batch, objective, subsets, noise.expand(count, -1, -1), beta, ROWS)
    named = dict(exact.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    slow_gradients = {
        name: torch.zeros_like(named[name]) if gradient is None else gradient
        for name, gradient in zip(named, found, strict=True)
    }
    assert fast.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(fast_gradients, slow_gradients, 1e-5)
    assert fast.row_objective_B.tolist() == pytest.approx([sum(terms) for terms in per_row], rel=1e-5, abs=1e-5)
    assert not fast.row_objective_B.requires_grad


def test_the_terms_of_every_kind_of_row() -> None:
    present = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    terms = plan(present, Objective(k=4), 0, 0)
    subsets = random_subsets(4, 3, 0, 0)
    assert terms.seen_TBM.shape == terms.target_TBM.shape == (8, 4, 3)
    assert (terms.seen_TBM[0] == present).all()
    assert (terms.seen_TBM[1:4, 0] == np.eye(3)).all()
    assert (terms.seen_TBM[4:, 0] == subsets).all()
    assert (terms.seen_TBM[4:, 1] == subsets & present[1]).all()
    # joint + singles: 4 of the complete row, 3 of the pair, 1 of the single one, none of the empty one
    assert terms.weight_TB[:4].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    # random ones count again wherever something is left of them, whatever else they repeat
    assert (terms.weight_TB[4:] == (subsets[:, None] & present).any(2)).all()
    assert (terms.target_TBM == terms.seen_TBM).all()
    assert (terms.wanted_TBM == (terms.seen_TBM & (terms.weight_TB > 0)[:, :, None])).all()


def test_a_cross_term_reconstructs_what_it_did_not_see() -> None:
    present = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    with_cross, without = plan(present, Objective(k=4, cross=0.25), 0, 0), plan(present, Objective(k=4), 0, 0)
    assert (with_cross.seen_TBM == without.seen_TBM).all()
    assert (with_cross.weight_TB == without.weight_TB).all()
    expected = without.seen_TBM + 0.25 * (present & ~without.seen_TBM)
    assert (with_cross.target_TBM == expected).all()
    assert not with_cross.wanted_TBM[:, 3].any()
    assert with_cross.wanted_TBM[:, 2].sum() == with_cross.weight_TB[:, 2].sum()  # its one modality, once a term


def test_a_single_term_of_a_one_modality_row_counts_once() -> None:
    kinds = some_modalities(2)
    model = small_model(kinds)
    batch = batch_of(kinds, [[0, 1]])
    once = score(model, batch, Objective(), rows=1)
    joint = joint_plan(batch.present_BM, model.family)
    scores = model(batch, joint, normal(0, "train", batch.row_B, 1, model.latent))
    alone = combine(scores, joint, batch, dict.fromkeys(kinds, 1.0), 1.0, 1)
    assert once.loss.item() == pytest.approx(alone.loss.item(), rel=1e-6)


def test_repeated_subsets_count_again() -> None:
    """With one modality every subset is the same one: 1 + k terms, each with noise of its own."""
    kinds = some_modalities(1)
    model = small_model(kinds)
    batch = batch_of(kinds, [[1], [1]])
    shared = [score(model, batch, Objective(k=k, shared_noise=True), rows=2).loss.item() for k in (0, 1, 5)]
    assert shared[1:] == pytest.approx([2 * shared[0], 6 * shared[0]], rel=1e-5)
    own = score(model, batch, Objective(k=5), rows=2).loss.item()
    assert abs(own - shared[2]) > 1e-3 * abs(own)


def test_shared_noise_is_one_epsilon_for_all_terms_of_a_row() -> None:
    kinds = some_modalities(3)
    model = small_model(kinds)
    batch = batch_of(kinds, np.ones((4, 3), bool))
    own = score(model, batch, Objective(k=2), rows=4)
    shared = score(model, batch, Objective(k=2, shared_noise=True), rows=4)
    assert float(own.sums["elbo"]) == float(shared.sums["elbo"])  # the joint term has the same noise in both
    assert own.loss.item() != shared.loss.item()


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_subsets_are_uniform_over_the_non_empty_ones(modalities: int) -> None:
    steps, k = 1500, 2
    drawn = np.concatenate([random_subsets(k, modalities, 11, step) for step in range(steps)])
    codes = drawn @ (1 << np.arange(modalities))
    counts = np.bincount(codes, minlength=2**modalities)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3 if modalities > 1 else counts[1] == steps * k
    if modalities > 1:  # the two subsets of one step are drawn apart
        both = np.zeros((2**modalities, 2**modalities))
        np.add.at(both, (codes[::2], codes[1::2]), 1)
        assert stats.chi2_contingency(both[1:, 1:]).pvalue > 1e-3


def test_subsets_are_a_function_of_seed_and_step() -> None:
    """Every rank has other rows, and all of them the same subsets."""
    first = plan(np.ones((2, 5), bool), Objective(k=8), 3, 17)
    other = plan(patterns(7, 5, 0), Objective(k=8), 3, 17)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (first.seen_TBM[:, 0] == plan(np.ones((1, 5), bool), Objective(k=8), 3, 17).seen_TBM[:, 0]).all()
    assert (other.seen_TBM == (first.seen_TBM[:, :1] & patterns(7, 5, 0))).all()
    for seed, step in ((3, 18), (4, 17)):
        assert (first.seen_TBM != plan(np.ones((2, 5), bool), Objective(k=8), seed, step).seen_TBM).any()
    assert (random_subsets(3, 5, 0, 0) == random_subsets(8, 5, 0, 0)[:3]).all()


def test_no_pool_of_all_subsets() -> None:
    """2^64 subsets could not be listed in any time."""
    started = time.perf_counter()
    terms = plan(np.ones((4, 64), bool), Objective(k=50), 0, 0)
    assert time.perf_counter() - started < 60
    random = terms.seen_TBM[65:, 0]
    assert random.shape == (50, 64)
    assert len(np.unique(random, axis=0)) == 50
    assert 0.45 < random.mean() < 0.55


def test_beta_rises_linearly_and_stays() -> None:
    objective = Objective(beta=2.0, anneal=0.5)
    assert [beta_at(objective, step, 100) for step in (0, 10, 25, 50, 51, 99)] == [0, 0.4, 1, 2, 2, 2]
    assert [beta_at(Objective(beta=2.0), step, 100) for step in (0, 99)] == [2, 2]
    assert beta_at(Objective(anneal=1.0), 99, 100) == 0.99
    assert beta_at(Objective(anneal=1e-9), 1, 1) == 1


def test_metrics_are_unweighted_and_the_objective_is_not() -> None:
    """λ, β, k and cross move the loss and `objective`; `elbo`, `kl` and `recon` stay those of λ = β = 1."""
    kinds = some_modalities(3)
    model = small_model(kinds)
    batch = batch_of(kinds, patterns(8, 3, 1))
    plain = score(model, batch, Objective(), rows=8)
    weighted = score(model, batch, Objective(k=3, cross=1.0, lambda_={"m1": 50.0, "m0": 0.0}), rows=8, beta=0.1)
    assert plain.loss.item() != weighted.loss.item()
    assert float(weighted.sums.pop("objective")) == pytest.approx(-8 * weighted.loss.item(), rel=1e-6)
    assert float(plain.sums.pop("objective")) == pytest.approx(-8 * plain.loss.item(), rel=1e-6)
    assert set(plain.sums) == {"elbo", "kl", "recon.m0", "recon.m1", "recon.m2"}
    for name, value in plain.sums.items():
        assert float(weighted.sums[name]) == pytest.approx(float(value), rel=1e-5)
    recon = sum(float(plain.sums[f"recon.{name}"]) for name in kinds)
    assert float(plain.sums["elbo"]) == pytest.approx(recon - float(plain.sums["kl"]), rel=1e-5)
    assert plain.counts == weighted.counts
    assert plain.counts["elbo"] == batch.present_BM.any(1).sum()
    assert [plain.counts[f"recon.{name}"] for name in kinds] == list(batch.present_BM.sum(0))


def test_sums_and_counts_add_up_over_parts() -> None:
    kinds = some_modalities(3)
    model = small_model(kinds)
    present = patterns(9, 3, 2)
    weight = list(present.any(1) * np.array([1, 1, 0, 1, 1, 1, 0, 1, 1.0]))
    objective = Objective(k=2, lambda_={"m1": 7.0})
    whole = score(model, batch_of(kinds, present, weight), objective, rows=9)
    parts = [
        score(model, batch_of(kinds, present[rows], weight[rows], range(9)[rows]), objective, rows=9)
        for rows in (slice(0, 4), slice(4, 9))
    ]
    for name in whole.sums:
        assert float(whole.sums[name]) == pytest.approx(sum(float(part.sums[name]) for part in parts), rel=1e-5)
        assert whole.counts[name] == sum(part.counts[name] for part in parts)
        assert not whole.sums[name].requires_grad


def test_rows_of_weight_0_count_nothing() -> None:
    kinds = some_modalities(3)
    model = small_model(kinds)
    present = np.ones((5, 3), bool)
    some = score(model, batch_of(kinds, present, [1, 0, 1, 0, 0]), Objective(k=2), rows=5)
    two = score(model, batch_of(kinds, present[:2], numbers=[0, 2]), Objective(k=2), rows=5)
    assert some.loss.item() == pytest.approx(two.loss.item(), rel=1e-5)
    assert_close(gradients(model, some.loss), gradients(model, two.loss))
    assert some.counts == two.counts
    assert some.counts["elbo"] == some.counts["objective"] == 2
    for name in some.sums:
        assert float(some.sums[name]) == pytest.approx(float(two.sums[name]), rel=1e-5)


def test_a_row_of_weight_0_may_score_infinity() -> None:
    kinds = some_modalities(1)
    model = small_model(kinds)
    batch = batch_of(kinds, [[1], [1]], [1, 0])
    sane = score(model, batch, Objective(), rows=2)
    batch.values["m0"][1] = float("inf")
    broken = score(model, batch, Objective(), rows=2)
    assert not broken.row_objective_B[1].isfinite()
    assert torch.equal(broken.loss, sane.loss)
    assert torch.equal(broken.sums["elbo"], sane.sums["elbo"])
    assert broken.counts == sane.counts
