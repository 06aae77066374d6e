"""A sweep that is killed (its driver, a trial) goes on: nothing is trained twice, no child of its run is doubled."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.journal import JOURNAL
from infra.preemption import REQUEUE
from infra.store import runs
from infra.tracking import SHIPPED
from jobs.tuning.ledger import OUTCOME, Ledger
from jobs.tuning.trial import told_in
from tests.jobs.sweeps import KEEPING, SAMPLE, STEPS, SWEEP, checkpoints_of, finished, one_honest_record, until

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.mark.parametrize(("scheduler", "number", "trials"), [("asha", signal.SIGKILL, 4), ("none", signal.SIGTERM, 3)])
def test_a_killed_driver(
    scheduler: str, number: signal.Signals, trials: int, sweep_digits: Start, tmp_path: Path
) -> None:
    sweep = tmp_path / SWEEP
    first = sweep_digits(*STEPS, *KEEPING, *SAMPLE, "--trials", str(trials), "--scheduler", scheduler)

    def one_over_and_one_begun() -> bool:
        ledger = Ledger(sweep) if sweep.exists() else None
        over = {entry.name: ledger.outcome(entry) is not None for entry in ledger.entries} if ledger else {}
        begun = [sweep / name for name in over if not over[name]]
        stored = any(checkpoints_of(place) and (place / SHIPPED).exists() for place in begun)  # it has a child by now
        return any(over.values()) and stored

    until(one_over_and_one_begun, first)
    first.send_signal(number)
    assert first.wait(120) == (REQUEUE if number == signal.SIGTERM else -number)
    before = Ledger(sweep)
    known = {sweep / entry.name: checkpoints_of(sweep / entry.name) for entry in before.entries}
    ended = {
        entry.name: (sweep / entry.name / JOURNAL).read_text() for entry in before.entries if before.outcome(entry)
    }
    for shipped in sweep.rglob(SHIPPED):  # as where the kill comes before it is written
        shipped.unlink()
    result = finished(sweep_digits("--resume"))
    assert len(result["trials"]) == trials
    assert Ledger(sweep).entries[: len(before.entries)] == before.entries
    for name, journal in ended.items():
        now = (sweep / name / JOURNAL).read_text()
        assert now.count("RUNNING") == journal.count("RUNNING"), "it was run again"
    for place, checkpoints in known.items():
        assert checkpoints.items() <= checkpoints_of(place).items(), "it was begun anew from step 0"
    one_honest_record(tmp_path, trials)
    if scheduler == "asha":
        again = finished(sweep_digits("--resume"))
        assert [trial["metrics"] for trial in again["trials"]] == [trial["metrics"] for trial in result["trials"]]


def test_a_killed_trial_goes_on_from_its_checkpoint(sweep_digits: Start, tmp_path: Path) -> None:
    sweep = tmp_path / SWEEP
    driver = sweep_digits(*STEPS, *KEEPING, *SAMPLE, "--trials", "2")

    def at_work() -> dict[Path, dict[str, int]]:
        found = {place: checkpoints_of(place) for place in sweep.glob("0*") if not (place / OUTCOME).exists()}
        return {place: checkpoints for place, checkpoints in found.items() if len(checkpoints) >= 2}

    until(lambda: bool(at_work()), driver)
    below = psutil.Process(driver.pid).children(recursive=True)
    workers = [one for one in below if "ImplicitFunc" in " ".join(one.cmdline())]
    assert workers, "no trial is at work"
    for worker in workers:
        worker.kill()
    known = at_work()
    assert known
    result = finished(driver)
    assert [trial["error"] for trial in result["trials"]] == ["", ""]
    for place, checkpoints in known.items():
        assert checkpoints.items() <= checkpoints_of(place).items(), "it was begun anew from step 0"
    one_honest_record(tmp_path, 2)


def test_population_based_training_tells_what_it_has_changed(sweep_digits: Start, tmp_path: Path) -> None:
    """Also of what it had changed before its driver was killed."""
    sweep = tmp_path / SWEEP
    steps = ["--train.steps", "200"]
    first = sweep_digits(*STEPS, *steps, *KEEPING, *SAMPLE, "--trials", "4", "--scheduler", "pbt")
    until(lambda: any(told_in(place).changed for place in sweep.glob("0*")), first)
    first.kill()
    first.wait()
    for shipped in sweep.rglob(SHIPPED):
        shipped.unlink()
    result = finished(sweep_digits("--resume"))
    assert [trial["error"] for trial in result["trials"]] == [""] * 4
    one_honest_record(tmp_path, 4, jumps=True)
    store = runs(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    changed = {entry.name: told_in(sweep / entry.name).changed for entry in Ledger(sweep).entries}
    assert any(changed.values()), "poor trials took over nothing"
    for run in store:
        now = changed.get(run["name"])
        if now:
            assert float(run["tags"]["changed.optim.lr"]) == now["optim.lr"]
            assert run["params"]["optim.lr"] != run["tags"]["changed.optim.lr"], "what it began with stays"
            assert run["metrics"]["settings/optim.lr"] == now["optim.lr"]
