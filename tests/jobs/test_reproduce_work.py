"""What counts as done: not half a training, half a file, or a number of rows that nobody wrote down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from infra.preemption import StopAtOnce
from infra.store import default_uri, runs
from jobs.cli import main
from pipeline.baselines import BASELINES, Fitting, fitting
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate.run import evaluate_run
from pipeline.evaluate.scored import Scored
from pipeline.reproduce import archive
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.work import Fitted, Trained
from pipeline.train import train

METRIC = "accuracy/label_given_top"
ROOT = Path("runs/reproduce")
pytestmark = pytest.mark.usefixtures("digits_place")


@pytest.fixture
def work() -> Trained:
    return Trained(lasting("digits", 1.0), (METRIC,), studies=())


def evaluated_in_its_midst(work: Trained) -> Path:
    """The directory of a training that was cut off, and evaluated there."""
    directory = work.directory(ROOT)
    directory.mkdir(parents=True)

    def stop(step: int, _: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(work.run, directory, on_step=stop)
    evaluate_run(directory, run=work.run, studies=())
    return directory


def test_an_evaluation_in_the_midst_of_a_training_is_not_its_result(work: Trained) -> None:
    evaluated_in_its_midst(work)
    assert work.done(ROOT) is None
    work.do(ROOT)
    assert work.share(ROOT) == 1
    assert work.done(ROOT) is not None


@pytest.mark.parametrize("left", ["", "{}", '{"metrics": {"test/accu'])
def test_an_evaluation_that_was_cut_off_is_made_again(work: Trained, left: str) -> None:
    work.do(ROOT)
    before = work.done(ROOT)
    file = work.directory(ROOT) / "evaluation.test.json"
    file.write_text(left)
    assert work.done(ROOT) is None
    work.do(ROOT)
    assert work.done(ROOT) == before


def test_a_look_at_few_rows_neither_destroys_the_result_nor_passes_for_it(work: Trained) -> None:
    work.do(ROOT)
    whole = work.done(ROOT)
    assert whole is not None
    directory = work.directory(ROOT)
    assert main(["evaluate", str(directory), "--few", "20"]) == 0
    assert work.done(ROOT) == whole
    told = json.loads((directory / "evaluation.test.20.json").read_text())
    assert told["rows"][f"test/{METRIC}"] == 20
    (found,) = runs(default_uri())
    shutil.rmtree(directory)
    archive._finished.cache_clear()
    recorded = work.done(ROOT)
    assert recorded is not None
    assert recorded.scores[METRIC].value == whole.scores[METRIC].value == found["metrics"][f"test/{METRIC}"]


def test_a_plain_evaluation_is_a_result_too(work: Trained) -> None:
    """It has ten importance samples, of which this work needs none."""
    work.do(ROOT)
    assert main(["evaluate", str(work.directory(ROOT))]) == 0
    assert work.done(ROOT) is not None
    assert replace(work, samples=20).done(ROOT) is None


def test_half_a_training_is_no_result_by_way_of_mlflow_either(work: Trained) -> None:
    directory = evaluated_in_its_midst(work)
    assert train(work.run, directory, resume=True).status == "finished"
    shutil.rmtree(directory)
    archive._finished.cache_clear()
    assert work.done(ROOT) is None


def test_an_evaluation_counts_when_all_of_it_is_written(work: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal between its files: it is made again."""

    def cut(*_: object) -> None:
        raise SystemExit(75)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.evaluate.run._track", cut)
        with pytest.raises(SystemExit):
            work.do(ROOT)
    assert work.done(ROOT) is None
    work.do(ROOT)
    assert work.done(ROOT) is not None


def test_what_mlflow_has_of_few_rows_alone_is_no_result(work: Trained) -> None:
    directory = work.directory(ROOT)
    directory.mkdir(parents=True)
    train(work.run, directory)
    assert main(["evaluate", str(directory), "--few", "20"]) == 0
    shutil.rmtree(directory)
    archive._finished.cache_clear()
    assert work.done(ROOT) is None


def test_an_evaluation_goes_where_the_run_s_record_is(
    work: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that is named in passing, and is down, must not have the run's record from then on."""
    work.do(ROOT)
    record = work.directory(ROOT) / "tracking.json"
    before = record.read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["evaluate", str(work.directory(ROOT)), "--samples", "0"]) == 0
    assert record.read_text() == before


def test_a_store_that_does_not_answer_is_told_and_one_that_is_not_there_yet_is_not(
    work: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.done(ROOT) is None
    assert not capsys.readouterr().err
    Path("runs").mkdir()
    Path("runs/mlflow.db").write_bytes(b"no database" * 1000)
    archive._finished.cache_clear()
    assert work.done(ROOT) is None
    assert "what MLflow holds is not known" in capsys.readouterr().err


def supervised(runs: list[Run], fitting: Fitting) -> list[dict[str, Scored]]:
    """A baseline that is trained in steps."""
    found = BASELINES["network"].scores(check_data(runs[0]), runs, "label", "top", "test", fitting)
    return [{METRIC: score} for score in found]


def test_a_baseline_that_was_cut_goes_on_and_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SECONDS", 0.0)
    work = Fitted("network", supervised, (lasting("digits", 2),), 0, 2.0)
    assert (work.share(ROOT), work.done(ROOT)) == (0, None)

    def stop(step: int, _: float) -> None:
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit), StopAtOnce():
        work.do(ROOT, lambda steps, name: nullcontext(stop))
    assert (work.share(ROOT), work.done(ROOT)) == (0.5, None)
    with monkeypatch.context() as of_others:
        of_others.setattr(Fitted, "fingerprint", lambda self: "of other data")
        assert work.share(ROOT) == 0
    steps: list[int] = []
    work.do(ROOT, lambda steps_of_all, name: nullcontext(lambda step, _: steps.append(step)))
    assert steps == list(range(14, 27))
    work.do(Path("elsewhere"))
    cut, whole = work.done(ROOT), work.done(Path("elsewhere"))
    assert cut is not None
    assert whole is not None
    assert cut.scores == whole.scores
    assert work.share(ROOT) == 1
    assert {file.name for file in (ROOT / work.key).iterdir()} <= {"scores.json", "work.lock"}


def test_a_baseline_is_fitted_once_by_two_who_want_it_at_once() -> None:
    fits: list[int] = []

    def slowly(runs: list[Run], _: Fitting) -> list[dict[str, Scored]]:
        fits.append(1)
        time.sleep(1)
        return [{METRIC: Scored(0.5, 0.1, 9)} for _ in runs]

    work = Fitted("slow", slowly, (lasting("digits", 1),), 0, 1.0)
    both = [threading.Thread(target=work.do, args=(ROOT,)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert work.done(ROOT)
    assert len(fits) == 1
