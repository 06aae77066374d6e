"""Networks that are alike run as one, and nobody can tell: same weights, same losses, same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modalities import AnyModality, Attributes, Image, Label
from pipeline import stacking
from pipeline.batch import Batch
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import SYSTEMS
from pipeline.settings import Objective
from pipeline.stacking import FEWEST, Bank, Ragged
from tests.pipeline.batches import LATENT, assert_close, batch_of, gradients, patterns, score

KINDS: dict[str, AnyModality] = {
    "picture": Image(2, 3, levels=16, hidden=(7, 6)),
    **{f"class {i}": Label(3, hidden=(5, 6)) for i in range(4)},
    "other": Image(2, 3, levels=16, hidden=(7, 6)),
    **{f"class {i}": Label(3, hidden=(5, 6)) for i in range(4, 6)},
}
ROWS = 9


def built(system: str, monkeypatch: pytest.MonkeyPatch, apart: bool) -> MultimodalVAE:
    """The same weights in any case."""
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if apart:
            patch.setattr(stacking, "FEWEST", 99)
        return MultimodalVAE(KINDS, LATENT, SYSTEMS[system].posterior(list(KINDS)))


def some_batch(case: str) -> Batch:
    present = patterns(ROWS, len(KINDS), 4)
    columns = list(KINDS)
    if case == "whole":
        present[:] = True
    elif case == "one of them absent":
        present[:, columns.index("class 2")] = False
    elif case == "all of them absent":
        present[:, [column for column, name in enumerate(columns) if name.startswith("class")]] = False
    elif case == "nothing":
        present[:] = False
    return batch_of(KINDS, present)


def rows_each(model: MultimodalVAE, rows: int) -> dict[str, int]:
    return dict.fromkeys(model.encoders, rows)


@pytest.mark.parametrize("in_cache", [0, stacking.IN_CACHE])
@pytest.mark.parametrize("case", ["any", "whole", "one of them absent", "all of them absent", "nothing"])
@pytest.mark.parametrize("system", ["mvae", "mvae-moe", "mmvae", "mvae-q"])
def test_stacked_networks_score_and_learn_like_separate_ones(
    system: str, case: str, in_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacking, "IN_CACHE", in_cache)
    batch, objective = some_batch(case), Objective(k=3, cross=0.3, samples=2)
    together, apart = built(system, monkeypatch, False), built(system, monkeypatch, True)
    groups = [len(group) for group in together.encoders.together(rows_each(together, ROWS))]
    assert groups == ([1, 1, 6] if in_cache else [1] * 8)
    assert len(apart.encoders.together(rows_each(apart, ROWS))) == len(KINDS)
    ours, theirs = (score(model, batch, objective, rows=ROWS, system=system) for model in (together, apart))
    torch.testing.assert_close(ours.row_objective_B, theirs.row_objective_B)
    for name, value in theirs.sums.items():
        torch.testing.assert_close(ours.sums[name], value)
    expected = gradients(apart, theirs.loss)
    found = gradients(together, ours.loss)
    assert found.keys() == expected.keys()
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("system", ["jmvae", "vaevae-b", "svae", "telbo"])
def test_experts_of_several_modalities_are_stacked_too(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {f"m{i}": Label(3, hidden=(5, 6)) for i in range(4)}
    present = patterns(ROWS, 4, 2) | (np.arange(ROWS) < 3)[:, None]
    found = []
    for fewest in (FEWEST, 99):
        monkeypatch.setattr(stacking, "FEWEST", fewest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = MultimodalVAE(kinds, LATENT, SYSTEMS[system].posterior(list(kinds)))
        terms = score(model, batch_of(kinds, present), Objective(alpha=0.5), rows=ROWS, system=system)
        found.append(
            (
                len(model.encoders.together(rows_each(model, ROWS))),
                terms.row_objective_B,
                sum(g.square().sum() for g in gradients(model, terms.loss).values()),
            )
        )
    assert found[0][0] < found[1][0]
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_names_and_weights_are_those_of_networks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart = built("mvae", monkeypatch, False), built("mvae", monkeypatch, True)
    found = together.state_dict()
    assert found.keys() == apart.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in apart.state_dict().items())


def test_a_stack_runs_in_any_precision_and_calls_none_of_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = built("mvae", monkeypatch, False), []
    for bank in (model.encoders, model.decoders):
        for name, network in bank.items():
            network.register_forward_hook(lambda *_, name=name: calls.append(name))
    half = score(model.to(torch.bfloat16), some_batch("any"), Objective(k=2), rows=ROWS)
    assert sorted(calls) == ["other", "other", "picture", "picture"]
    assert half.loss.dtype == torch.float32
    assert half.loss.isfinite()


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.SiLU())


class Own(nn.Sequential):
    """A network of somebody else, of which nothing is known."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 3))


