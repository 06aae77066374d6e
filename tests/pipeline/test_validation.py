"""What is counted of the latent dimensions while a model is trained is what a naive loop counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.distributed import World
from pipeline.collate import Collator
from pipeline.evaluate import batches, validation
from pipeline.evaluate.validation import Validation
from pipeline.manifest import open_manifest
from pipeline.train import build
from tests.pipeline.training import a_run

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize("few", [1000, 50])
def test_active_units_on_validation_data(digits_dir: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "LOOKED_AT", few)
    run = a_run(digits_dir)
    model = build(run)
    with torch.no_grad():  # some dimensions of the images' posteriors are the same for every row
        for name in ("top", "bottom"):
            head = [layer for layer in model.encoders[name].modules() if isinstance(layer, torch.nn.Linear)][-1]
            head.weight.mul_(20)
            head.weight[[1, 3]] = 0
            head.bias[[1, 3]] = 0.5
    manifest = open_manifest(run.data).reading(run.modalities)
    told = Validation(model, run, manifest, ALONE)(model)
    means: dict[str, list[np.ndarray]] = {"top": [], "bottom": [], "label": [], "all": []}
    with torch.no_grad():
        for batch in batches(run, manifest, "val", ALONE, few):
            there = batch.present_BM.all(1)
            for name, found in means.items():
                shown = batch if name == "all" else batch.only(frozenset({name}))
                found.append(model.posterior(shown).mu[there].numpy())
    for name, found in means.items():
        assert len(np.concatenate(found)) == min(few, 269)
        assert told[f"val/latents/active.{name}"] == (np.concatenate(found).var(0) > 0.01).sum()
    assert 0 < told["val/latents/active.top"] <= 2
    same = told["val/latents/kl.all"] == pytest.approx(told["val/kl"], rel=1e-5)
    assert same == (few == 1000), "only some rows are looked at"


def test_what_no_row_can_tell_is_left_out(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(digits_dir)
    model = build(run)
    call = Collator.__call__
    monkeypatch.setattr(Collator, "__call__", lambda self, refs: call(self, refs).only(frozenset({"top", "bottom"})))
    told = Validation(model, run, open_manifest(run.data).reading(run.modalities), ALONE)(model)
    assert {name for name in told if "active" in name} == {"val/latents/active.top", "val/latents/active.bottom"}
    assert not model.training or all(module.training for module in model.modules())
