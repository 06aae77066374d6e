"""A sweep that is killed (its driver, a trial) goes on: nothing is trained twice, no child of its run is doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.journal import JOURNAL, points
from infra.preemption import REQUEUE
from infra.store import runs
from jobs.tuning.ledger import Ledger
from jobs.tuning.trial import told_in

pytestmark = pytest.mark.slow
SAMPLE = ["--sample", "objective.lambda.label=loguniform:0.1:100", "optim.lr=loguniform:1e-5:1e-2"]
STEPS = ["--train.steps", "200", "--train.batch", "20", "--train.validate-every", "20", "--train.log-every", "5"]


def command(place: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "sweep", "digits", *options, "--out", "runs/sw", "--json"]


def started(place: Path, *options: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        command(place, *options), cwd=place, env=environment | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, f"{out}\n{err}"
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("it never came to that")


def points_of(sweep: Path, name: str) -> list[int]:
    return [step for step, values in points(sweep / name) if "train/elbo" in values]


def one_honest_record(place: Path, trials: int, jumps: bool = False) -> None:
    """One parent, a child per trial, every child's curve whole, each step once; `jumps`: weights come from others that
    were further."""
    sweep, store = place / "runs/sw", runs(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    (parent,) = [run for run in store if run["parent"] is None]
    children = [run for run in store if run["parent"] == parent["identity"]]
    ledger = Ledger(sweep)
    assert sorted(run["name"] for run in children) == [entry.name for entry in ledger.entries]
    assert len(children) == trials
    assert {run["status"] for run in store} == {"FINISHED"}
    for entry in ledger.entries:
        outcome = ledger.outcome(entry)
        assert outcome is not None
        assert not outcome.error
        steps = points_of(sweep, entry.name)
        assert steps == sorted(set(steps))
        assert jumps or steps == list(range(5, steps[-1] + 1, 5)), "a point is missing"


@pytest.mark.parametrize(("scheduler", "number"), [("asha", signal.SIGKILL), ("none", signal.SIGTERM)])
def test_a_killed_driver(scheduler: str, number: signal.Signals, tmp_path: Path, digits_dir: Path) -> None:
    sweep = tmp_path / "runs/sw"
    first = started(tmp_path, "--data", str(digits_dir), *STEPS, *SAMPLE, "--trials", "5", "--scheduler", scheduler)

    def one_over_and_one_begun() -> bool:
        ledger = Ledger(sweep) if sweep.exists() else None
        ends = [ledger.outcome(entry) is not None for entry in ledger.entries] if ledger else []
        return any(ends) and len(ends) > sum(ends)

    until(one_over_and_one_begun, first)
    first.send_signal(number)
    assert first.wait(120) == (REQUEUE if number == signal.SIGTERM else -number)
    before = Ledger(sweep)
    ended = {
        entry.name: (sweep / entry.name / JOURNAL).read_text() for entry in before.entries if before.outcome(entry)
    }
    result = finished(started(tmp_path, "--resume"))
    assert len(result["trials"]) == 5
    assert Ledger(sweep).entries[: len(before.entries)] == before.entries
    for name, journal in ended.items():
        now = (sweep / name / JOURNAL).read_text()
        assert now.count("train/elbo") == journal.count("train/elbo"), "it was trained again"
    one_honest_record(tmp_path, 5)
    once_more = finished(started(tmp_path, "--resume"))
    assert [trial["metrics"] for trial in once_more["trials"]] == [trial["metrics"] for trial in result["trials"]]


def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path: Path, digits_dir: Path) -> None:
    sweep = tmp_path / "runs/sw"
    saving = ["--train.checkpoint-every", "20"]
    driver = started(tmp_path, "--data", str(digits_dir), *STEPS, *saving, *SAMPLE, "--trials", "2")
    until(lambda: any(sweep.glob("*/checkpoints/step_*")), driver)
    workers = [one for one in psutil.Process(driver.pid).children(recursive=True) if "ImplicitFunc" in one.name()]
    workers += [
        one
        for one in psutil.process_iter(["cmdline"])
        if not workers and "ImplicitFunc" in " ".join(one.info["cmdline"] or [])
    ]
    assert workers, "no trial is at work"
    workers[0].kill()
    result = finished(driver)
    assert [trial["error"] for trial in result["trials"]] == ["", ""]
    one_honest_record(tmp_path, 2)


def test_population_based_training_tells_what_it_has_changed(tmp_path: Path, digits_dir: Path) -> None:
    saving = ["--train.checkpoint-every", "20"]
    options = ["--data", str(digits_dir), *STEPS, *saving, *SAMPLE, "--trials", "4", "--scheduler", "pbt"]
    result = finished(started(tmp_path, *options))
    assert [trial["error"] for trial in result["trials"]] == [""] * 4
    one_honest_record(tmp_path, 4, jumps=True)
    sweep, store = tmp_path / "runs/sw", runs(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    changed = {entry.name: told_in(sweep / entry.name).changed for entry in Ledger(sweep).entries}
    assert any(changed.values()), "poor trials took over nothing"
    for run in store:
        now = changed.get(run["name"])
        if now:
            assert float(run["tags"]["changed.optim.lr"]) == now["optim.lr"]
            assert run["params"]["optim.lr"] != run["tags"]["changed.optim.lr"], "what it began with stays"
