"""The engine on one and on two ranks: every ZeRO stage, both precisions, and state that goes in and out whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infra import distributed
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run, override
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import plan_of
from pipeline.objectives.terms import combine
from pipeline.pairing import view
from pipeline.recipes import recipe
from pipeline.stream import Refs, Stream, rows_for_rank
from pipeline.train import build
from tests.ranks import Ranks

STAGES = (0, 1, 2, 3)


def a_run(data: Path, **changes: Any) -> Run:
    small = {"modalities.top.hidden": [16], "modalities.bottom.hidden": [16], "modalities.label.hidden": [16, 16]}
    base = {"data": str(data), "engine.device": "cpu", "engine.threads": 1, "train.batch": 12, "pairing.fraction": 0.3}
    return override(recipe("digits"), {**small, **base, "model.latent": 4, **changes})


def global_rows(run: Run, step: int, apart: bool) -> Refs:
    """Rows of one step; `apart`: the first half has images only and the second labels only, so that with two ranks
    no rank has any of the other's modalities."""
    manifest = open_manifest(run.data)
    names = list(run.modalities)
    stream = Stream([view(manifest, "train", names, run.pairing, 0, run.train.batch)], run.modalities, 0)
    if not apart:
        return stream.global_batch(step)
    sample = stream.global_batch(step).sample_B
    members = manifest.members(sample, manifest.column(names), sample.astype("uint64"), sample)
    half = len(sample) // 2
    members[:half, names.index("label")] = -1
    members[half:, [names.index("top"), names.index("bottom")]] = -1
    return Refs(sample, members, step * len(sample) + sample * 0 + range(len(sample)))


def loss_of(module: Any, run: Run, batch: Batch, step: int, rows: float) -> torch.Tensor:
    terms = plan_of(run, batch.present_BM, step)
    noise = terms.noise(run.seed, "train", batch.row_B, run.model.latent)
    scores = module(batch, terms, noise)
    return combine(scores, terms, batch, run.weights(), 1.0, rows).loss


def train_steps(
    run: Run, first: int, last: int, apart: bool, state: dict | None = None
) -> tuple[list[float], dict, str]:
    """On every rank: losses of the global batch, the whole state afterwards, and what DeepSpeed says it runs."""
    world = distributed.start("cpu", 1)
    engine = Engine(build(run), run, world, state)
    collate = Collator([open_manifest(run.data)], run.modalities)
    losses = []
    for step in range(first, last):
        batch = collate(rows_for_rank(global_rows(run, step, apart), world.rank, world.size))
        loss = loss_of(engine.module, run, batch, step, run.train.batch / world.size)
        losses.append(world.sum([float(loss.detach())])[0] / world.size)
        engine.step([loss])
    return losses, engine.state(), f"{type(engine.module).__name__} ZeRO {engine.stage} on {world.size}"


def reference_steps(run: Run, last: int, apart: bool) -> tuple[list[float], MultimodalVAE]:
    """The same steps in a plain PyTorch loop over the whole global batch."""
    model = build(run)
    adam = torch.optim.Adam(model.parameters(), lr=run.optim.lr, betas=run.optim.betas)
    collate = Collator([open_manifest(run.data)], run.modalities)
    losses = []
    for step in range(last):
        adam.zero_grad()
        loss = loss_of(model, run, collate(global_rows(run, step, apart)), step, run.train.batch)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return losses, model


