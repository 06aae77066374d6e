"""What a sweep tries: a pure function of its description; what it cannot be is refused with a sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, loguniform

from infra.errors import UserError
from pipeline.config import override
from pipeline.recipes import SWEEPS, recipe, sweepable
from pipeline.recipes.sweep import READY, Draw, Sweep

RUN = recipe("digits")
WEIGHT, FRACTION = "objective.lambda.label", "pairing.fraction"


def swept(**changes: Any) -> Sweep:
    return replace(Sweep(RUN, {FRACTION: (0.1, 1.0)}, "val/elbo"), **changes)


def test_every_cell_of_the_grid_has_as_many_draws() -> None:
    sweep = swept(sample={WEIGHT: Draw("loguniform", (0.1, 100))}, trials=3)
    cells = [sweep.cell(number) for number in range(sweep.total)]
    assert [cell[FRACTION] for cell in cells] == [0.1, 1.0] * 3
    assert len({cell[WEIGHT] for cell in cells}) == 6
    assert cells == [sweep.cell(number) for number in range(6)]
    more = replace(sweep, trials=5)
    assert [more.cell(number) for number in range(6)] == cells, "trials asked for later change none that there are"
    other = replace(sweep, run=override(RUN, {"seed": 1}))
    assert other.cell(0)[WEIGHT] != cells[0][WEIGHT]


def test_draws_have_their_distribution() -> None:
    sweep = swept(
        grid={}, sample={WEIGHT: Draw("loguniform", (0.1, 100)), "objective.k": Draw("randint", (0, 3))}, trials=500
    )
    cells = [sweep.cell(number) for number in range(500)]
    assert kstest([cell[WEIGHT] for cell in cells], loguniform(0.1, 100).cdf).pvalue > 0.01
    values, counts = np.unique([cell["objective.k"] for cell in cells], return_counts=True)
    assert values.tolist() == [0, 1, 2]
    assert counts.min() > 130
    flat = Draw("uniform", (2, 4))
    assert [flat.at(share) for share in (0, 0.5)] == [2, 3]
    assert [Draw("choice", ("a", "b")).at(share) for share in (0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


REFUSED = [
    (lambda: swept(grid={}), "nothing to sweep"),
    (lambda: swept(grid={FRACTION: ()}), "nothing to sweep"),
    (lambda: swept(sample={FRACTION: Draw("uniform", (0, 1))}), "pairing.fraction: in the grid or drawn, not both"),
    (lambda: swept(trials=3), "that many draws of nothing"),
    (lambda: swept(grid={"objective.kk": (1,)}), "kk"),
    (lambda: swept(grid={FRACTION: (0.1, 7)}), "pairing.fraction is 7"),
    (lambda: swept(grid={"seed": range(10_001)}), "10,001 trials are more than 10,000"),
    (lambda: swept(search="optuna"), "chooses every key itself"),
    (lambda: swept(search="bohb", grid={}, sample={WEIGHT: Draw("uniform", (0, 1))}), "add --scheduler hyperband"),
    (lambda: swept(scheduler="pbt"), "changes keys in mid-run"),
    (lambda: swept(scheduler="pbt", grid={}, sample={FRACTION: Draw("uniform", (0, 1))}), "not pairing.fraction"),
    (lambda: swept(grid={WEIGHT: (1, 2)}, metric="val/objective"), "weighted by what this sweep varies"),
    (lambda: Draw("loguniform", (0, 1)), "a logarithm needs LOW above 0"),
    (lambda: Draw("uniform", (1,)), "takes LOW:HIGH"),
    (lambda: Draw("uniform", (2, 1)), "LOW the smaller one"),
    (lambda: Draw("uniform", ("a", 1)), "LOW and HIGH are numbers"),
    (lambda: Draw("randint", (0.5, 2)), "whole numbers"),
    (lambda: Draw("choice", ()), "one value or more"),
    (lambda: Draw("lognormal", (0, 1)), "did you mean 'loguniform'"),
    (lambda: READY["lambda"](recipe("celeba19")), "celeba19 has 18 weights: say with --grid or --sample which"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_no_sweep_can_be_is_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        make()


def test_ready_sweeps() -> None:
    run = recipe("mnist")
    assert {name: make(run).total for name, make in READY.items()} == {
        "supervision": 9, "k-effect": 4, "lambda": 3, "product": 108,
    }  # fmt: skip
    supervision = READY["supervision"](run)
    assert supervision.run.pairing.view == "split", "a fraction of what is declared would be nothing to vary"
    assert supervision.metric == run.train.best
    assert set(SWEEPS) <= set(sweepable())
