"""Trials trained side by side as one program are a sweep like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.journal import points
from infra.preemption import REQUEUE, StopRequest
from infra.store import runs
from jobs.cli import main
from jobs.tuning.ledger import Ledger

OPTIONS = ["--steps", "90", "--train.batch", "20", "--train.validate-every", "10", "--train.log-every", "10"]
DRAWN = ["--sample", "optim.lr=loguniform:1e-6:1e-2", "--trials", "6", "--metric", "val/elbo"]
PACKED = [*OPTIONS, *DRAWN, "--pack", "3", "--scheduler", "asha"]


@pytest.fixture
def swept(
    tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the sweep with options, and gives its exit code and its last line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def sweep(*options: str) -> tuple[int, dict[str, Any]]:
        code = main(["sweep", "digits", "--data", str(digits_dir), *options, "--out", "runs/sw", "--json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return sweep


def validated(place: Path) -> list[int]:
    return [step for step, values in points(place) if "val/elbo" in values]


@pytest.mark.slow
def test_poor_trials_of_a_pack_end_early_and_free_their_places(
    tmp_path: Path, swept: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    code, told = swept(*PACKED)
    assert (code, told["failed"], len(told["trials"])) == (0, 0, 6)
    ledger = Ledger(tmp_path / "runs/sw")
    endings = {entry.name: ledger.outcome(entry) for entry in ledger.entries}
    stopped = {name for name, outcome in endings.items() if outcome and outcome.ending == "stopped"}
    assert stopped
    assert len(stopped) < 6
    for name, outcome in endings.items():
        assert outcome is not None
        last = validated(tmp_path / "runs/sw" / name)[-1]
        assert last == outcome.step
        assert (last < 90) == (name in stopped)
        assert ("test/elbo" in outcome.metrics) == (name not in stopped), "test data are for those that finish"
    rates = {entry.name: entry.cell["optim.lr"] for entry in ledger.entries}
    slowest = min(rates, key=lambda name: rates[name])
    assert slowest in stopped, f"a learning rate of {rates[slowest]} is not the way"
    assert {run["status"] for run in runs(f"sqlite:///{tmp_path}/runs/mlflow.db")} == {"FINISHED"}


@pytest.mark.slow
def test_a_pack_that_was_cut_goes_on_with_what_its_trials_had_said(
    tmp_path: Path, swept: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = StopRequest.asked, []

    def at_once(self: StopRequest) -> bool:
        asked.append(True)
        return len(asked) > 60

    monkeypatch.setattr(StopRequest, "asked", property(at_once, lambda self, value: None))
    code, told = swept(*PACKED)
    assert (code, told["cut"]) == (REQUEUE, True)
    monkeypatch.setattr(StopRequest, "asked", whole)
    before = Ledger(tmp_path / "runs/sw")
    ended = {e.name: validated(tmp_path / "runs/sw" / e.name) for e in before.entries if before.over(e)}
    code, told = swept("--resume", "--pack", "3")
    assert (code, told["cut"], len(told["trials"])) == (0, False, 6)
    for name, steps in ended.items():
        assert validated(tmp_path / "runs/sw" / name) == steps, "it was trained again"
    endings = [outcome.ending for entry in before.entries if (outcome := Ledger(before.directory).outcome(entry))]
    assert "stopped" in endings
    for entry in Ledger(before.directory).entries:
        steps = validated(before.directory / entry.name)
        assert steps == sorted(set(steps))
