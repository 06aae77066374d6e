"""The engine on one and on two ranks: every ZeRO stage, both precisions, and state that goes in and out whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pipeline.config import Run
from pipeline.settings import Optim
from pipeline.train import build
from tests.pipeline.training import APART, STAGES, a_run, reference_steps, train_steps
from tests.ranks import Ranks


@pytest.mark.parametrize(
    ("stage", "system"), [*((stage, "mvae") for stage in STAGES), (1, "jmvae"), (2, "svae"), (3, "vaevae-star")]
)
def test_two_ranks_with_disjoint_modalities_train_like_one_process(
    ranks: Ranks, digits_dir: Path, stage: int, system: str
) -> None:
    """Promises 1, 4: rank 0 has images only, rank 1 labels only; no hang, and the weights are the reference's."""
    run = a_run(digits_dir, **{"engine.zero_stage": stage, "model.system": system})
    expected, model = reference_steps(run, 5, APART)
    for losses, state, what in ranks.run(train_steps, run, 0, 5, APART):
        assert what == f"DeepSpeedEngine ZeRO {stage} on 2"
        assert losses == pytest.approx(expected, rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(state[f"model.{name}"], parameter.detach(), rtol=1e-4, atol=2e-6)


def test_two_ranks_with_disjoint_modalities_in_bf16_stay_near_fp32(ranks: Ranks, digits_dir: Path) -> None:
    run = a_run(digits_dir, **{"engine.zero_stage": 2, "engine.precision": "bf16"})
    expected, _ = reference_steps(run, 5, APART)
    for losses, _, _ in ranks.run(train_steps, run, 0, 5, APART):
        assert losses == pytest.approx(expected, rel=2e-2)


def test_the_learning_rate_falls_to_nothing_over_the_end_of_training() -> None:
    falling = [Optim(1.0, decay=0.4).rate(step, 10) for step in range(10)]
    assert falling == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    assert Optim(0.5).rate(9, 10) == 0.5


@pytest.mark.parametrize("stage", STAGES)
def test_a_falling_learning_rate_is_what_adam_gets(digits_dir: Path, stage: int) -> None:
    """Also after a resume in its midst; a constant one would end elsewhere."""
    run = a_run(digits_dir, **{"engine.zero_stage": stage, "train.steps": 6, "optim.decay": 1.0})
    expected, model = reference_steps(run, 6)
    head, state, _ = train_steps(run, 0, 3)
    tail, state, _ = train_steps(run, 3, 6, state=state)
    assert head + tail == pytest.approx(expected, rel=1e-5)
    constant = reference_steps(a_run(digits_dir), 6)[1].state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state[f"model.{name}"], parameter.detach(), rtol=1e-4, atol=2e-6)
        assert not torch.allclose(constant[name], parameter.detach(), rtol=1e-4, atol=2e-6), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_state_restores_bit_for_bit(digits_dir: Path, stage: int, precision: str) -> None:
    run = a_run(digits_dir, **{"engine.zero_stage": stage, "engine.precision": precision})
    whole, _, what = train_steps(run, 0, 6)
    assert what == f"DeepSpeedEngine ZeRO {stage} on 1"
    head, state, _ = train_steps(run, 0, 3)
    tail, _, _ = train_steps(run, 3, 6, state=state)
    assert head + tail == whole


def test_state_moves_to_another_world_size_and_stage(ranks: Ranks, digits_dir: Path) -> None:
    """Promise 6: two ranks at ZeRO 2 -> one rank at ZeRO 0 -> two ranks at ZeRO 3."""
    one = a_run(digits_dir)
    whole, _, _ = train_steps(one, 0, 9)
    first = ranks.run(train_steps, a_run(digits_dir, **{"engine.zero_stage": 2}), 0, 3)[0]
    second = train_steps(one, 3, 6, state=first[1])
    third = ranks.run(train_steps, a_run(digits_dir, **{"engine.zero_stage": 3}), 6, 9, None, second[1])[0]
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
    from pipeline.settings import Examine

    run = a_run(digits_dir)
    plain = replace(run, objective=replace(run.objective, lambda_={}), examine=Examine())
    with pytest.raises(UserError, match="cannot have this name"):
        build(replace(plain, modalities={"half": run.modalities["top"]}))


@pytest.mark.parametrize(("stage", "precision"), [(0, "bf16"), (1, "fp32"), (3, "fp32")])
def test_telbo_freezes_all_but_the_single_experts(digits_dir: Path, tmp_path: Path, stage: int, precision: str) -> None:
    """Its two stages are one run: Adam's momentum would move what has a gradient of zero. A resume keeps to it."""
    from dataclasses import replace

    from infra.checkpoint import Checkpoints
    from pipeline.train import train

    changes = {
        "model.system": "telbo", "objective.switch": 0.5, "train.steps": 8, "train.checkpoint_every": 1,
        "train.keep": 9,
        "engine.zero_stage": stage, "engine.precision": precision, "tracking.enabled": False, "objective.anneal": 0,
        "train.best": "val/elbo",
    }  # fmt: skip
    run = a_run(digits_dir, **changes)
    whole = train(run, tmp_path / "whole")
    saved = Checkpoints(tmp_path / "whole" / "checkpoints", 9)
    weights = {step: saved.load(step).tensors("model") for step in saved.all()}
    single = [f"model.encoders.{name}." for name in ("top", "bottom", "label")]
    assert whole.best is not None
    assert whole.best["step"] == 8  # of the second stage, though the joint ELBO moves no more
    first = max(float((weights[5][name] - weights[4][name]).abs().max()) for name in weights[4])
    assert first == pytest.approx(run.optim.lr, rel=1e-2)  # as Adam begins, whatever it has counted before
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
    losses, _, _ = train_steps(plain, 0, 8)
    compiled, _, _ = train_steps(a_run(digits_dir, **{"engine.zero_stage": 1, "engine.compile": True}), 0, 8)
    assert compiled == pytest.approx(losses, rel=1e-5)
    assert 0 < counters["stats"]["unique_graphs"] <= 2 * 6  # three encoders, three decoders; at first for one shape
    assert not counters["graph_break"]


def blow_up(run: Run, directory: Path) -> str:
    """What a run says that comes to an end; on every rank."""
    from infra.errors import UserError
    from pipeline.train import train

    with pytest.raises(UserError) as raised:
        train(run, directory)
    return str(raised.value)


@pytest.mark.parametrize("every", [1, 50])
def test_a_loss_that_is_not_finite_stops_all_ranks_and_is_never_saved(
    ranks: Ranks, digits_dir: Path, tmp_path: Path, every: int
) -> None:
    """Whether a step's loss is read at once or, as no step waits for it, one step later."""
    from infra.checkpoint import Checkpoints

    run = a_run(digits_dir, **{
        "optim.lr": 1e18, "train.steps": 40, "train.log_every": every, "train.checkpoint_every": 1 if every == 1 else 0,
        "train.validate_every": 0, "tracking.enabled": False,
    })  # fmt: skip
    said = ranks.run(blow_up, run, tmp_path / "run")
    assert said[0] == said[1]
    assert re.search(r"the loss of step \d+ is not finite and nothing of it is saved; rows: digit\d+", said[0]), said[0]
    saved = Checkpoints(tmp_path / "run" / "checkpoints", 2)
    assert bool(saved.all()) == (every == 1)
    for step in saved.all():
        assert step < int(re.search(r"loss of step (\d+)", said[0])[1])
