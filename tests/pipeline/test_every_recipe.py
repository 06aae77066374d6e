"""Every recipe trains on tiny official files of its corpus: in one process, and one of each kind of modality on two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.checkpoint import Checkpoints
from modalities import Image
from pipeline.config import Run, override
from pipeline.corpora import prepare
from pipeline.recipes import RECIPES, recipe
from pipeline.train import build, load_weights, train
from tests.pipeline.corpora import tiny, without_extras
from tests.ranks import Ranks

SLOW = {"celeba", "celeba19", "celeba-transforms", "cub", "cub-resnet", "iwslt-en-vi"}
STEPS = 20
ONE_OF_EACH_KIND = ("mnist", "multimnist", "cub", "celeba19", "iwslt-en-vi")


def tiny_run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, **changes: float) -> Run:
    """The recipe, on tiny files of its corpus, for a few steps of a few rows."""
    without_extras(monkeypatch)
    run = recipe(name)
    corpus = run.data.removeprefix("data/")
    _, source = tiny(corpus, place / "raw")
    prepare(corpus, place / "data", source=source)
    settings = {
        "data": str(place / "data"), "train.steps": STEPS, "train.batch": 8, "train.validate_every": 0,
        "train.log_every": 1, "objective.anneal": 0.0, "optim.lr": 1e-3, "tracking.enabled": False,
        "engine.device": "cpu", "engine.threads": 1, "pairing.composition": "natural",
    }  # fmt: skip
    if run.model.system == "mmvae":
        settings["objective.samples"] = 2
    return override(run, settings | changes)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in RECIPES])
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite and falls, and the weights of the checkpoint are those of a model of this recipe."""
    run = tiny_run(name, tmp_path, monkeypatch)
    monkeypatch.setattr("pipeline.pictures.illustrate", lambda *_: [])  # takes longer than the training
    losses: list[float] = []
    result = train(run, tmp_path / "run", on_step=lambda step, loss: losses.append(loss))
    assert (result.status, result.step) == ("finished", STEPS)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:2])
    assert np.isfinite(list(result.metrics.values())).all()
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints").best()
    assert checkpoint is not None
    model = build(run)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, checkpoint)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def losses_of(run: Run, place: Path) -> list[float]:
    """The loss of each step of a training run, which may be shared with another rank."""
    losses: list[float] = []
    train(run, place, on_step=lambda step, loss: losses.append(loss))
    return losses


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ONE_OF_EACH_KIND])
def test_two_ranks_train_as_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> None:
    """Every kind of modality: labels, strings, pictures and their features, sentences, parts of one member."""
    run = tiny_run(name, tmp_path, monkeypatch, **{"train.steps": 3})
    if any(isinstance(modality, Image) for modality in run.modalities.values()):
        monkeypatch.setattr("pipeline.pictures.illustrate", lambda *_: [])
    alone = losses_of(run, tmp_path / "alone")
    for shared in ranks.run(losses_of, run, tmp_path / "shared"):
        np.testing.assert_allclose(shared or alone, alone, rtol=1e-5)
    assert len(alone) == 3
