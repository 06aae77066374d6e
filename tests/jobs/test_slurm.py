"""`pairstream submit slurm` under a SLURM of the test's own: warned, killed and cancelled, a run stays one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.journal import JOURNAL, points
from infra.store import connect, default_uri, runs
from jobs.cli import main
from tests.jobs.sweeps import STEPS as TRIALS
from tests.jobs.sweeps import SWEEP, one_honest_record
from tests.slurm import Slurm, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed (apt install slurm-wlm munge): {missing()}"),
]
STEPS = 1000
COMMAND = [
    "train", "digits", "--steps", str(STEPS), "--train.batch", "20", "--train.log-every", "20",
    "--train.validate-every", "500", "--train.checkpoint-every", "40", "--engine.threads", "1",
]  # fmt: skip
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.fixture(autouse=True)
def place(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, from which jobs are submitted to the cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def answer(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["submit", *words])
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, value


def until(what: str, ready: Callable[[], bool], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not {what} after {seconds} s\n{log.read_text()[-3000:]}"
        time.sleep(0.05)


def reached(out: Path) -> int:
    """The last step whose metrics a run has journalled."""
    return max((step for step, _ in points(out)), default=0) if (out / JOURNAL).exists() else 0


def curve(out: Path) -> list[tuple[int, dict[str, float]]]:
    """Everything in the journal but speed and load of the machine; a point journalled twice would show."""
    return [
        (step, {name: value for name, value in values.items() if not name.startswith(("speed/", "system/"))})
        for step, values in points(out)
    ]


def ranks_of(out: Path) -> list[psutil.Process]:
    """The processes that train in a directory: SLURM's tasks."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "jobs.submitting.process" in words and str(out) in words and "srun" not in words[0]:
            found.append(process)
    return found


def test_warned_then_killed_it_goes_on_by_itself_as_one_run(capsys: Capture, digits_dir: Path, place: Path) -> None:
    """Two ranks: USR1 to the job's shell in mid-run, then kill -9 of a rank. The curve is the undisturbed one's."""
    out = place / "runs" / "requeued"
    command = [*COMMAND, "--data", str(digits_dir)]
    code, job = answer(
        capsys, "slurm", "--ranks", "2", "--time", "10m", "--partition", "main", "--json",
        "--", *command, "--out", str(out),
    )  # fmt: skip
    assert code == 0
    log = Path(job["log"])
    until("at step 60", lambda: reached(out) >= 60, log)
    assert answer(capsys, "status", job["job"], "--json")[1]["state"] == "running"
    subprocess.run(["scancel", "--batch", "--signal=USR1", job["id"]], check=True)
    until("queued again", lambda: "Restarts=1" in described(job["id"]), log)
    saved = reached(out)
    assert saved < STEPS
    until("30 steps further", lambda: reached(out) >= saved + 30, log)
    ranks_of(out)[-1].send_signal(signal.SIGKILL)
    until("queued once more", lambda: "Restarts=2" in described(job["id"]), log)
    until("finished", lambda: answer(capsys, "status", job["job"], "--json")[1]["state"] == "finished", log)
    assert main(["submit", "logs", job["job"]]) == 0
    said = capsys.readouterr().out
    assert "USR1: the job saves and ends" in said
    assert said.count("continue it with --resume") == 1, "it saved once; the kill left it no time"

    undisturbed = place / "runs" / "undisturbed"
    subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command, "--ranks", "2", "--out", str(undisturbed)],
        check=True, capture_output=True,
    )  # fmt: skip
    assert curve(out) == curve(undisturbed)
    (mine,) = (run for run in runs(default_uri()) if run["name"] == "requeued")
    assert mine["status"] == "FINISHED"
    history = connect(default_uri()).get_metric_history(mine["run_id"], "train/objective")
    assert [entry.step for entry in history] == list(range(20, STEPS + 1, 20)), "a step was lost, or came twice"


def described(job: str) -> str:
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout


def test_cancelled_it_saves_and_stays_away_and_the_same_command_goes_on(
    capsys: Capture, digits_dir: Path, place: Path
) -> None:
    out = place / "runs" / "cancelled"
    words = ["slurm", "--time", "10m", "--json", "--", *COMMAND, "--data", str(digits_dir), "--out", str(out)]
    job = answer(capsys, *words)[1]
    until("at step 30", lambda: reached(out) >= 30, Path(job["log"]))
    code, found = answer(capsys, "cancel", job["job"], "--json")
    assert (code, found["state"], found["code"]) == (0, "preempted", 75)
    time.sleep(4)  # a job that was put back would be there again
    assert answer(capsys, "status", job["job"], "--json")[1]["state"] == "preempted"
    assert "Restarts=0" in described(job["id"])
    again = answer(capsys, *words)[1]
    log = Path(again["log"])
    until("finished", lambda: answer(capsys, "status", again["job"], "--json")[1]["state"] == "finished", log)
    assert [step for step, values in points(out) if "train/objective" in values] == list(range(20, STEPS + 1, 20))


