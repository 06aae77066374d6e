"""Networks that are alike run as one, and nobody can tell: same weights, same losses, same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modalities import AnyModality, Attributes, Image, Label
from pipeline import stacking
from pipeline.batch import Batch
from pipeline.config import Objective
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import SYSTEMS
from pipeline.stacking import FEWEST, Bank, Ragged, Stacked
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


def split(model: MultimodalVAE, stacked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A stack's tensors under the names, and in the layout, that they have apart."""
    names, found = [name for name in KINDS if name.startswith("class")], {}
    for name, tensor in stacked.items():
        if " more." in name:
            bank, stack, rest = name.split(".", 2)
            rest = rest.replace("__", ".")
            if model.get_submodule(f"{bank}.{stack}")._turned[rest]:
                tensor = tensor.transpose(1, 2)
            found |= {f"{bank}.{one}.{rest}": tensor[i] for i, one in enumerate(names)}
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("case", ["any", "whole", "one of them absent", "all of them absent", "nothing"])
@pytest.mark.parametrize("system", ["mvae", "mvae-moe", "mmvae", "mvae-q"])
def test_stacked_networks_score_and_learn_like_separate_ones(
    system: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, objective = some_batch(case), Objective(k=3, cross=0.3, samples=2)
    together, apart = built(system, monkeypatch, False), built(system, monkeypatch, True)
    assert len(together.encoders) == len(together.decoders) == 3
    assert len(apart.encoders) == len(apart.decoders) == len(KINDS)
    ours, theirs = (score(model, batch, objective, rows=ROWS, system=system) for model in (together, apart))
    torch.testing.assert_close(ours.row_objective_B, theirs.row_objective_B)
    for name, value in theirs.sums.items():
        torch.testing.assert_close(ours.sums[name], value)
    expected = gradients(apart, theirs.loss)
    found = split(together, gradients(together, ours.loss))
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
                len(model.encoders),
                terms.row_objective_B,
                sum(g.square().sum() for g in gradients(model, terms.loss).values()),
            )
        )
    assert found[0][0] < found[1][0]
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_each_keeps_the_weights_that_it_would_have_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart = built("mvae", monkeypatch, False), built("mvae", monkeypatch, True)
    found = split(together, dict(together.state_dict()))
    for name, tensor in apart.state_dict().items():
        assert torch.equal(found[name], tensor)
    z = torch.randn(4, LATENT)
    batch = some_batch("whole")
    for name in KINDS:
        torch.testing.assert_close(together.decode(name, z, batch), apart.decode(name, z, batch))
    with pytest.raises(KeyError):
        together.decode("class 9", z, batch)


def test_a_stack_runs_once_and_in_any_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = built("mvae", monkeypatch, False), []
    for bank in (model.encoders, model.decoders):
        for name, network in bank.items():
            network.register_forward_hook(lambda *_, name=name: calls.append(name))
    half = score(model.to(torch.bfloat16), some_batch("any"), Objective(k=2), rows=ROWS)
    assert sorted(calls) == sorted([*model.encoders, *model.decoders])
    assert half.loss.dtype == torch.float32
    assert half.loss.isfinite()


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.SiLU())


def test_what_is_stacked() -> None:
    """Enough of one kind, of layers that gain by it; in the order of the first."""
    names = [f"n{i}" for i in range(FEWEST + 2)]
    alike = dict.fromkeys(names, "kind")
    assert Bank({name: linear() for name in names}, alike).groups == [names]
    assert Bank({name: linear() for name in names[: FEWEST - 1]}, alike).groups == [[n] for n in names[: FEWEST - 1]]
    first_differs = {**alike, "n0": "other"}
    assert Bank({name: linear() for name in names}, first_differs).groups == [["n0"], names[1:]]
    convolutions = {name: nn.Sequential(nn.Conv2d(1, 1, 2)) for name in names}
    assert Bank(convolutions, alike).groups == [[name] for name in names]


def test_eighteen_attributes_of_celeba_are_one_network() -> None:
    kinds: dict[str, AnyModality] = {f"a{i}": Attributes(1, hidden=(8, 8)) for i in range(18)}
    model = MultimodalVAE(kinds, LATENT)
    assert [len(group) for group in model.encoders.groups] == [18]
    assert isinstance(next(iter(model.encoders.values())), Stacked)
    assert [len(parameter) for parameter in model.encoders.parameters()] == [18] * 10


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
def test_rows_padded_to_buckets_change_nothing_but_shapes(system: str) -> None:
    """Few shapes of a step's many: what torch.compile and CUDA graphs want."""
    few = system in ("jmvae", "cvae")
    kinds = dict(list(KINDS.items())[:3]) if few else KINDS
    plain, padded = (MultimodalVAE(kinds, LATENT, SYSTEMS[system].posterior(list(kinds))) for _ in range(2))
    padded.load_state_dict(plain.state_dict())
    padded.bucket = 4
    seen: set[int] = set()
    for bank in (padded.encoders, padded.decoders):
        for names, network in bank.entries():
            axis = int(len(names) > 1)
            network.register_forward_pre_hook(lambda _, inputs, axis=axis: seen.add(inputs[0].shape[axis]))
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
