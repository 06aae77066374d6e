"""The norm of each network's gradient is that of a plain loop over the whole batch, and costs other steps nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infra import distributed
from pipeline import engine as engines
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.stream import rows_for_rank
from pipeline.train import build
from tests.pipeline.training import a_run, global_rows, loss_of
from tests.ranks import Ranks


def norms(run: Run, steps: int) -> list[dict[str, float]]:
    """After every step, on every rank."""
    world = distributed.start("cpu", 1)
    engine = Engine(build(run), run, world)
    collate = Collator([open_manifest(run.data)], run.modalities)
    told = []
    for step in range(steps):
        engine.enter(step)
        mine = rows_for_rank(global_rows(run, step), world.rank, world.size)
        share = len(mine.row_B) // run.engine.accumulate
        for part in range(run.engine.accumulate):
            batch = collate(mine[part * share : (part + 1) * share])
            engine.step(loss_of(engine.module, run, batch, step, share))
        told.append(engine.gradient_norms())
    return told


def expected(run: Run, step: int) -> dict[str, float]:
    """Of step 0 of a plain loop over the whole batch."""
    model = build(run)
    collate = Collator([open_manifest(run.data)], run.modalities)
    loss_of(model, run, collate(global_rows(run, step)), step, run.train.batch).backward()
    return {
        f"gradient/{kind}.{name}": torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item()  # type: ignore[union-attr]
        for kind, networks in (("encoder", model.encoders), ("decoder", model.decoders))
        for name, network in networks.items()
    }


@pytest.mark.parametrize("changes", [{}, {"engine.accumulate": 2}, {"optim.clip": 0.01}])
def test_norms_are_those_of_the_global_batch_before_clipping(ranks: Ranks, digits_dir: Path, changes: dict) -> None:
    run = a_run(digits_dir, **{"train.log_every": 1, **changes})
    wanted = expected(run, 0)
    assert set(wanted) == {f"gradient/{k}.{n}" for k in ("encoder", "decoder") for n in ("top", "bottom", "label")}
    for told in [norms(run, 1), *ranks.run(norms, run, 1)]:
        assert told[0] == pytest.approx(wanted, rel=1e-4)


def test_bf16_gradients_are_near(digits_dir: Path) -> None:
    run = a_run(digits_dir, **{"train.log_every": 1, "engine.precision": "bf16"})
    assert norms(run, 1)[0] == pytest.approx(expected(run, 0), rel=5e-2)


def test_only_the_steps_of_a_point_are_measured(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measure = engines.gradient_norms
    monkeypatch.setattr(engines, "gradient_norms", lambda model: calls.append(1) or measure(model))
    told = norms(a_run(digits_dir, **{"train.log_every": 3, "engine.accumulate": 2}), 7)
    assert len(calls) == 2
    assert told[0] == told[1] == {}
    assert told[2] == told[3] == told[4] != told[5] == told[6]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_where_gradients_are_in_parts_there_is_no_norm(digits_dir: Path, stage: int) -> None:
    assert norms(a_run(digits_dir, **{"train.log_every": 1, "engine.zero_stage": stage}), 1) == [{}]


def test_measuring_reads_nothing_back(digits_dir: Path) -> None:
    """On torch's "meta" device whatever would wait for a number raises."""
    model = build(a_run(digits_dir)).to("meta")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    told = engines.gradient_norms(model)
    assert {norm.device.type for norm in told.values()} == {"meta"}
