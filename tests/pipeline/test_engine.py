"""The engine on one and on two ranks: every ZeRO stage, both precisions, and state that goes in and out whole."""

from __future__ import annotations

import gc
import re
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from infra import checkpoint, distributed
from infra.checkpoint import Checkpoints
from pipeline.benchmarks.harness import resident
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.course import write
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.settings import Optim
from pipeline.stacking import Bank
from pipeline.stream import rows_for_rank
from pipeline.train import build
from pipeline.zero import building, set_weights
from tests.pipeline.training import APART, STAGES, a_run, global_rows, loss_of, reference_steps, train_steps
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


def in_parts(run: Run) -> tuple[set[int], float, float, list[str]]:
    """On every rank: what a parameter has of itself before it is used, the shares of all that are here, and megabytes
    that a checkpoint took beside those of its whole state; its files."""
    world = distributed.start("cpu", 1)
    with building(run, world):
        model = build(run)
    parameters = list(model.parameters())
    whole_of, here = sum(p.ds_numel for p in parameters), sum(p.ds_tensor.numel() for p in parameters)
    alone = {parameter.numel() for parameter in parameters}
    engine = Engine(model, run, world)
    refs = rows_for_rank(global_rows(run, 0), world.rank, world.size)
    loss = loss_of(engine.module, run, Collator([open_manifest(run.data)], run.modalities)(refs), 0, run.train.batch)
    engine.step(loss)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = resident()["resident"]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CHUNK", 1 << 22)
        write(Checkpoints(Path(place)), 1, engine, {}, world)
        files = [path.name for path in Path(place).glob("step_1/*")]
    return alone, here / whole_of, (resident()["peak"] - before) / (3 * 4 * whole_of / 1e6), files


def test_no_rank_ever_holds_the_whole_at_zero_3(ranks: Ranks, digits_dir: Path) -> None:
    """A model that one host cannot hold: built in parts, saved tensor by tensor."""
    run = a_run(digits_dir, **{"engine.zero_stage": 3, "modalities.top.hidden": [700] * 20})
    for alone, share, taken, files in ranks.run(in_parts, run):
        assert alone == {0}
        assert share == pytest.approx(1 / 2, abs=0.01)
        assert taken < 0.1, "a checkpoint takes the memory of the whole state"
        assert files == [] or len(files) > 30, "a part of it for each file"


def test_a_process_without_a_launcher_trains_at_zero_3(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    losses, _, what = train_steps(a_run(digits_dir, **{"engine.zero_stage": 3}), 0, 1)
    assert len(losses) == 1
    assert what == "DeepSpeedEngine ZeRO 3 on 1"


def test_networks_in_parts_do_not_run_as_one(ranks: Ranks, digits_dir: Path) -> None:
    apart = [["0"], ["1"], ["2"], ["3"]]
    assert ranks.run(together, a_run(digits_dir, **{"engine.zero_stage": 3})) == [(apart, 0)] * 2
    assert ranks.run(together, a_run(digits_dir)) == [([["0", "1", "2", "3"]], 1)] * 2


def together(run: Run) -> tuple[list[list[str]], int]:
    """Which of four networks that are alike run together, and how many copies there are for that."""
    with building(run, distributed.start("cpu", 1)):
        networks = {str(number): nn.Sequential(nn.Linear(2, 3), nn.ReLU()) for number in range(4)}
        bank = Bank(networks, dict.fromkeys(networks, "alike"))
    return bank.together(dict.fromkeys(networks, 5)), len(bank._one)


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = nn.Linear(2, 3)
    before = {f"model.{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    for state, reason in (
        ({"model.weight": torch.ones(3, 2)}, "bias is missing"),
        ({**before, "model.other": torch.ones(1)}, "other is none of its parameters"),
        ({"model.weight": torch.ones(3, 2), "model.bias": torch.ones(4)}, r"bias has the shape \(4,\), .* \(3,\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            set_weights(model, state)
    assert all(torch.equal(before[f"model.{name}"], parameter) for name, parameter in model.named_parameters())
    set_weights(model, {"model.weight": torch.ones(3, 2), "model.bias": torch.ones(3), "step": torch.ones(1)})
    assert (model.weight == 1).all()


def test_state_moves_to_another_world_size_and_stage(ranks: Ranks, digits_dir: Path) -> None:
    """Promise 6: two ranks at ZeRO 2 -> one rank at ZeRO 0 -> two ranks at ZeRO 3, which do not divide all sizes."""
    changes = {"modalities.top.hidden": [15]}
    one = a_run(digits_dir, **changes)
    whole, _, _ = train_steps(one, 0, 9)
    first = ranks.run(train_steps, a_run(digits_dir, **changes, **{"engine.zero_stage": 2}), 0, 3)[0]
    second = train_steps(one, 3, 6, state=first[1])
    third = ranks.run(train_steps, a_run(digits_dir, **changes, **{"engine.zero_stage": 3}), 6, 9, None, second[1])[0]
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
