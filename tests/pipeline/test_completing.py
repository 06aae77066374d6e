"""Rows are completed by what is there: each as if it were alone, and what is given stays as it is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from infra.errors import UserError
from modalities import Attributes, Features, Label, Modality, Sentences
from pipeline import completing
from pipeline.completing import batch_of, completed
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.settings import Model
from pipeline.train import build

KINDS: dict[str, Modality] = {
    "numbers": Features(count=3, hidden=(8,)),
    "label": Label(classes=5, hidden=(8, 8)),
    "text": Sentences(vocabulary=9, length=4, embedding=4, hidden=4),
}
NAMES = list(KINDS)
VALUES = {
    "numbers": np.array([1.0, -2.0, 0.5], np.float32), "label": np.asarray(3), "text": np.array([4, 7, 0, 0]),
}  # fmt: skip
Rows = dict[str, list[np.ndarray | None]]


def model_of(system: str = "mvae", kinds: dict[str, Modality] = KINDS) -> MultimodalVAE:
    run = Run("toy", "", kinds, seed=3, model=Model(4, system=system))  # type: ignore[arg-type]
    model = build(run).eval()
    with torch.no_grad():  # initial networks hardly look at what they are given
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def rows(*patterns: tuple[bool, ...]) -> Rows:
    """A row for each pattern, in which label and numbers tell the row's number."""
    told: Rows = {name: [] for name in NAMES}
    for row, pattern in enumerate(patterns):
        own = VALUES | {"label": np.asarray(row % 5), "numbers": VALUES["numbers"] * (row + 1)}
        for name, there in zip(NAMES, pattern, strict=True):
            told[name].append(own[name] if there else None)
    return told


EVERY = list(product([True, False], repeat=3))


@torch.no_grad()
def alone(model: MultimodalVAE, told: Rows, row: int) -> dict[str, np.ndarray]:
    """What the mean posterior of one row's own modalities makes of all of them, without the code under test."""
    batch = batch_of(model.modalities, {name: [column[row]] for name, column in told.items()})
    assert batch.present_BM.tolist() == [[told[name][row] is not None for name in NAMES]]
    z = model.posterior(batch).mu
    return {name: model.modalities[name].mean(model.decode(name, z, batch))[0].numpy() for name in NAMES}


@pytest.mark.parametrize("system", ["mvae", "mvae-moe", "svae", "vaevae-b", "mmvae", "mopoe"])
@pytest.mark.parametrize("together", [3, 256])
def test_each_row_is_completed_as_if_it_were_alone(system: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "TOGETHER", together)
    model, told = model_of(system), rows(*EVERY, (True, False, False))
    whole = completed(model, told)
    for row in range(len(EVERY) + 1):
        own = alone(model, told, row)
        for name in NAMES:
            given = told[name][row]
            if given is not None:
                assert whole[name][row] is given
            else:
                np.testing.assert_allclose(whole[name][row], own[name], atol=1e-5)
    first, last = whole["label"][3], whole["label"][-1]  # both of numbers alone, which differ
    assert not np.array_equal(whole["numbers"][0], whole["numbers"][3])
    assert (first.shape, last.shape) == ((), ())


def test_what_is_given_tells_in_what_is_made() -> None:
    made = completed(model_of(), rows(*[(False, True, False)] * 5))["numbers"]
    assert len({one.tobytes() for one in made}) == 5


def test_no_row_makes_no_row() -> None:
    assert completed(model_of(), {name: [] for name in NAMES}) == {name: [] for name in NAMES}


def test_samples_hang_on_the_seed_and_the_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = model_of(), rows(*[(False, True, False)] * 10)
    first = completed(model, told, sample=True, seed=1)["numbers"]
    monkeypatch.setattr(completing, "TOGETHER", 4)
    np.testing.assert_allclose(completed(model, told, sample=True, seed=1)["numbers"], first, atol=1e-5)
    assert np.abs(np.array(completed(model, told, sample=True, seed=2)["numbers"]) - first).min() > 0
    assert np.abs(np.array(first[0]) - first[5]).min() > 0  # rows 0 and 5 have the same label


@pytest.mark.parametrize("system", ["mvae", "mvae-moe", "mmvae"])
def test_samples_of_nothing_given_are_the_prior_s(system: str) -> None:
    model, variance = model_of(system), np.ones(4)
    if model.prior_raw is not None:  # a Laplace distribution whose scales b are learnt and sum to 4; 2 b^2
        raw = torch.tensor([0.0, 0.5, 1.0, -1.0])
        model.prior_raw.data.copy_(raw)
        variance = 2 * (4 * raw.softmax(0).numpy()) ** 2
    batch = batch_of(model.modalities, {name: [None] * 4000 for name in NAMES})
    with torch.no_grad():
        z = completing._latent(model, batch, True, 0)
        np.testing.assert_allclose(z.mean(0), np.zeros(4), atol=0.1)
        np.testing.assert_allclose(z.var(0), variance, rtol=0.15)
        assert completing._latent(model, batch, False, 0).abs().max() == 0


def test_samples_follow_the_posterior() -> None:
    model = model_of()
    batch = batch_of(model.modalities, rows((False, True, True)))
    many = batch_of(
        model.modalities, {"numbers": [None] * 4000, "label": [np.asarray(0)] * 4000, "text": [VALUES["text"]] * 4000}
    )
    with torch.no_grad():
        posterior = model.posterior(batch)
        z = completing._latent(model, many, True, 0)
        np.testing.assert_allclose(z.mean(0), posterior.mu[0], atol=0.1)
        np.testing.assert_allclose(z.var(0), posterior.logvar[0].exp(), rtol=0.1)


@pytest.mark.parametrize(
    ("system", "pattern", "words"),
    [
        ("jmvae", (True, True, False), "row 1: this model makes no text from numbers, label alone: give one of them"),
        ("cvae", (True, True, False), "row 1: this model makes no text from numbers, label alone: it needs label"),
        ("cvae", (False, False, False), "row 1: this model makes no numbers from nothing alone: it needs label, text"),
    ],
)  # fmt: skip
def test_what_a_system_cannot_make_is_refused_with_a_sentence(
    system: str, pattern: tuple[bool, ...], words: str
) -> None:
    able = (True, False, False) if system == "jmvae" else (False, True, True)
    with pytest.raises(UserError, match=words):
        completed(model_of(system), rows(able, pattern))


def test_a_conditional_model_completes_what_it_is_made_for() -> None:
    told = rows((False, True, True), (False, True, True))
    made = completed(model_of("cvae"), told)["numbers"]
    assert not np.array_equal(made[0], made[1])  # the decoder sees the label


def test_attributes_that_are_modalities_are_completed_together() -> None:
    """Small networks that are alike run as one."""
    kinds: dict[str, Modality] = {f"a{n}": Attributes(count=1, hidden=(8, 8)) for n in range(6)}
    model = model_of("mvae", kinds)
    told: Rows = {name: [np.ones(1, np.float32), None] if n % 2 else [None, None] for n, name in enumerate(kinds)}
    whole = completed(model, told)
    one = completed(model, {name: column[:1] for name, column in told.items()})
    for name in kinds:
        np.testing.assert_allclose(whole[name][0], one[name][0], atol=1e-6)
        assert whole[name][1].shape == (1,)
