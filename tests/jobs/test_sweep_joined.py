"""A sweep that processes share without Ray: every trial is trained once, whoever is killed or told to stop."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from infra.errors import UserError
from infra.journal import JOURNAL
from infra.preemption import REQUEUE, StopRequest
from jobs.cli import main
from jobs.sweep import read
from jobs.tuning import joined
from jobs.tuning.joined import ATTEMPTS, CLAIM, Joined, begin, join
from jobs.tuning.ledger import OUTCOME, TRIALS, Ledger, Outcome, end, outcome_in
from jobs.tuning.parent import at_work
from pipeline.config import Run
from pipeline.recipes.sweep import Sweep
from tests.jobs.sweeps import KEEPING, STEPS, SWEEP, checkpoints_of, one_honest_record, until

Start = Callable[..., "subprocess.Popen[str]"]
GRID = ["--grid", "pairing.fraction=0.05,1", "objective.k=0,1"]


def said(process: subprocess.Popen[str], code: int = 0) -> dict[str, object]:
    """The last line of a process that has ended with this code."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"{out}\n{err}"
    value: dict[str, object] = json.loads(out.splitlines()[-1])
    return value


def begun(sweep: Path) -> dict[Path, dict[str, int]]:
    """The trials at work that have a checkpoint, and their checkpoints."""
    places = [place for place in sweep.glob("0*") if not (place / OUTCOME).exists()]
    return {place: found for place in places if (found := checkpoints_of(place))}


