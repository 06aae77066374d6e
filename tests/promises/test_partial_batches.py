"""Promise 1: any pattern of present and missing modalities may stand in one batch, and on every rank another."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.objectives.terms import Terms
from pipeline.settings import Objective
from tests.pipeline.batches import assert_close, batch_of, gradients, patterns, score, small_model, some_modalities

KINDS = some_modalities(3)
MODEL = small_model(KINDS)
OBJECTIVE = Objective(k=2, cross=0.5, lambda_={"m1": 3.0})
ALL_PATTERNS = np.array(list(product([False, True], repeat=3)))


def terms_of(present: np.ndarray, numbers: list[int], rows: float, objective: Objective = OBJECTIVE) -> Terms:
    return score(MODEL, batch_of(KINDS, present, numbers=numbers), objective, rows, beta=0.7, step=5)


def check_against_rows_alone(present: np.ndarray) -> None:
    """Loss, gradients and metrics of a batch are the sums over its rows, each in a batch of its own."""
    rows = len(present)
    whole = terms_of(present, list(range(rows)), rows)
    alone = [terms_of(present[b : b + 1], [b], rows) for b in range(rows)]
    assert whole.loss.item() == pytest.approx(sum(terms.loss.item() for terms in alone), rel=1e-5, abs=1e-6)
    for name in whole.sums:
        assert float(whole.sums[name]) == pytest.approx(sum(float(t.sums[name]) for t in alone), rel=1e-5, abs=1e-5)
        assert whole.counts[name] == sum(terms.counts[name] for terms in alone)
    expected: dict[str, torch.Tensor] = {}
    for terms in alone:
        for name, gradient in gradients(MODEL, terms.loss).items():
            expected[name] = expected.get(name, torch.zeros(())) + gradient
    assert_close(gradients(MODEL, whole.loss), expected)


def test_all_patterns_in_one_batch() -> None:
    check_against_rows_alone(ALL_PATTERNS)
    check_against_rows_alone(ALL_PATTERNS[::-1])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(arrays(bool, st.tuples(st.integers(1, 6), st.just(3))))
def test_any_pattern(present: np.ndarray) -> None:
    check_against_rows_alone(present)


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_ranks_may_have_any_rows(cut: int) -> None:
    """The mean over two ranks is the whole batch, also where one has modalities that the other lacks altogether.

    The global batch has 8 rows: however many of them a rank happens to hold, 4 is its divisor.
    """
    for order in (range(8), [0, 1, 2, 3, 4, 5, 6, 7][::-1], [1, 2, 4, 0, 3, 5, 6, 7]):
        present, numbers = ALL_PATTERNS[list(order)], list(order)
        whole = terms_of(present, numbers, 8)
        ranks = [terms_of(present[:cut], numbers[:cut], 4), terms_of(present[cut:], numbers[cut:], 4)]
        assert whole.loss.item() == pytest.approx(sum(rank.loss.item() for rank in ranks) / 2, rel=1e-5)
        found = [gradients(MODEL, rank.loss) for rank in ranks]
        expected = gradients(MODEL, whole.loss)
        assert_close({name: (found[0][name] + found[1][name]) / 2 for name in expected}, expected)


@pytest.mark.parametrize("modality", [0, 1, 2])
def test_rows_that_lack_a_modality_do_not_move_its_encoder(modality: int) -> None:
    """More rows without modality m: the sum of its gradients stays, so the mean falls with the rows of the batch."""
    with_m = patterns(5, 3, 3)
    with_m[:3, modality] = True
    others = patterns(20, 3, 4)
    others[:, modality] = False
    few = gradients(MODEL, terms_of(with_m, list(range(5)), rows=1).loss)
    many = gradients(MODEL, terms_of(np.concatenate([with_m, others]), list(range(25)), rows=1).loss)
    for kind in ("encoders", "decoders"):
        assert_close(many, few, prefix=f"{kind}.m{modality}.")
    mean = gradients(MODEL, terms_of(np.concatenate([with_m, others]), list(range(25)), rows=25).loss)
    assert_close({n: 25 * g for n, g in mean.items()}, few, prefix=f"encoders.m{modality}.")
    assert any((few[n] != 0).any() for n in few if n.startswith(f"encoders.m{modality}."))


def test_one_label_among_eight_rows_weighs_an_eighth() -> None:
    """Each term averaged over its own present rows would give it eight times that."""
    present = np.zeros((8, 3), bool)
    present[:, 0] = True
    present[3, 1] = True
    among_eight = gradients(MODEL, terms_of(present, list(range(8)), rows=8).loss)
    alone = gradients(MODEL, terms_of(present[3:4], [3], rows=1).loss)
    for kind in ("encoders", "decoders"):
        assert_close({n: 8 * g for n, g in among_eight.items()}, alone, prefix=f"{kind}.m1.")


def test_a_missing_modality_is_not_a_modality_of_zeros() -> None:
    """A row without m1 has the posterior and the terms of a model that has never heard of m1."""
    pair = {name: KINDS[name] for name in ("m0", "m2")}
    smaller = small_model(pair)
    for kind in ("encoders", "decoders"):
        for name in pair:
            getattr(smaller, kind)[name].load_state_dict(getattr(MODEL, kind)[name].state_dict())
    batch = batch_of(KINDS, [[1, 0, 1]] * 4)
    one = score(MODEL, batch, Objective(), rows=4)
    values = {name: batch.values[name] for name in pair}
    two = replace(
        batch, values=values, rows_of={n: batch.rows_of[n] for n in pair}, present_BM=batch.present_BM[:, [0, 2]]
    )
    other = score(smaller, two, Objective(), rows=4)
    assert float(one.sums["elbo"]) == pytest.approx(float(other.sums["elbo"]), rel=1e-6)
    assert one.counts["elbo"] == other.counts["elbo"] == 4
    assert one.counts["recon.m1"] == float(one.sums["recon.m1"]) == 0
