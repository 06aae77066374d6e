"""A rank that is slower than the others shows by its own time, and is named."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.distributed import World
from infra.journal import points
from pipeline.alarms import HELD_UP, Alarms
from pipeline.collate import Waiting
from pipeline.pace import OTHERS, SLOWEST, SLOWEST_RANK, Pace, told
from pipeline.recipes import recipe
from tests.pipeline.training import a_run
from tests.ranks import Ranks

SLEEP = 0.3


def held_up(run: Any, out: Path, where: str) -> None:
    """Train, with a second rank whose data or whose forward passes are slow."""
    from pipeline import train as training

    score, collate = training._score, training.Collator.__call__
    slow = os.environ["RANK"] == "1"

    def late(*arguments: Any) -> Any:
        time.sleep(SLEEP * (slow and where == "forward"))
        return score(*arguments)

    def waits(*arguments: Any) -> Any:
        time.sleep(SLEEP * (slow and where == "data"))
        return collate(*arguments)

    patch = pytest.MonkeyPatch()
    with patch.context():
        patch.setattr(training, "_score", late)
        patch.setattr(training.Collator, "__call__", waits)
        training.train(run, out)
    patch.undo()


@pytest.mark.parametrize("where", ["forward", "data"])
def test_a_slow_rank_is_named(ranks: Ranks, digits_dir: Path, tmp_path: Path, where: str) -> None:
    changes = {
        "train.steps": 12,
        "train.log_every": 4,
        "train.validate_every": 0,
        "tracking.enabled": False,
        "engine.workers": 0,
    }
    ranks.run(held_up, a_run(digits_dir, **changes), tmp_path / "run", where)
    curves = [values for _, values in points(tmp_path / "run") if SLOWEST in values]
    assert [values[SLOWEST_RANK] for values in curves] == [1, 1, 1]
    for values in curves:
        assert values[SLOWEST] > SLEEP
        assert values[SLOWEST] > 2 * values[OTHERS]  # which wait in the reduction, not in their own part
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    warned = [line["tags"]["pairstream.warning"] for line in lines if "pairstream.warning" in line.get("tags", {})]
    assert warned[-1].count("holds the others up") == 1
    assert f"rank 1 on {platform.node()} holds the others up" in warned[0]


def test_one_rank_has_no_such_curves(digits_dir: Path, tmp_path: Path) -> None:
    from pipeline.train import train

    train(a_run(digits_dir, **{"train.steps": 4, "train.log_every": 2, "tracking.enabled": False}), tmp_path / "run")
    assert not any(SLOWEST in values for _, values in points(tmp_path / "run"))


def test_one_rank_keeps_no_marks_of_its_device() -> None:
    """There is no CUDA here: an event would raise. Of one rank nothing would ever take them."""
    pace = Pace(World(0, 1, 0, torch.device("cuda")), Waiting(iter(())))
    with pace.own():
        pass
    pace.step()
    assert pace.point() == {}


def test_the_slowest_is_compared_with_the_median_of_the_others() -> None:
    assert told([0.2, 0.1, 0.9, 0.3]) == {OTHERS: 0.2, SLOWEST: 0.9, SLOWEST_RANK: 2.0}
    assert told([0.5, 0.1]) == {OTHERS: 0.1, SLOWEST: 0.5, SLOWEST_RANK: 0.0}


def test_only_what_costs_the_others_time_is_told_once() -> None:
    alarms = Alarms(recipe("mnist"), ["a", "b", "c"])

    def point(own: float) -> dict[str, float]:
        return told([0.1, 0.1, own]) | {"speed/steps_per_second": 1.0}

    assert not alarms.look(50, point(1.0))  # once may be chance
    assert not alarms.look(75, {"val/elbo": 1.0})  # a validation in between says nothing of it
    (warning,) = alarms.look(100, point(0.5))
    assert "rank 2 on c holds the others up, 40% of every step" in warning
    assert not alarms.look(150, point(1.0))
    little = Alarms(recipe("mnist"))
    assert not any(little.look(step, point(0.1 + HELD_UP * 0.99)) for step in range(50, 500, 50))
