"""Tables made again: nothing is done twice, what was cut goes on, no number stands without its origin."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import pytest
from filelock import FileLock

from infra.errors import UserError
from infra.store import runs
from jobs.cli import main
from pipeline import config
from pipeline.baselines.fitting import Fitting, Show
from pipeline.evaluate.scored import Scored
from pipeline.reproduce import TABLES, archive
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Number, Table, number_of
from pipeline.reproduce.work import AT_WORK, Fitted, Result, Stopped, Trained, Watched, Work
from pipeline.reproduce.writer import read, text_of, write

METRIC = "accuracy/label_given_top"
COMMAND = ["reproduce", "digits-weak", "--budget", "0.02", "--columns", "20 %", "100 %", "--rows", "k = 1"]


@pytest.fixture
def place(digits_place: Path) -> Path:
    return digits_place


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_table_is_made_once_and_says_what_it_is_made_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--json"]) == 0
    told = last_line(capsys)
    assert [number["column"] for number in told["numbers"]] == ["20 %", "100 %"]
    assert told["missing"] == 0
    first = told["numbers"][0]
    assert first["command"] == "pairstream reproduce digits-weak --budget 0.02 --columns '20 %' '100 %' --rows 'k = 1'"
    assert first["epochs"] == pytest.approx(2.4, abs=0.1)
    assert first["rows"] == 270
    assert first["data"].startswith("data/digits ")
    assert 0 < first["ours"] <= 1
    assert first["spread"] == pytest.approx(math.sqrt(first["ours"] * (1 - first["ours"]) / 269), rel=1e-3)
    for file in told["files"]:
        assert Path(file).stat().st_size > 500
    assert cv2.imread(told["files"][1]) is not None
    table = Path(told["files"][0]).read_text()
    before = {path: path.stat().st_mtime_ns for path in Path("runs/reproduce").glob("*/journal.jsonl")}
    assert len(before) == 2

    assert main([*COMMAND, "--json"]) == 0
    assert "2 of 2 pieces of work are done already" in capsys.readouterr().err
    assert Path(told["files"][0]).read_text() == table
    assert {path: path.stat().st_mtime_ns for path in Path("runs/reproduce").glob("*/journal.jsonl")} == before

    longer = [one if one != "0.02" else "0.04" for one in COMMAND]
    assert main([*longer, "--dry-run", "--json"]) == 0
    listed = last_line(capsys)["work"]
    assert [(work["share"], work["for"]) for work in listed] == [(0, "MVAE, k = 1, 20 %"), (0, "MVAE, k = 1, 100 %")]
    assert main([*longer, "--columns", "20 %", "--json"]) == 0
    numbers = read(Path(told["files"][0]))
    assert len(numbers) == 3, "a longer training stands beside the shorter, not in its place"
    assert "of 120" in capsys.readouterr().out


def test_what_was_cut_goes_on_and_comes_to_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lasting("digits", 3, {"train.checkpoint_every": 5, "train.validate_every": 10})
    work, root = Trained(run, (METRIC,), studies=()), Path("runs/reproduce")

    def stop(step: int, loss: float) -> None:
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        work.do(root, lambda steps, name: nullcontext(stop))
    assert work.done(root) is None
    assert 0 < work.share(root) < 1
    work.do(root)
    cut = work.done(root)
    work.do(place / "again")
    whole = work.done(place / "again")
    assert cut is not None
    assert whole is not None
    assert cut.scores == pytest.approx(whole.scores) and cut.validation == whole.validation  # noqa: PT018


def test_a_signal_ends_with_75_and_a_table_of_what_there_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def one_then_stopped(work: Trained, root: Path, show: Show) -> None:
        if done:
            raise Stopped
        done.append(work.key)
        plainly(work, root, show)

    plainly = Trained.do
    monkeypatch.setattr(Trained, "do", one_then_stopped)
    assert main([*COMMAND, "--json"]) == 75
    told = last_line(capsys)
    assert (len(told["numbers"]), told["missing"]) == (1, 1)


def test_a_run_that_mlflow_knows_is_not_run_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lasting("digits", 2, {"pairing.fraction": 0.5})
    config.save(run, place / "run.json")
    (place / "mine").mkdir()
    (place / "run.json").rename(place / "mine" / "run.json")
    assert main(["train", "digits", "--from", str(place / "mine"), "--out", "elsewhere/my-run"]) == 0
    archive._finished.cache_clear()
    work, root = Trained(run, (METRIC,), studies=()), Path("runs/reproduce")
    assert work.directory(root) == Path("elsewhere/my-run")
    assert work.share(root) == 1
    work.do(root)  # evaluates, where it is
    found = work.done(root)
    assert found is not None
    assert found.where == "elsewhere/my-run"
    assert not root.exists()

    shutil.rmtree("elsewhere")  # MLflow still has its numbers
    archive._finished.cache_clear()
    known = work.done(root)
    assert known is not None
    assert known.where.startswith("MLflow ")
    assert known.scores[METRIC].value == pytest.approx(found.scores[METRIC].value)
    assert known.validation == pytest.approx(found.validation)
    assert replace(work, samples=10).done(root) is None, "MLflow does not say how many samples those were"
    assert len(runs(f"sqlite:///{place / 'runs' / 'mlflow.db'}")) == 1


def test_other_data_are_no_basis(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, root = Trained(lasting("digits", 1), (METRIC,), studies=()), Path("runs/reproduce")
    work.do(root)
    assert work.done(root)
    monkeypatch.setattr(Work, "fingerprint", lambda self: "another")
    with pytest.raises(UserError, match=r"was made of data .* remove that directory"):
        work.done(root)


def test_another_precision_is_another_training_and_named_in_the_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "digits-weak", "--budget", "0.005", "--columns", "100 %", "--rows", "k = 1"]
    assert main([*command, "--json"]) == 0
    plain = last_line(capsys)["numbers"][0]
    assert main([*command, "--precision", "bf16", "--json"]) == 0
    told = last_line(capsys)["numbers"][0]
    assert told["command"].endswith("--precision bf16")
    assert "precision" not in plain["command"]
    precisions = [config.load(file).engine.precision for file in place.glob("runs/reproduce/*/run.json")]
    assert sorted(precisions) == ["bf16", "fp32"]


def test_a_metric_that_the_evaluation_lacks_is_evaluated(place: Path) -> None:
    work, root = Trained(lasting("digits", 1), (METRIC,), studies=()), Path("runs/reproduce")
    work.do(root)
    for other in (replace(work, samples=3), replace(work, few=50), replace(work, checkpoint="last")):
        assert other.done(root) is None
        before = (root / work.key / "journal.jsonl").read_text().count("train/")
        other.do(root)
        found = other.done(root)
        assert found is not None
        assert found.scores[METRIC].count == (50 if other.few else 270)
        assert (root / work.key / "journal.jsonl").read_text().count("train/") == before, "it was trained again"


def test_a_training_that_another_piece_of_work_is_at_is_waited_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, root = Trained(lasting("digits", 1), (METRIC,), studies=()), Path("runs/reproduce")
    work.directory(root).mkdir(parents=True)
    held = threading.Event()

    def trains() -> None:
        with FileLock(work.directory(root) / AT_WORK):
            held.set()
            time.sleep(2)

    other = threading.Thread(target=trains)
    other.start()
    held.wait()
    work.do(root)
    other.join()
    assert work.done(root)
    assert "another process is at work on it; waiting until it ends" in capsys.readouterr().err


def test_the_course_of_a_training_is_told_from_its_journal(place: Path) -> None:
    root = Path("runs/reproduce")
    run = lasting("digits", 3)
    work = Watched(run, ("val/elbo@0.5", "val/elbo@1"))
    assert work.done(root) is None
    work.do(root)
    found = work.done(root)
    assert found is not None
    told = [json.loads(line) for line in (root / work.key / "journal.jsonl").read_text().splitlines()]
    elbo = {one["step"]: one["metrics"]["val/elbo"] for one in told if "val/elbo" in one.get("metrics", {})}
    middle = max(step for step in elbo if step <= run.train.steps / 2)
    assert [found.scores[metric].value for metric in work.metrics] == [elbo[middle], elbo[run.train.steps]]
    assert found.scores["val/elbo@1"].count == 269
    assert not list((root / work.key).glob("evaluation.*")), "no test label was read"
    with pytest.raises(UserError, match="has no val/nothing by 50% of the training"):
        replace(work, metrics=("val/nothing@0.5",)).done(root)


def test_a_metric_that_the_data_cannot_answer_is_a_sentence(place: Path) -> None:
    work = Trained(lasting("digits", 1), ("bleu/vi_given_en", METRIC), studies=())
    with pytest.raises(UserError, match="no test row of data/digits has what bleu/vi_given_en needs"):
        work.do(Path("runs/reproduce"))


def test_baselines_share_what_needs_no_pairs(place: Path) -> None:
    called = []

    def guess(runs: list, fitting: Fitting) -> list[dict[str, Scored]]:
        called.append(len(runs))
        return [{METRIC: Scored(run.pairing.fraction, 0.1, 9)} for run in runs]

    given = tuple(lasting("digits", 1, {"pairing.fraction": fraction}) for fraction in (0.1, 0.5))
    work, root = Fitted("guess", guess, given, 0, 1), Path("runs/reproduce")
    assert work.done(root) is None
    work.do(root)
    other = replace(work, place=1)
    assert other.key == work.key
    results = [one.done(root) for one in (work, other)]
    assert [result and result.scores[METRIC].value for result in results] == [0.1, 0.5]
    assert called == [2]
    assert replace(work, epochs=2).done(root) is None
    assert replace(work, settings="other").done(root) is None


@dataclass(frozen=True)
class Known(Work):
    """Work whose result is known."""

    result: Result
    key = "known"
    run = lasting.__annotations__  # never looked at but for its data

    def done(self, root: Path) -> Result | None:
        return self.result if self.result.scores else None

    def _do(self, root: Path, show: Show) -> None:
        raise AssertionError


def known(value: float, validation: float = 0.0, seed: int = 0) -> Known:
    return Known(Result({"m": Scored(value, 0.01, 100)} if value else {}, validation, 10.0, seed, "f1", "x"))


@pytest.fixture
def number(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Number | None]:
    class Data:
        data = "data/toy"

    monkeypatch.setattr(Known, "run", Data)
    toy = Table("toy", "a table", "no paper's", lambda extent: [])

    def of(*candidates: tuple[Known, ...], scale: float = 1.0) -> Number | None:
        names = tuple(f"setting {n}" for n in range(len(candidates)))
        return number_of(toy, Cell("row", "1 %", "m", 0.5, candidates, 500.0, names, scale), Path(), "command")

    return of


def test_settings_are_chosen_on_validation_data(number: Callable[..., Number | None]) -> None:
    found = number((known(0.9, 0.1),), (known(0.7, 0.3),), (known(0.8, 0.2),))
    assert found is not None
    assert (found.ours, found.setting) == (0.7, "setting 1")


def test_spread_is_over_runs_or_over_rows(number: Callable[..., Number | None]) -> None:
    one, three = number((known(0.9),)), number((known(0.7, seed=0), known(0.8, seed=1), known(0.9, seed=2)), scale=100)
    assert one is not None
    assert three is not None
    assert (one.spread, one.of, one.runs, one.setting) == (0.01, "rows", 1, "")
    assert (three.ours, three.spread) == (pytest.approx(80), pytest.approx(10))
    assert (three.of, three.runs, three.seeds) == ("runs", 3, "0 1 2")
    assert number((known(0.7), known(0))) is None, "a mean over runs of which one is missing"
    assert number((known(0.9),), (known(0),)) is None, "a choice of which one is missing"


def test_no_number_without_its_provenance(number: Callable[..., Number | None]) -> None:
    whole = number((known(0.9),))
    assert whole is not None
    for field, nothing in {"data": "", "seeds": "", "command": "", "metric": "", "runs": 0, "rows": 0}.items():
        with pytest.raises(ValueError, match="without its provenance"):
            replace(whole, **{field: nothing})


def test_a_file_of_numbers_grows(number: Callable[..., Number | None], tmp_path: Path) -> None:
    whole, file = number((known(0.9),)), tmp_path / "t" / "toy.csv"
    assert whole is not None
    others = [replace(whole, column="2 %", paper=None), replace(whole, epochs=20.0), replace(whole, spread=math.nan)]
    assert write([whole], file) == [file]
    write(others[:2], file)
    assert len(read(file)) == 3
    write(others[2:], file)
    assert len(read(file)) == 3, "the same cell again takes the old one's place"
    assert [repr(n) for n in read(file)] == [repr(n) for n in [others[2], *others[:2]]]
    assert text_of(whole) == "0.9000 ± 0.0100 (paper 0.5)"
    assert text_of(others[2]) == "0.9000 (paper 0.5)"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no table of this version"):
        read(file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits-week"], "did you mean"),
        (["digits-weak", "--columns", "3 %"], "columns: 5 %; 20 %; 100 %"),
        (["digits-weak", "--rows", "SVAE"], "rows: MVAE"),
        (["digits-weak", "--budget", "0"], "--budget"),
        (["digits-weak", "--seeds", "0"], "--seeds"),
        (["digits-weak", "--work", "nothing"], "--dry-run lists it"),
        (["mnist-weak"], "data/mnist"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_every_table_says_what_it_takes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in TABLES)
    wanted = {part: [Extent(rows=(part,)).wants(row) for row in ("MVAE-Q, k = 1 (a+b)", "JMVAE, log_p/all")]
              for part in ("MVAE", "JMVAE", "k =", "1 (a+b)", "-Q", ", ", "p/all", "all", "ll", "")}  # fmt: skip
    assert wanted == {
        "MVAE": [True, False], "JMVAE": [False, True], "k =": [True, False], "1 (a+b)": [True, False],
        "-Q": [True, False], ", ": [True, True], "p/all": [False, True], "all": [False, True], "ll": [False, False],
        "": [True, True],
    }  # fmt: skip


@pytest.mark.slow
def test_two_at_once_come_to_the_same(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pairstream", *COMMAND, "--parallel", "2"])
    assert main([*COMMAND, "--parallel", "2"]) == 0
    together = read(Path("runs/reproduce/digits-weak.csv"))
    shutil.rmtree("runs")
    archive._finished.cache_clear()
    assert main(COMMAND) == 0
    assert [number.ours for number in read(Path("runs/reproduce/digits-weak.csv"))] == [n.ours for n in together]
