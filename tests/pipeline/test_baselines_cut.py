"""A baseline's training that was cut goes on from its last checkpoint and comes to the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from pipeline.baselines import BASELINES, Fitting, fitting
from pipeline.baselines.fitting import OnStep, Show
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate.scored import Scored
from tests.pipeline.baselines import a_run


class Cut(Exception):
    """Somebody has ended it."""


@pytest.fixture(autouse=True)
def _a_checkpoint_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SECONDS", 0.0)


def seen(steps: list[int], cut: int = -1) -> Show:
    """Puts down the steps that are taken, up to a cut."""

    @contextmanager
    def show(total: int, name: str) -> Iterator[OnStep]:
        def on_step(step: int, loss: float) -> None:
            steps.append(step)
            assert math.isfinite(loss)
            assert step <= total
            if step == cut:
                raise Cut

        yield on_step

    return show


def scores(name: str, run: Run, fitting: Fitting) -> Scored:
    return BASELINES[name].scores(check_data(run), [run], "label", "bottom", "test", fitting)[0]


@pytest.mark.parametrize("cut", [8, 17])
@pytest.mark.parametrize("name", ["network", "autoencoder", "vae"])
def test_what_was_cut_goes_on_and_comes_to_the_same(name: str, cut: int, digits_dir: Path, tmp_path: Path) -> None:
    run = a_run(digits_dir, 0.5, **{"optim.decay": 0.5, "model.latent": 4})  # 13 steps an epoch, or 7 of the pairs
    once, before, after = [], [], []
    whole = scores(name, run, Fitting(2, show=seen(once)))
    with pytest.raises(Cut):
        scores(name, run, Fitting(2, tmp_path, seen(before, cut)))
    assert Fitting(2, tmp_path).share(run) == (cut - 1) / len(once)
    assert scores(name, run, Fitting(2, tmp_path, seen(after))) == whole
    assert before[:-1] + after == once
    assert Fitting(2, tmp_path / "other").share(run) == 0


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_the_best_validation_outlasts_a_cut(cut: int, digits_dir: Path, tmp_path: Path) -> None:
    """Before it, at it (the first after ten steps), and after it, in the middle of an epoch and at its end."""
    run, data = a_run(digits_dir, **{"train.batch": 5}), torch.randn(10, 3)

    def fitted(fits: Fitting) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
        at, best = [Tensor()], {}

        def loss(chosen: Tensor, step: int) -> Tensor:
            at[0] = torch.tensor(step + 1)
            return net(data[chosen]).square().mean()

        def score() -> float:
            best[int(at[0])] = [parameter.detach().clone() for parameter in net.parameters()]
            return {10: 0.2, 20: 0.9, 30: 0.5}[int(at[0])]

        fitting.fit(net, loss, 10, run, fits, "test", score)
        assert cut > 20 or all(map(torch.equal, net.parameters(), best[20]))
        return [parameter.detach() for parameter in net.parameters()]

    whole = fitted(Fitting(15))
    with pytest.raises(Cut):
        fitted(Fitting(15, tmp_path, seen([], cut)))
    assert all(map(torch.equal, fitted(Fitting(15, tmp_path, seen([]))), whole))


def test_a_damaged_checkpoint_is_passed_over_and_named(
    digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, steps = a_run(digits_dir), []
    with pytest.raises(Cut):
        scores("network", run, Fitting(2, tmp_path, seen([], 5)))
    (newest,) = tmp_path.glob("*/step_4/model.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert scores("network", run, Fitting(2, tmp_path, seen(steps))) == scores("network", run, Fitting(2))
    assert steps[0] == 4
    assert "step_4 is damaged: model.safetensors is not what was saved; falling back" in capsys.readouterr().err


def test_nothing_is_kept_unless_asked(digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(fitting.State, "save", never)
    scores("network", a_run(digits_dir), Fitting(1))
    monkeypatch.setattr(fitting, "SECONDS", 1000.0)
    scores("network", a_run(digits_dir), Fitting(1, tmp_path))
    assert not any(tmp_path.iterdir())
