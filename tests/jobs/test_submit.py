"""`pairstream submit`: jobs in the background of this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.submitted import RECORDS
from jobs.submitting.local import process

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test submits from a directory of its own, and leaves no job behind."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for file in RECORDS.glob("*/job.json"):
        record = json.loads(file.read_text())
        if process(record["id"]) == (True, record["started"]):
            os.kill(record["id"], signal.SIGKILL)


def answer(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `pairstream submit …` and the JSON object that it closed with."""
    code = main(["submit", *words])
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, value


def start(capsys: Capture, *inner: str) -> str:
    """Submit a job; returns its id."""
    code, job = answer(capsys, "local", "--json", "--", *inner)
    assert code == 0
    return str(job["job"])


def state_after(capsys: Capture, job: str, seconds: float = 20) -> dict[str, Any]:
    """The job once it has ended."""
    deadline = time.monotonic() + seconds
    while (found := answer(capsys, "status", job, "--json")[1])["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def waiting_job(capsys: Capture, place: Path) -> dict[str, Any]:
    """A submitted job that waits for ever: it reads its configuration from a pipe into which nobody writes."""
    (place / "run").mkdir()
    os.mkfifo(place / "run" / "run.json")
    job = start(capsys, "train", "digits", "--resume", "--out", str(place / "run"))
    return answer(capsys, "status", job, "--json")[1]


def record_of(other: subprocess.Popen[bytes], **changes: Any) -> str:
    """A record whose process is this one; returns the job's id."""
    directory = RECORDS / "other"
    directory.mkdir(parents=True)
    (directory / "log.txt").touch()
    record = {
        "backend": "local", "command": ["recipes"], "id": other.pid, "started": process(other.pid)[1],
        "host": os.uname().nodename, "submitted": "2026-01-31T12:00:00+00:00",
    }  # fmt: skip
    (directory / "job.json").write_text(json.dumps(record | changes))
    return directory.name


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A process that TERM does not end."""
    command = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        yield other
        other.kill()


def test_submitted_job_finishes_and_its_log_holds_what_it_printed(capsys: Capture) -> None:
    job = start(capsys, "recipes", "--json")
    found = state_after(capsys, job)
    assert (found["state"], found["code"]) == ("finished", 0)
    assert found["command"] == ["recipes", "--json"], "--json after -- belongs to the job"
    assert main(["submit", "logs", job, "--follow"]) == 0
    log = capsys.readouterr().out
    assert "pairstream train digits" in log
    assert "digits" in json.loads(log.splitlines()[-1])["recipes"]
    assert answer(capsys, "logs", job, "--json")[1]["state"] == "finished"
    code, everything = answer(capsys, "status", "--json")
    assert (code, [entry["job"] for entry in everything["jobs"]]) == (0, [job])
    assert main(["submit", "cancel", job]) == 0
    assert "had ended already: finished" in capsys.readouterr().out


def test_job_that_cannot_work_has_failed_with_its_exit_code(capsys: Capture) -> None:
    both = [start(capsys, "inspect", "nowhere"), start(capsys, "recipes", "--bogus")]
    for job in both:
        found = state_after(capsys, job)
        assert (found["state"], found["code"]) == ("failed", 2)
    main(["submit", "logs", both[0]])
    assert "nowhere" in capsys.readouterr().out
    main(["submit", "status", both[0]])
    assert "failed (2)" in capsys.readouterr().out


def test_kill_9_is_told_from_running(capsys: Capture, place: Path) -> None:
    job = waiting_job(capsys, place)
    assert job["state"] == "running"
    assert os.getsid(job["id"]) == job["id"], "the job must outlive the shell's session"
    os.kill(job["id"], signal.SIGKILL)
    found = state_after(capsys, job["job"])
    assert (found["state"], found["code"]) == ("killed", None)


def test_cancel_ends_a_job_that_has_nothing_to_save(capsys: Capture, place: Path) -> None:
    job = waiting_job(capsys, place)
    code, found = answer(capsys, "cancel", job["job"], "--timeout", "10", "--json")
    assert (code, found["state"]) == (0, "killed")


def test_cancel_says_so_when_the_job_goes_on(capsys: Capture, stubborn: subprocess.Popen[bytes]) -> None:
    job = record_of(stubborn)
    assert main(["submit", "cancel", job, "--timeout", "0.2"]) == 1
    assert "has not yet ended after 0.2 s" in capsys.readouterr().out
    assert answer(capsys, "status", job, "--json")[1]["state"] == "running"


@pytest.mark.parametrize("other_start", ["", "another-boot:1"])
def test_cancel_never_signals_a_process_that_is_not_the_jobs(capsys: Capture, other_start: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        job = record_of(other, started=other_start)
        assert main(["submit", "cancel", job]) == 0
        assert "had ended already: killed" in capsys.readouterr().out
        time.sleep(0.1)
        assert other.poll() is None
        other.kill()


def test_job_of_another_machine_is_unknown_and_left_alone(capsys: Capture) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        job = record_of(other, host="elsewhere")
        assert answer(capsys, "status", job, "--json")[1]["state"] == "unknown"
        assert main(["submit", "cancel", job]) == 2
        assert "started on elsewhere" in capsys.readouterr().err
        assert other.poll() is None
        other.kill()


def test_dry_run_starts_nothing(capsys: Capture) -> None:
    code, job = answer(capsys, "local", "--dry-run", "--json", "--", "train", "digits", "--optim.lr", "1e-4")
    assert (code, job["id"], job["dry_run"]) == (0, None, True)
    assert job["command"] == ["train", "digits", "--optim.lr", "1e-4"]
    assert job["log"].endswith("log.txt")
    assert "train digits" in job["submits"]
    assert not RECORDS.exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "needs a target or command first"),
        ("locl -- train digits", "did you mean 'local'"),
        ("train digits", "pairstream submit local -- train digits"),
        ("local train digits", "the job comes after"),
        ("local", "needs the job after --"),
        ("local --", "needs the job after --"),
        ("local -- trian digits", "did you mean 'train'?"),
        ("local -- train digit", "did you mean 'digits' or"),
        ("local -- sweep digit", "did you mean 'digits' or"),
        ("local -- train --ranks 2", "needs a recipe first"),
        ("local -- submit local -- recipes", "cannot submit itself"),
        ("status nothing", "no submitted job under runs/jobs/"),
        ("logs", "no submitted job under runs/jobs/"),
        ("cancel", "no submitted job under runs/jobs/"),
    ],
)
def test_bad_input_is_a_sentence_and_starts_nothing(capsys: Capture, line: str, sentence: str) -> None:
    assert main(["submit", *line.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not RECORDS.exists()


def test_unknown_job_names_the_nearest(capsys: Capture, stubborn: subprocess.Popen[bytes]) -> None:
    record_of(stubborn)
    for line, sentence in (
        ("status othr", "did you mean 'other'?"),
        ("cancel", "name a job: the latest here are other"),
    ):
        assert main(["submit", *line.split()]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_cancelled_training_saves_and_goes_on_with_resume(capsys: Capture, place: Path, digits_dir: Path) -> None:
    out = place / "run"
    options = ["--data", str(digits_dir), "--out", str(out), "--engine.threads", "1", "--tracking.no-enabled"]
    command = ["train", "digits", "--steps", "1000000", *options]
    saved = [0]
    for extra in ([], ["--resume"]):
        job = start(capsys, *command, *extra)
        deadline = time.monotonic() + 60
        while last_step(out / "journal.jsonl") <= saved[-1] and time.monotonic() < deadline:
            assert answer(capsys, "status", job, "--json")[1]["state"] == "running"
            time.sleep(0.1)
        code, found = answer(capsys, "cancel", job, "--timeout", "60", "--json")
        assert (code, found["state"], found["code"]) == (0, "preempted", 75)
        main(["submit", "status", job])
        assert "--resume" in capsys.readouterr().out
        saved.append(
            max(int(path.parent.name.removeprefix("step_")) for path in out.glob("checkpoints/*/COMPLETE.json"))
        )
    assert 0 < saved[1] < saved[2]


def last_step(journal: Path) -> int:
    """The last step whose metrics a run has journalled, 0 before the first."""
    text = journal.read_text() if journal.exists() else ""
    return max(map(int, re.findall(r'"step": ?(\d+)', text)), default=0)