def test_what_is_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough of one kind, of layers that gain by it, on few rows; in the order of the first."""
    names = [f"n{i}" for i in range(FEWEST + 2)]
    alike, few = dict.fromkeys(names, "kind"), dict.fromkeys(names, 3)
    bank = Bank({name: linear() for name in names}, alike)
    assert bank.together(few) == [names]
    assert bank.together(few | {"n1": stacking.IN_CACHE}) == [[name] for name in names]  # three features wide
    assert Bank({name: linear() for name in names[: FEWEST - 1]}, alike).together(few) == [
        [n] for n in names[: FEWEST - 1]
    ]
    first_differs = {**alike, "n0": "other"}
    assert Bank({name: linear() for name in names}, first_differs).together(few) == [["n0"], names[1:]]
    convolutions = {name: nn.Sequential(nn.Conv2d(1, 1, 2), nn.Linear(1, 1)) for name in names}
    assert Bank(convolutions, alike).together(few) == [[name] for name in names]
    assert Bank({name: Own() for name in names}, alike).together(few) == [[name] for name in names]
    next(bank["n0"].parameters()).ds_id = 0  # DeepSpeed's mark of a parameter that ZeRO 3 gathers
    assert bank.together(few) == [[name] for name in names]


def test_eighteen_small_attributes_are_one_network() -> None:
    kinds: dict[str, AnyModality] = {f"a{i}": Attributes(1, hidden=(8, 8)) for i in range(18)}
    model = MultimodalVAE(kinds, LATENT)
    assert [len(group) for group in model.encoders.together(rows_each(model, 100))] == [18]


def test_ragged_rows_are_padded_and_flat_again() -> None:
    ragged = Ragged([2, 0, 3])
    rows = [torch.tensor([[1.0], [2.0]]), torch.zeros(1, 1), torch.tensor([[3.0], [4.0], [5.0]])]
    (padded,) = ragged.padded([[some] for some in rows])
    assert padded.tolist() == [[[1], [2], [0]], [[0], [0], [0]], [[3], [4], [5]]]
    assert ragged.flat(padded).flatten().tolist() == [1, 2, 3, 4, 5]
    assert ragged.index([np.array([7, 8]), np.array([], int), np.array([9, 1, 2])]).tolist() == [
        [7, 8, 0], [0, 0, 0], [9, 1, 2],
    ]  # fmt: skip
    assert Ragged([0, 0]).flat(torch.zeros(2, 1, 4)).shape == (2, 4)
    assert Ragged([2]).index([np.array([5, 6])]).tolist() == [5, 6]


@pytest.mark.parametrize("system", ["mvae", "jmvae", "cvae", "mmvae"])
def test_rows_padded_to_buckets_change_nothing_but_shapes(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few shapes of a step's many: what torch.compile and CUDA graphs want."""
    few = system in ("jmvae", "cvae")
    kinds = dict(list(KINDS.items())[:3]) if few else KINDS
    plain, padded = (MultimodalVAE(kinds, LATENT, SYSTEMS[system].posterior(list(kinds))) for _ in range(2))
    padded.load_state_dict(plain.state_dict())
    padded.bucket = 4
    seen: set[int] = set()
    run = Bank.run_together

    def watched(bank: Bank, names: list[str], inputs: list[torch.Tensor]) -> Any:
        if bank is padded.encoders or bank is padded.decoders:
            seen.add(inputs[0].shape[int(len(names) > 1)])
        return run(bank, names, inputs)

    monkeypatch.setattr(Bank, "run_together", watched)
    for step in range(6):
        batch = batch_of(kinds, patterns(ROWS, len(kinds), step) if step else np.zeros((ROWS, len(kinds)), bool))
        ours, theirs = (
            score(model, batch, Objective(k=2, samples=2), rows=ROWS, step=step, system=system)
            for model in (padded, plain)
        )
        torch.testing.assert_close(ours.row_objective_B, theirs.row_objective_B)
        assert_close(gradients(padded, ours.loss), gradients(plain, theirs.loss), 1e-5)
    assert seen
    assert all(rows % 4 == 0 for rows in seen)