@pytest.mark.parametrize(
    ("stage", "system"), [*((stage, "mvae") for stage in STAGES), (1, "jmvae"), (2, "svae"), (3, "vaevae-star")]
)
def test_two_ranks_with_disjoint_modalities_train_like_one_process(
    ranks: Ranks, digits_dir: Path, stage: int, system: str
) -> None:
    """Promises 1, 4: rank 0 has images only, rank 1 labels only; no hang, and the weights are the reference's."""
    run = a_run(digits_dir, **{"engine.zero_stage": stage, "model.system": system})
    expected, model = reference_steps(run, 5, apart=True)
    for losses, state, what in ranks.run(train_steps, run, 0, 5, True):
        assert what == f"DeepSpeedEngine ZeRO {stage} on 2"
        assert losses == pytest.approx(expected, rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(state[f"model.{name}"], parameter.detach(), rtol=1e-4, atol=2e-6)


def test_two_ranks_with_disjoint_modalities_in_bf16_stay_near_fp32(ranks: Ranks, digits_dir: Path) -> None:
    run = a_run(digits_dir, **{"engine.zero_stage": 2, "engine.precision": "bf16"})
    expected, _ = reference_steps(run, 5, apart=True)
    for losses, _, _ in ranks.run(train_steps, run, 0, 5, True):
        assert losses == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_state_restores_bit_for_bit(digits_dir: Path, stage: int, precision: str) -> None:
    run = a_run(digits_dir, **{"engine.zero_stage": stage, "engine.precision": precision})
    whole, _, what = train_steps(run, 0, 6, False)
    assert what == f"DeepSpeedEngine ZeRO {stage} on 1"
    head, state, _ = train_steps(run, 0, 3, False)
    tail, _, _ = train_steps(run, 3, 6, False, state)
    assert head + tail == whole


def test_state_moves_to_another_world_size_and_stage(ranks: Ranks, digits_dir: Path) -> None:
    """Promise 6: two ranks at ZeRO 2 -> one rank at ZeRO 0 -> two ranks at ZeRO 3."""
    one = a_run(digits_dir)
    whole, _, _ = train_steps(one, 0, 9, False)
    first = ranks.run(train_steps, a_run(digits_dir, **{"engine.zero_stage": 2}), 0, 3, False)[0]
    second = train_steps(one, 3, 6, False, first[1])
    third = ranks.run(train_steps, a_run(digits_dir, **{"engine.zero_stage": 3}), 6, 9, False, second[1])[0]
    assert first[0] + second[0] + third[0] == pytest.approx(whole, rel=1e-5)


def test_accumulation_changes_nothing(digits_dir: Path) -> None:
    from dataclasses import replace

    from pipeline.train import train

    results = []
    for accumulate in (1, 3):
        run = a_run(digits_dir, **{"engine.accumulate": accumulate, "train.steps": 4, "tracking.enabled": False})
        run = replace(run, train=replace(run.train, log_every=1))
        results.append(train(run, digits_dir.parent / f"accumulate{accumulate}").loss)
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_a_name_that_torch_keeps_for_itself_is_refused(digits_dir: Path) -> None:
    from dataclasses import replace

    from infra.errors import UserError

    run = a_run(digits_dir)
    with pytest.raises(UserError, match="cannot have this name"):
        build(replace(run, modalities={"half": run.modalities["top"]}, objective=replace(run.objective, lambda_={})))


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "fp32"), (3, "fp32")])
def test_telbo_freezes_all_but_the_single_experts(digits_dir: Path, tmp_path: Path, stage: int, precision: str) -> None:
    """Its two stages are one run: Adam's momentum would move what has a gradient of zero. A resume keeps to it."""
    from dataclasses import replace

    from infra.checkpoint import Checkpoints
    from pipeline.train import train

    changes = {
        "model.system": "telbo", "objective.switch": 0.5, "train.steps": 8, "train.checkpoint_every": 2,
        "train.keep": 9,
        "engine.zero_stage": stage, "engine.precision": precision, "tracking.enabled": False, "objective.anneal": 0,
        "train.best": "val/elbo",
    }  # fmt: skip
    run = a_run(digits_dir, **changes)
    whole = train(run, tmp_path / "whole")
    saved = Checkpoints(tmp_path / "whole" / "checkpoints", 9)
    weights = {step: saved.load(step).tensors("model") for step in saved.all()}
    single = [f"model.encoders.{name}." for name in ("top", "bottom", "label")]
    for name, tensor in weights[8].items():
        alone = name.startswith(tuple(single))
        assert torch.equal(weights[4][name], tensor) != alone, name
        assert torch.equal(weights[2][name], weights[4][name]) == alone, name
    cut = tmp_path / "cut"
    train(replace(run, train=replace(run.train, steps=6), objective=replace(run.objective, switch=4 / 6)), cut)
    again = train(run, cut, resume=True)
    assert again.loss == whole.loss


@pytest.mark.slow
def test_compiled_networks_train_like_plain_ones(digits_dir: Path) -> None:
    """torch.compile makes each network once for all numbers of rows, not once for each."""
    from torch._dynamo.utils import counters

    counters.clear()
    plain = a_run(digits_dir, **{"engine.zero_stage": 1})
    losses, _, _ = train_steps(plain, 0, 8, False)
    compiled, _, _ = train_steps(a_run(digits_dir, **{"engine.zero_stage": 1, "engine.compile": True}), 0, 8, False)
    assert compiled == pytest.approx(losses, rel=1e-5)
    assert 0 < counters["stats"]["unique_graphs"] <= 2 * 6  # three encoders, three decoders; at first for one shape
    assert not counters["graph_break"]