def test_waiting_job_leaves_the_queue(capsys: Capture) -> None:
    job = answer(capsys, "slurm", "--options=--begin=now+1hour", "--json", "--", "recipes")[1]
    assert answer(capsys, "status", job["job"], "--json")[1]["state"] == "queued"
    code, found = answer(capsys, "cancel", job["job"], "--json")
    assert (code, found["state"]) == (0, "killed")


def test_job_that_the_user_must_mend_fails_once(capsys: Capture) -> None:
    job = answer(capsys, "slurm", "--json", "--", "inspect", "nowhere")[1]
    log = Path(job["log"])
    until("failed", lambda: answer(capsys, "status", job["job"], "--json")[1]["state"] == "failed", log)
    assert answer(capsys, "status", job["job"], "--json")[1]["code"] == 2
    assert log.read_text().count("is no directory") == 1
    assert "Restarts=0" in described(job["id"])


def test_partition_that_does_not_exist_is_refused(capsys: Capture) -> None:
    assert main(["submit", "slurm", "--partition", "mian", "--", "recipes"]) == 2
    assert "no partition 'mian'; did you mean 'main'?" in capsys.readouterr().err
    assert not os.path.exists("runs")


def test_job_array_shares_a_sweep_and_a_task_that_is_warned_comes_back_alone(
    capsys: Capture, digits_dir: Path, place: Path
) -> None:
    """Two tasks, four trials; USR1 to one task's shell while it trains: the one whose job id is that of the array."""
    sweep = place / SWEEP
    options = [*TRIALS, "--grid", "pairing.fraction=0.05,1", "objective.k=0,1", "--tracking.no-model"]
    words = ["slurm", "--array", "2", "--time", "10m", "--json", "--", "sweep", "digits", "--data", str(digits_dir)]
    job = answer(capsys, *words, *options, "--out", SWEEP)[1]
    log = Path(job["log"]).parent.parent / "1" / "log.txt"

    def tasks() -> dict[str, int]:
        found: dict[str, int] = answer(capsys, "status", job["job"], "--json")[1]["tasks"]
        return found

    def restarts(task: int) -> str:
        return described(f"{job['id']}_{task}").partition("Restarts=")[2].split()[0]

    until("two trials at step 5", lambda: sum(reached(one) >= 5 for one in sweep.glob("0*")) == 2, log)
    assert tasks() == {"running": 2}
    assert f"JobId={job['id']} " in described(f"{job['id']}_1")
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job['id']}_1"], check=True)
    until("queued again", lambda: restarts(1) == "1", log)
    until("finished", lambda: tasks() == {"finished": 2}, log)
    assert answer(capsys, "status", job["job"], "--json")[1]["state"] == "finished"
    assert restarts(0) == "0", "it was not warned"
    one_honest_record(place, 4)
    assert main(["submit", "logs", job["job"]]) == 0
    said = capsys.readouterr().out
    assert said.count("USR1: the job saves and ends") == said.count("told to stop, and saved") == 1
    assert said.count("written: ") == 2, "table and picture, once"
    assert (sweep / "table.csv").read_text().count("MVAE") == 4


def test_job_array_that_is_cancelled_saves_and_stays_away(capsys: Capture, digits_dir: Path, place: Path) -> None:
    """Three tasks where one has room: the others never begin."""
    sweep = place / SWEEP
    options = ["--train.steps", "100000", "--train.batch", "20", "--train.log-every", "5", "--grid", "seed=0,1,2"]
    words = ["slurm", "--array", "3", "--time", "10m", "--json", "--options=--exclusive", "--", "sweep", "digits"]
    job = answer(capsys, *words, "--data", str(digits_dir), *options, "--out", SWEEP)[1]
    log = Path(job["log"]).parent.parent / "0" / "log.txt"
    until("a trial at step 5", lambda: any(reached(one) >= 5 for one in sweep.glob("0*")), log)
    assert answer(capsys, "status", job["job"], "--json")[1]["tasks"] == {"running": 1, "queued": 2}
    code, found = answer(capsys, "cancel", job["job"], "--json")
    assert (code, found["state"], found["code"], found["tasks"]) == (0, "preempted", 75, {"preempted": 1, "killed": 2})
    time.sleep(4)  # a task that was put back would be there again
    assert answer(capsys, "status", job["job"], "--json")[1]["tasks"] == {"preempted": 1, "killed": 2}
