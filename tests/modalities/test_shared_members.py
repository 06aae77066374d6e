"""Modalities that share a member of a sample: each reads its own of it, and their networks are alike all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities import Attributes, Features, Image, Modality
from pipeline.model import MultimodalVAE
from pipeline.stacking import Bank
from tests.modalities.cases import CASES, Case, npy

EIGHTEEN = Attributes(18, hidden=(8, 8))
PARTS = {f"a{i}": Attributes(1, hidden=(8, 8), of="attributes", first=i, among=18) for i in range(18)}


def test_parts_are_slices_of_the_whole() -> None:
    rows = np.random.default_rng(2).integers(0, 2, (7, 18))
    members = [EIGHTEEN.encode(row) for row in rows]
    for first, (name, part) in enumerate(PARTS.items()):
        assert part.member(name) == "attributes"
        assert part.member_shape == (18,)
        np.testing.assert_array_equal(part.decode(members), rows[:, [first]])
    middle = Attributes(5, of="attributes", first=6, among=18)
    np.testing.assert_array_equal(middle.decode(members), rows[:, 6:11])
    last = Attributes(5, of="attributes", first=13, among=18)
    np.testing.assert_array_equal(last.decode(members), rows[:, 13:])


def test_a_part_checks_the_whole_member() -> None:
    part = PARTS["a3"]
    wrong = np.zeros(18, np.uint8)
    wrong[11] = 2
    for data in (npy(wrong), npy(np.zeros(17, np.uint8)), npy(np.zeros(1, np.uint8))):
        with pytest.raises(ValueError, match="expected"):
            part.decode([data])


def test_a_part_is_not_written() -> None:
    with pytest.raises(ValueError, match="a part of attributes is not written by itself: write all 18 attributes"):
        PARTS["a3"].encode(np.array([1]))


@pytest.mark.parametrize("case", [case for case in CASES.values() if not case.whole])
def test_others_have_a_member_of_their_own(case: Case) -> None:
    assert case.modality.member("name") == "name"
    assert case.modality.member_shape == case.modality.shape
    assert case.modality.network_kind == case.modality


def test_networks_of_parts_have_one_kind() -> None:
    kinds = {part.network_kind for part in PARTS.values()}
    assert kinds == {Attributes(1, hidden=(8, 8))}
    assert len(set(PARTS.values())) == 18
    assert Attributes(2, hidden=(8, 8), of="attributes", among=18).network_kind not in kinds
    assert Attributes(1, hidden=(8, 4), of="attributes", among=18).network_kind not in kinds


def test_eighteen_parts_are_one_network_each_way() -> None:
    model = MultimodalVAE({"image": Image(2, 2, hidden=(8,)), **PARTS}, 3)
    for bank in (model.encoders, model.decoders):
        assert [len(group) for group in bank.together(dict.fromkeys(bank, 9))] == [1, 18]


ALIKE: dict[str, Modality] = {
    "parts": PARTS["a0"],
    "features": Features(5, hidden=(8, 4)),
    "images with ReLU": Image(2, 3, hidden=(8, 4), activation="relu"),
}


@pytest.mark.parametrize("network", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ALIKE)
def test_stacked_networks_compute_what_each_does(name: str, network: str) -> None:
    """In the forward pass and the gradients."""
    torch.manual_seed(4)
    modality, names = ALIKE[name], ["one", "two", "three", "four"]
    bank = Bank({n: getattr(modality, network)(3) for n in names}, dict.fromkeys(names, modality.network_kind))
    assert bank.together(dict.fromkeys(names, 6)) == [names]
    inputs = torch.rand(4, 6, *modality.shape) if network == "encoder" else torch.randn(4, 6, 3)
    together = whole(bank.run_together(names, [inputs]))
    apart = torch.stack([whole(bank[n](rows)) for n, rows in zip(names, inputs, strict=True)])
    torch.testing.assert_close(together, apart)
    found, expected = (
        torch.autograd.grad(output.square().sum(), list(bank.parameters())) for output in (together, apart)
    )
    torch.testing.assert_close(found, expected)


def whole(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """What a decoder gives, or the mean and log-variance of an encoder side by side."""
    return output if isinstance(output, Tensor) else torch.cat(output, -1)
