"""Promise 5: every encoder and every decoder runs once per step, and every parameter takes part."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.batch import Batch, empty_batch
from pipeline.objectives.plan import Plan, joint_plan
from pipeline.settings import Objective
from tests.pipeline.batches import (
    LATENT,
    assert_close,
    batch_of,
    counted,
    gradients,
    networks,
    patterns,
    score,
    small_model,
    some_modalities,
)

MODALITIES = some_modalities(3)


@pytest.mark.parametrize("k", [0, 1, 50])
@pytest.mark.parametrize("cross", [0.0, 1.0])
@pytest.mark.parametrize(
    "present", [patterns(9, 3, 0), patterns(1, 3, 1), [[1, 0, 0]] * 4, [[1, 0, 1], [0, 0, 1]], [[0, 0, 0]] * 2],
    ids=["any", "one row", "one modality", "without the second", "nothing"],
)  # fmt: skip
def test_each_network_runs_once(k: int, cross: float, present: list[list[int]]) -> None:
    model = small_model(MODALITIES)
    runs = counted(model)
    terms = score(model, batch_of(MODALITIES, present), Objective(k=k, cross=cross), rows=len(present))
    assert runs == Counter(networks(model).keys())
    found = gradients(model, terms.loss)  # fails for a parameter that takes no part
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_encoders_see_only_rows_that_are_present() -> None:
    model = small_model(MODALITIES)
    sizes: dict[str, int] = {}
    for name, network in networks(model).items():
        network.register_forward_pre_hook(lambda _, inputs, name=name: sizes.update({name: len(inputs[0])}))
    present = [[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    score(model, batch_of(MODALITIES, present), Objective(k=0), rows=4)
    # The first row has a joint and two single terms, the next two one term each, and nothing is decoded twice.
    assert sizes == {
        "encoders.m0": 3, "encoders.m1": 1, "encoders.m2": 1,
        "decoders.m0": 2 + 1 + 1, "decoders.m1": 2, "decoders.m2": 1,
    }  # fmt: skip


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_an_absent_modality_has_zero_gradients(absent: int) -> None:
    present = patterns(6, 3, 4)
    present[:, absent] = False
    model = small_model(MODALITIES)
    found = gradients(model, score(model, batch_of(MODALITIES, present), Objective(k=3, cross=1.0), rows=6).loss)
    for name, gradient in found.items():
        idle = name.split(".")[1] == f"m{absent}"
        assert bool((gradient == 0).all()) == idle, name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_an_idle_network_says_counts_nothing(bad: float) -> None:
    """Zero times NaN is NaN: the zero row that an idle network sees must not reach loss or gradients."""
    present = [[1, 0, 1], [1, 0, 0]]
    model = small_model(MODALITIES)
    batch = batch_of(MODALITIES, present)
    sane = score(model, batch, Objective(k=2), rows=2)
    expected = gradients(model, sane.loss)
    model.encoders["m1"].register_forward_hook(lambda _, __, output: tuple(part + bad for part in output))
    model.decoders["m1"].register_forward_hook(lambda _, __, output: output + bad)
    broken = score(model, batch, Objective(k=2), rows=2)
    assert torch.equal(broken.loss, sane.loss)
    assert {name: float(value) for name, value in broken.sums.items()} == {n: float(v) for n, v in sane.sums.items()}
    found = gradients(model, broken.loss)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert not score(model, batch_of(MODALITIES, [[1, 1, 1]]), Objective(), rows=1).loss.isfinite()  # it is not hidden


def test_a_batch_of_nothing_is_a_loss_of_zero() -> None:
    model = small_model(MODALITIES)
    nothing = joint_plan(np.zeros((1, 3), bool), model.family)
    scores = model(empty_batch(MODALITIES, torch.device("cpu")), nothing, torch.zeros(1, 1, LATENT))
    for batch in (empty_batch(MODALITIES, torch.device("cpu")), batch_of(MODALITIES, [[0, 0, 0]] * 3)):
        terms = score(model, batch, Objective(k=1), rows=4)
        assert terms.loss.item() == 0
        assert all((gradient == 0).all() for gradient in gradients(model, terms.loss).values())
        assert all(count == 0 for count in terms.counts.values())
    assert all((gradient == 0).all() for gradient in gradients(model, scores.anchor).values())


def test_scores_are_zero_where_nothing_is_asked() -> None:
    model = small_model(MODALITIES)
    batch = batch_of(MODALITIES, patterns(6, 3, 2))
    wanted = np.random.default_rng(0).random((4, 6, 3)) < 0.5
    wanted &= batch.present_BM
    seen = wanted[::-1].copy()
    plan = Plan(seen, model.family.of(seen), wanted.astype(np.float32), np.ones((4, 6), np.float32))
    scores = model(batch, plan, torch.randn(4, 6, LATENT))
    assert scores.log_likelihood_TBM.shape == (4, 6, 3)
    assert scores.kl_TB.shape == (4, 6)
    assert ((scores.log_likelihood_TBM != 0).numpy() == wanted).all()
    assert ((scores.kl_TB != 0).numpy() == seen.any(2)).all()
    assert scores.log_likelihood_TBM.dtype == scores.kl_TB.dtype == torch.float32


def test_posterior_and_only() -> None:
    """q(z | what is shown) is that of a batch which never had the rest."""
    model = small_model(MODALITIES)
    present = patterns(7, 3, 3)
    batch = batch_of(MODALITIES, present)
    for names in (["m0"], ["m1", "m2"], ["m0", "m1", "m2"], []):
        shown = np.array([name in names for name in MODALITIES])
        part = batch.only(frozenset(names))
        theirs = batch_of(MODALITIES, present & shown)
        assert_same(part, theirs)
        ours, other = model.posterior(part), model.posterior(theirs)
        assert ours.mu.shape == (7, LATENT)
        assert torch.equal(ours.mu, other.mu)
        assert torch.equal(ours.logvar, other.logvar)
        prior = ~(present & shown).any(1)
        assert (ours.mu[prior] == 0).all()
        assert (ours.logvar[prior] == 0).all()
    assert_same(batch, batch_of(MODALITIES, present))  # the batch itself is as it was


def assert_same(one: Batch, other: Batch) -> None:
    assert (one.present_BM == other.present_BM).all()
    for name in one.values:
        assert (one.rows_of[name] == other.rows_of[name]).all()
        if len(one.rows_of[name]):
            assert torch.equal(one.values[name], other.values[name])
        assert one.values[name].shape == other.values[name].shape


def test_decode_and_forward_agree() -> None:
    model = small_model(MODALITIES)
    batch = batch_of(MODALITIES, np.ones((4, 3), bool))
    plan = joint_plan(batch.present_BM, model.family)
    scores = model(batch, plan, torch.zeros(1, 4, LATENT))
    z = model.posterior(batch).mu
    for column, (name, modality) in enumerate(MODALITIES.items()):
        score_B = modality.log_likelihood(model.decode(name, z, batch), batch.values[name])
        torch.testing.assert_close(scores.log_likelihood_TBM[0, :, column], score_B)


def test_networks_in_bf16_are_scored_in_float32() -> None:
    model = small_model(MODALITIES)
    batch = batch_of(MODALITIES, patterns(8, 3, 5))
    full = score(model, batch, Objective(k=2), rows=8)
    half = score(model.to(torch.bfloat16), batch, Objective(k=2), rows=8)
    assert half.loss.dtype == half.row_objective_B.dtype == torch.float32
    assert half.loss.item() == pytest.approx(full.loss.item(), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, half.loss).values())


def test_rows_in_another_order_are_the_same_rows() -> None:
    model = small_model(MODALITIES)
    present, order = patterns(8, 3, 6), np.random.default_rng(0).permutation(8)
    one = score(model, batch_of(MODALITIES, present), Objective(k=2, cross=0.3), rows=8)
    other = score(model, batch_of(MODALITIES, present[order], numbers=list(order)), Objective(k=2, cross=0.3), rows=8)
    torch.testing.assert_close(other.row_objective_B, one.row_objective_B[torch.from_numpy(order)])
    assert_close(gradients(model, other.loss), gradients(model, one.loss))
