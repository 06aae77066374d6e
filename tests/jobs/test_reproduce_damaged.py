"""Damage, cuts and company: nothing of them passes for a result, or keeps one from being made."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.journal import JOURNAL
from jobs.cli import main
from pipeline.baselines import Fitting
from pipeline.config import Run
from pipeline.evaluate.run import evaluate_run
from pipeline.evaluate.scored import Scored
from pipeline.record import is_finished
from pipeline.reproduce import table
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Extent
from pipeline.reproduce.work import Fitted, Trained, Watched

METRIC = "accuracy/label_given_top"
ROOT = Path("runs/reproduce")
pytestmark = pytest.mark.usefixtures("digits_place")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def work() -> Trained:
    run = lasting("digits", 2)
    training = replace(run.train, steps=26, checkpoint_every=13, validate_every=13)
    return Trained(replace(run, train=training), (METRIC,), "last", studies=())


def damage(directory: Path, *steps: int) -> None:
    for step in steps:
        file = directory / "checkpoints" / f"step_{step}" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])


def test_a_damaged_last_checkpoint_is_made_again(work: Trained, capsys: Capture) -> None:
    work.do(ROOT)
    whole, directory = work.done(ROOT), work.directory(ROOT)
    damage(directory, 26)
    assert work.done(ROOT) == whole, "it was evaluated when it was whole"
    (directory / "evaluation.test.last.json").unlink()
    assert work.share(ROOT) == 0.5
    told = evaluate_run(directory, which="last", studies=())
    assert (told.step, told.trained) == (13, 13)
    assert "step_26 is damaged: model.safetensors is not what was saved; falling back" in capsys.readouterr().err
    assert work.done(ROOT) is None
    work.do(ROOT)
    assert work.done(ROOT) == whole


def test_damaged_checkpoints_are_not_none(work: Trained, capsys: Capture) -> None:
    work.do(ROOT)
    whole, directory = work.done(ROOT), work.directory(ROOT)
    damage(directory, 13, 26)
    (directory / "evaluation.test.last.json").unlink()
    assert main(["evaluate", str(directory)]) == 2
    said = capsys.readouterr().err
    assert "has no checkpoint that is whole; train it again (pairstream train RECIPE --resume --out" in said
    assert "step_26 is damaged" in said
    assert work.share(ROOT) == 0
    work.do(ROOT)
    assert work.done(ROOT) == whole


def test_a_training_killed_at_its_very_end_is_brought_to_it(work: Trained) -> None:
    """After its last checkpoint, before its pictures, its model and its record."""
    work.do(ROOT)
    whole, directory = work.done(ROOT), work.directory(ROOT)
    lines = (directory / JOURNAL).read_text().splitlines(keepends=True)
    (directory / JOURNAL).write_text("".join(line for line in lines if "FINISHED" not in line))
    shutil.rmtree(directory / "model")
    (directory / "evaluation.test.last.json").unlink()
    assert not is_finished(directory)
    work.do(ROOT)
    assert work.done(ROOT) == whole
    assert is_finished(directory)
    assert (directory / "model").is_dir()


def test_two_who_want_a_training_at_once_train_it_once(work: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    plainly = Trained._judge
    monkeypatch.setattr(Trained, "_judge", lambda self, directory: judged.append(1) or plainly(self, directory))
    failed: list[BaseException] = []

    def want() -> None:
        try:
            work.do(ROOT)
        except BaseException as error:
            failed.append(error)

    both = [threading.Thread(target=want) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert not failed
    assert work.done(ROOT)
    assert len(judged) == 1


def test_a_torn_line_of_a_journal_is_passed_over() -> None:
    work = Watched(lasting("digits", 2), ("val/elbo@1",))
    work.do(ROOT)
    whole, file = work.done(ROOT), work.directory(ROOT) / JOURNAL
    with file.open("a") as journal:
        journal.write('{"step": 27, "metrics": {"val/elbo": -1')
    assert whole is not None
    assert work.done(ROOT) == whole


@pytest.mark.parametrize("left", ["", '{"data": "9e0', "[]", '{"data": "9e0"}', '{"data": "9e0", "scores": []}'])
def test_damaged_scores_are_made_again(left: str) -> None:
    def half(runs: list[Run], _: Fitting) -> list[dict[str, Scored]]:
        return [{METRIC: Scored(0.5, 0.1, 9)} for _ in runs]

    work = Fitted("half", half, (lasting("digits", 1),), 0, 1.0)
    work.do(ROOT)
    whole = work.done(ROOT)
    (ROOT / work.key / "scores.json").write_text(left)
    assert work.done(ROOT) is None
    work.do(ROOT)
    assert work.done(ROOT) == whole is not None


def test_work_that_has_no_place_is_a_sentence(work: Trained) -> None:
    ROOT.mkdir(parents=True)
    work.directory(ROOT).write_text("a file\n")
    with pytest.raises(UserError, match=r"digits-\w+ cannot be written \(File exists\)"):
        work.do(ROOT)


def test_a_picture_that_cannot_be_drawn_loses_no_number(capsys: Capture) -> None:
    command = ["reproduce", "digits-weak", "--budget", "0.01", "--columns", "100 %", "--rows", "k = 1", "--out", "o"]
    Path("o/digits-weak.png").mkdir(parents=True)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "o/digits-weak.png cannot be drawn" in said
    assert "the numbers are in o/digits-weak.csv" in said
    assert "k = 1" in Path("o/digits-weak.csv").read_text()


def test_work_of_other_data_is_listed_as_refused(capsys: Capture) -> None:
    command = ["reproduce", "digits-weak", "--budget", "0.01", "--columns", "100 %", "--rows", "k = 1"]
    assert main(command) == 0
    (file,) = ROOT.glob("*/evaluation.test.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "f00"}))
    capsys.readouterr()
    assert main([*command, "--dry-run", "--json"]) == 0
    told = capsys.readouterr()
    assert "refused" in told.out
    assert "was made of data f00" in told.err
    assert [work["done"] for work in json.loads(told.out.splitlines()[-1])["work"]] == [False]


def test_what_takes_no_epochs_has_none() -> None:
    """However long other rows are trained, it is one piece of work, and one number."""
    works = []
    for budget in (0.1, 0.2):
        (cell,) = table("mnist-weak").cells(Extent(budget, rows=("LOGREG",), columns=("1 %",)))
        ((work,),) = cell.candidates
        assert isinstance(work, Fitted)
        assert (work.steps, work.epochs) == (0, 0)
        works.append(work)
    assert works[0].key == works[1].key


def test_the_tables_are_json_too(capsys: Capture) -> None:
    assert main(["reproduce", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out.splitlines()[-1])["tables"]
    assert {
        "name": "likelihoods",
        "title": "Log-likelihoods of test data in nats",
        "source": "MVAE tables 2 and 6",
    } in tables
