"""The benchmark of the step: what its contenders do is the same, and its lines go through the points."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modalities import Attributes, Image, Label
from pipeline.batch import Batch
from pipeline.benchmarks import cases, growth, multivae, step
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.objectives.plan import Plan
from pipeline.objectives.systems import plan_of
from pipeline.objectives.terms import combine
from pipeline.settings import Objective
from pipeline.train import build
from tests.pipeline.batches import assert_close, counted, gradients, networks


def little(k: int = 0) -> Run:
    """Three small modalities of as many kinds."""
    kinds = {"image": Image(4, 3, hidden=(7, 6)), "label": Label(5, hidden=(7, 6)), "flags": Attributes(2, (7, 6))}
    base = cases.mnist()
    objective = Objective(k=k, lambda_={"label": 3.0})
    return replace(base, modalities=kinds, objective=objective, model=replace(base.model, latent=4))


def test_the_cases_are_the_papers_models() -> None:
    mnist, celeba = cases.mnist(), cases.celeba19()
    assert (len(mnist.modalities), len(celeba.modalities), celeba.objective.k) == (2, 19, 1)
    assert mnist.modalities["image"].shape == (28, 28)
    assert celeba.modalities["image"].shape == (3, 64, 64)
    (half,) = cases.batches(mnist, 1, {"label": 0.5})
    assert {name: len(rows) for name, rows in half.rows_of.items()} == {"image": 100, "label": 50}
    assert {name: len(values) for name, values in half.values.items()} == {"image": 100, "label": 50}
    # joint and single terms; a row with one modality has a joint term alone
    assert cases.decoded(mnist, half, 0).tolist() == [100 + 50, 50 + 50]


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_the_floor_runs_the_networks_on_as_many_rows(missing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = little(k=1)
    batches = cases.batches(run, 2, {"label": missing})
    rows: Counter[str] = Counter()

    def count(name: str, network: nn.Module) -> None:
        network.register_forward_pre_hook(lambda _, inputs: rows.update({name: len(inputs[0])}))

    def watched(settings: Run) -> MultimodalVAE:
        model = build(settings)
        for name, network in networks(model).items():
            count(name, network)
        return model

    def watched_apart(settings: Run) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        parts = apart(settings)
        for kind, part in zip(("encoders", "decoders"), parts, strict=True):
            for name, network in part.items():
                count(f"{kind}.{name}", network)
        return parts

    apart = cases.networks
    monkeypatch.setattr(cases, "build", watched)
    monkeypatch.setattr(cases, "networks", watched_apart)
    assert cases.steps(run, batches)() == 2 * cases.SIZE
    ours = Counter(rows)
    assert step._floor(run, batches)() == 2 * cases.SIZE
    assert rows == Counter({name: 2 * count for name, count in ours.items()})
    assert len(ours) == 6


def theirs(run: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[MultimodalVAE, Any]:
    """Our model and MultiVae's around the same networks, without noise."""
    pytest.importorskip("pythae", reason=f"MultiVae is not installed: {multivae.INSTALL}")
    multivae.models()
    import multivae.models.mvae.mvae_model as module  # type: ignore[import-not-found]

    monkeypatch.setattr(module, "rsample_from_gaussian", lambda mu, logvar: mu)
    model = build(run)
    return model, multivae.mvae(model.encoders, model.decoders, run)


def as_they_weigh(plan: Plan, present_BM: np.ndarray) -> Plan:
    """Each term is the mean over the rows that have any of it, and a row's only modality counts twice."""
    seen = plan.seen_TBM.any(2)
    weight = seen * len(present_BM) / np.maximum(seen.sum(1, keepdims=True), 1)
    return replace(plan, weight_TB=weight.astype(np.float32))


@pytest.mark.parametrize(("k", "missing"), [(0, 0.0), (2, 0.0), (0, 0.5), (2, 0.5)])
def test_multivae_has_the_same_loss(k: int, missing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = little(k)
    model, peer = theirs(run, monkeypatch)
    (batch,) = cases.batches(run, 1, {"label": missing, "flags": missing / 2})
    plan = plan_of(run, batch.present_BM, 0)
    if missing:
        plan = as_they_weigh(plan, batch.present_BM)
    scores = model(batch, plan, torch.zeros(len(plan.weight_TB), len(batch), model.latent))
    ours = combine(scores, plan, batch, run.weights(), 1.0, len(batch)).loss
    peer.subsets = multivae.subsets(run, batch, 0)
    assert len(peer.subsets) == k
    loss = peer(multivae.inputs(run, batch), epoch=1).loss
    assert loss.item() == pytest.approx(ours.item(), rel=1e-5)
    assert_close(gradients(model, loss), gradients(model, ours))


def test_multivae_has_the_same_parameters_and_runs_a_network_once_for_each_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = cases.mnist()
    model, peer = theirs(run, monkeypatch)
    assert {id(p) for p in peer.parameters()} == {id(p) for p in model.parameters()}
    runs = counted(model)
    assert multivae.steps(peer, run, cases.batches(run, 1))() == cases.SIZE
    assert set(runs.values()) == {2}  # joint and single
    assert len(runs) == 4


def test_without_multivae_the_floor_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'multivae'")

    monkeypatch.setattr(multivae, "models", missing)
    run = little()
    assert step._peers(run, cases.batches(run, 1)) == {}
    assert multivae.INSTALL in capsys.readouterr().out


def test_lines_go_through_the_points() -> None:
    found = growth.line([1, 2, 4], [5.0, 7.0, 11.0], "ms")
    assert found["ms for each"] == pytest.approx(2)
    assert found["ms at 0"] == pytest.approx(3)
    assert found["ms, R²"] == pytest.approx(1)
    jump = growth.line([1, 2, 3, 4], [1.0, 2.0, 3.0, 8.0], "ms")
    assert jump["ms, R²"] < 0.9
    assert jump["ms, largest deviation, share of the largest"] == pytest.approx(1.6 / 8)


def test_growth_counts_decoded_rows_and_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, more = cases.small(3, 0), cases.small(3, 40)
    batches: list[Batch] = cases.batches(run, 1)
    assert cases.decoded(run, batches[0], 0).tolist() == [200] * 3
    assert cases.decoded(more, batches[0], 0).sum() > 600 + 40 * 100
    growth.peak(2, 0)
    assert 0 <= float(capsys.readouterr().out) < 10_000  # MB; of this process, whatever else it has done
    series = {axis: {"x": [1.0, 2.0], "ms per step": [3.0, 4.0], "peak memory, MB": [1.0, 2.0]} for axis in ("N", "k")}
    growth.picture(series, tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 5000