@pytest.mark.slow
def test_two_share_a_sweep_one_is_killed_one_told_to_stop_and_a_third_ends_it(
    sweep_digits: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started at the same moment, so that both would begin the sweep. None of them imports Ray."""
    (tmp_path / "no" / "ray").mkdir(parents=True)
    (tmp_path / "no" / "ray" / "__init__.py").write_text("raise RuntimeError('Ray was imported')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "no"), os.environ.get("PYTHONPATH", "")]))
    sweep, command = tmp_path / SWEEP, [*STEPS, *KEEPING, *GRID, "--join"]
    both = [sweep_digits(*command), sweep_digits(*command)]
    until(lambda: len(begun(sweep)) == 2 or any(one.poll() is not None for one in both), both[0])
    both[0].kill()
    both[1].send_signal(signal.SIGUSR1)
    assert both[0].wait() == -signal.SIGKILL
    assert said(both[1], REQUEUE)["cut"] is True
    cut = begun(sweep)
    assert cut
    over = {place: (place / JOURNAL).read_text() for place in sweep.glob("0*") if (place / OUTCOME).exists()}
    attempts = sorted((place / ATTEMPTS).read_text() for place in cut)
    assert attempts in (["0\n", "1\n"], ["1\n"], ["0\n"]), "who was told to stop has not failed"
    last = [sweep_digits("--resume", "--join"), sweep_digits(*command)]
    told = [said(one) for one in last]
    assert sorted("trials" in one for one in told) == [False, True], "one of them concludes, and once"
    one_honest_record(tmp_path, 4)
    for place, checkpoints in cut.items():
        assert checkpoints.items() <= checkpoints_of(place).items(), "it was begun anew from step 0"
    for place, journal in over.items():
        assert (place / JOURNAL).read_text().count("RUNNING") == journal.count("RUNNING"), "it was run again"
    assert {trial["pairs"] for one in told for trial in one.get("trials", [])} == {63, 1258}  # type: ignore[attr-defined]
    assert said(sweep_digits(*command)) == {"sweep": str(sweep), "trained": [], "elsewhere": []}
    assert (sweep / JOURNAL).read_text().count('"FINISHED"') == 1


DONE = Outcome("finished", 120, {"val/elbo": -30.0, "test/elbo": -31.0}, 63)


@pytest.fixture
def plan(tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of three trials in runs/sw, begun."""
    monkeypatch.chdir(tmp_path)
    options = ["--grid", "objective.k=0,1,2", "--metric", "val/elbo", "--tracking.no-enabled", "--out", SWEEP, "--join"]
    asked = read(["digits", "--data", str(digits_dir), *options])
    begun = begin(asked.plan, tmp_path / SWEEP, known=False)
    assert begun is not None
    assert begun.columns, "it is what others read"
    return begun


@pytest.fixture
def shared(plan: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Joined]:
    """Joins the sweep; the training is stood in for by a function of the trial's k."""

    def joins(train: Callable[[int], Outcome | None], retries: int = 1) -> Joined:
        def work(run: Run, directory: Path, setting: Any) -> Outcome | None:
            return train(run.objective.k)

        monkeypatch.setattr(joined, "work", work)
        return join(plan, tmp_path / SWEEP, retries, 0, "pairstream sweep digits")

    return joins


def places(sweep: Path) -> list[Path]:
    return [sweep / entry.name for entry in Ledger(sweep).entries]


def test_what_fails_is_tried_again_after_the_others_and_then_stays_failed(
    shared: Callable[..., Joined], tmp_path: Path
) -> None:
    order = []

    def train(k: int) -> Outcome:
        order.append(k)
        if k == 0:
            raise ValueError("boom")
        return DONE

    ended = shared(train).ended
    assert order == [0, 1, 2, 0]
    assert ended is not None
    assert (ended.code, [trial.error for trial in ended.failed]) == (1, ["ValueError: boom"])
    assert "boom" in (tmp_path / SWEEP / "table.csv").read_text()
    assert shared(train) == Joined([], [], None), "another process neither tries again nor concludes again"
    assert shared(train, retries=2) == Joined([], [], None), "the outcome is the same, and so is the table"
    again = shared(lambda k: DONE, retries=3)
    assert again.trained == ["000-k0"]
    assert again.ended is not None
    assert again.ended.code == 0
    assert order == [0, 1, 2, 0, 0]


def test_a_trial_that_takes_its_process_along_each_time_is_given_up(
    shared: Callable[..., Joined], tmp_path: Path
) -> None:
    place = places(tmp_path / SWEEP)[1]
    place.mkdir()
    (place / ATTEMPTS).write_text("2\n")
    trained = []
    ended = shared(lambda k: (trained.append(k), DONE)[1]).ended
    assert trained == [0, 2]
    assert ended is not None
    assert [trial.error for trial in ended.failed] == ["was lost with its process, 2 times"]


def test_a_trial_that_another_has_is_left_alone_and_who_ends_last_concludes(
    shared: Callable[..., Joined], tmp_path: Path
) -> None:
    place = places(tmp_path / SWEEP)[1]
    place.mkdir()
    with FileLock(place / CLAIM):
        assert shared(lambda k: DONE) == Joined(["000-k0", "002-k2"], ["001-k1"], None)
        assert not (tmp_path / SWEEP / "table.csv").exists()
    last = shared(lambda k: DONE)
    assert last.trained == ["001-k1"]
    assert last.ended


def test_a_trial_that_ends_elsewhere_while_we_reach_for_it_is_not_trained_again(
    shared: Callable[..., Joined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(FileLock):  # type: ignore[misc, valid-type]
        def acquire(self, *args: Any, **options: Any) -> Any:
            end(Path(self.lock_file).parent, DONE)
            return super().acquire(*args, **options)

    monkeypatch.setattr(joined, "FileLock", Late)
    trained: list[int] = []
    assert shared(lambda k: (trained.append(k), DONE)[1]).ended
    assert trained == []


def test_told_to_stop_it_gives_the_attempt_back(shared: Callable[..., Joined], tmp_path: Path) -> None:
    place = places(tmp_path / SWEEP)[0]

    def saves(k: int) -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.asked

    def evaluates(k: int) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("nothing is to be saved: it ends at once")

    def has_ended(k: int) -> Outcome:
        saves(k)  # in the last words of the training
        return DONE

    for train, over in ((saves, False), (evaluates, False), (has_ended, True)):
        with pytest.raises(SystemExit) as stopped:
            shared(train)
        assert stopped.value.code == REQUEUE
        assert (place / ATTEMPTS).read_text() == ("1\n" if over else "0\n")
        assert (outcome_in(place) is not None) == over
    assert not places(tmp_path / SWEEP)[1].exists(), "it took another trial"
    with FileLock(place / CLAIM).acquire(timeout=0):
        pass


def test_told_to_stop_as_it_writes_the_outcome_it_gives_the_attempt_back(
    shared: Callable[..., Joined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: object) -> None:
        raise SystemExit(REQUEUE)

    with monkeypatch.context() as patch:
        patch.setattr(joined, "end", told)
        with pytest.raises(SystemExit):
            shared(lambda k: DONE)
    assert (places(tmp_path / SWEEP)[0] / ATTEMPTS).read_text() == "0\n"
    ended = shared(lambda k: DONE, retries=0).ended
    assert ended
    assert not ended.failed


def test_without_locks_nothing_is_shared_and_a_driver_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match=r"no locks .* choose another --out"):
        at_work(tmp_path, joined=True).__enter__()
    with at_work(tmp_path, joined=False):
        pass


def test_the_sweep_is_begun_once_and_whole(plan: Sweep, tmp_path: Path) -> None:
    sweep = tmp_path / SWEEP
    whole = (sweep / TRIALS).read_text()
    assert begin(plan, sweep, known=False) is None, "who did not know of it has to read what it is"
    assert begin(plan, sweep, known=True)
    assert (sweep / TRIALS).read_text() == whole
    (sweep / TRIALS).write_text(whole[: len(whole) // 2])
    assert begin(plan, sweep, known=True), "killed in the midst of it"
    assert (sweep / TRIALS).read_text() == whole
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than a sweep"):
        begin(plan, tmp_path / "other", known=False)


@pytest.mark.parametrize("metric", ["val/coherence/parts_given_top", "val/synergy/parts"])
def test_an_oracle_may_choose_the_best_trial(
    metric: str, tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--grid", "objective.k=0,1", "--metric", metric, "--tracking.no-enabled", "--out", SWEEP]
    asked = read(["digits", "--data", str(digits_dir), *options])
    begun = begin(asked.plan, tmp_path / SWEEP, known=False)
    assert begun is not None
    assert (begun.metric, begun.run.train.best) == (metric, metric)
    with pytest.raises(UserError, match="no validation metric 'val/synergy/part'; did you mean 'val/synergy/parts'"):
        begin(replace(asked.plan, metric="val/synergy/part"), tmp_path / "other", known=False)


def test_drivers_and_those_that_join_keep_out_of_each_other_s_way(tmp_path: Path) -> None:
    with at_work(tmp_path, joined=True), at_work(tmp_path, joined=True), pytest.raises(UserError, match="with --join"):
        at_work(tmp_path, joined=False).__enter__()
    with at_work(tmp_path, joined=False):
        for joins in (True, False):
            with pytest.raises(UserError, match="other processes are at work"), at_work(tmp_path, joined=joins):
                pass


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--join", "--join needs --out DIR, which all processes name"),
        ("--out sw --join --sample optim.lr=uniform:1e-4:1e-3 --trials 3 --scheduler asha", "known beforehand"),
        ("--out sw --join --sample optim.lr=uniform:1e-4:1e-3 --trials 3 --search optuna", "known beforehand"),
        ("--out sw --join --pack 2", "leave --pack, --ranks, --ray, --hours and --gpus away"),
        ("--out sw --join --ranks 2", "leave --pack, --ranks, --ray, --hours and --gpus away"),
        ("--out sw --join --resume", "there is no sweep to resume in sw"),
    ],
)
def test_what_cannot_be_shared_is_a_sentence(
    options: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "digits", *options.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("sw").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--over", "supervision"],
        ["--sample", "optim.lr=loguniform:1e-5:1e-2", "--trials", "3", "--metric", "val/elbo"],
        ["--grid", "objective.k=0,1", "--steps", "30"],
    ],
)
def test_the_same_command_joins_whatever_it_sweeps(
    options: list[str], tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["digits", "--data", str(digits_dir), *options, "--tracking.no-enabled", "--out", "sw", "--join"]
    first = read(words)
    assert begin(first.plan, first.directory, first.known)
    again = read(words)
    assert again.known
    cells = [[asked.plan.cell(number) for number in range(asked.plan.total)] for asked in (first, again)]
    assert cells[0] == cells[1] == [entry.cell for entry in Ledger(first.directory).entries]


def test_another_sweep_under_the_same_name_is_refused(plan: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["sweep", "digits", "--tracking.no-enabled", "--out", SWEEP, "--join"]
    for options, sentence in (
        (["--grid", "objective.k=0,5"], "the grid of"),
        (["--over", "lambda"], "the over of"),
        (["--grid", "objective.k=0,1,2", "--optim.lr", "1"], "optim.lr was"),
    ):
        assert main([*base, *options]) == 2
        assert sentence in capsys.readouterr().err
