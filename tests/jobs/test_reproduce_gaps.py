"""Tables with gaps: of data that are not there, of work that fails, of scores that are none. The rest is made."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.errors import UserError
from infra.preemption import StopRequest
from jobs import reproduce
from jobs.cli import main
from pipeline.baselines import Fitting
from pipeline.baselines.pairs import UNKNOWN
from pipeline.config import Run
from pipeline.evaluate.scored import Scored
from pipeline.reproduce import TABLES
from pipeline.reproduce.plots import beside
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Number, Table
from pipeline.reproduce.work import Fitted
from pipeline.reproduce.writer import read, write

METRIC = "accuracy/label_given_top"
HALF = Scored(0.5, 0.1, 9)


def refuses(runs: list[Run], fitting: Fitting) -> list[dict[str, Scored]]:
    raise UserError("this baseline takes no digits")


@dataclass
class Toy:
    """A table whose work is quick: what each row's baseline gives, and of which recipe's data it is."""

    baselines: dict[str, Scored | Callable[[list[Run], Fitting], list[dict[str, Scored]]]] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)

    def cells(self, extent: Extent) -> list[Cell]:
        cells = []
        for row, given in self.baselines.items():
            if extent.wants(row):
                fit = given if callable(given) else lambda runs, fitting, score=given: [{METRIC: score}]
                run = lasting(self.recipes.get(row, "digits"), extent.epochs(10))
                cells += [
                    Cell(row, column, METRIC, None, ((Fitted(f"{row}-{column}", fit, (run,), 0, 10.0),),))
                    for column in ("1", "2")
                ]
        return cells


@pytest.fixture
def toy(digits_place: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """In a working directory with the digits as data/digits, and no other data."""
    made = Toy()
    monkeypatch.setitem(TABLES, "toy", Table("toy", "a table", "no paper's", made.cells, beside))
    return made


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The JSON object of a command, and what it said beside."""
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured.err


def test_an_undefined_score_is_left_out_with_a_sentence(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.baselines |= {"NN": UNKNOWN, "AE": HALF, "RBM": Scored(float("nan"), float("nan"), 9)}
    assert main(["reproduce", "toy", "--json"]) == 0
    found, said = told(capsys)
    assert [one["row"] for one in found["numbers"]] == ["AE", "AE"]
    assert found["missing"] == 0
    assert [one.row for one in read(Path("runs/reproduce/toy.csv"))] == ["AE", "AE"]
    assert f"NN, 1: {METRIC} is undefined for seed 0 and left out: all pairs" in said
    assert said.count("is undefined") == 4


def test_work_that_fails_keeps_no_other_from_being_done(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.baselines |= {"NN": refuses, "AE": HALF}
    assert main(["reproduce", "toy", "--json"]) == 1
    found, said = told(capsys)
    assert [one["row"] for one in found["numbers"]] == ["AE", "AE"]
    assert found["missing"] == 2
    assert len(read(Path("runs/reproduce/toy.csv"))) == 2
    assert said.count("pairstream: this baseline takes no digits") == 2

    toy.baselines["NN"] = HALF  # mended
    assert main(["reproduce", "toy", "--json"]) == 0
    assert told(capsys)[0]["missing"] == 0


def test_work_made_of_other_data_keeps_no_other_from_the_table(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.baselines |= {"NN": HALF, "AE": HALF}
    assert main(["reproduce", "toy"]) == 0
    capsys.readouterr()
    (file,) = Path("runs/reproduce").glob("digits-NN-1-*/scores.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "another"}))
    assert main(["reproduce", "toy", "--json"]) == 1
    found, said = told(capsys)
    assert len(found["numbers"]) == 3
    assert said.count("was made of data another") == 1
    assert main(["reproduce", "toy", "--dry-run", "--json"]) == 0
    listed, said = told(capsys)
    assert sorted((work["done"], work["share"]) for work in listed["work"]) == [(False, 0.0), *[(True, 1.0)] * 3]
    assert said.count("was made of data another") == 1


def test_of_several_ranks_none_goes_on_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.baselines |= {"NN": refuses}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["reproduce", "toy"]) == 2


def test_what_fails_in_parallel_ends_with_the_same_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            self.code = {"good": 0, "fine": 0, "bad": 2, "cut": 75, "killed": -9}[command[-1]]

        def wait(self) -> int:
            return self.code

    monkeypatch.setattr(reproduce.subprocess, "Popen", Process)
    options = reproduce.Options(parallel=2)
    for codes, expected in (("good", "fine"), 0), (("good", "bad"), 1), (("bad", "cut"), 75), (("good", "killed"), 1):
        assert reproduce._in_parallel(dict.fromkeys(codes, "a row"), options) == expected
    assert "killed: its process was ended by SIGKILL" in capsys.readouterr().err


def test_what_has_no_data_is_left_out_with_a_sentence(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.baselines |= {"NN": HALF, "AE": HALF, "RBM": HALF}
    toy.recipes |= {"NN": "mnist", "RBM": "celeba"}
    assert main(["reproduce", "toy", "--json"]) == 0
    found, said = told(capsys)
    assert [one["row"] for one in found["numbers"]] == ["AE", "AE"]
    assert found["missing"] == 4
    for data in ("data/mnist", "data/celeba"):
        assert said.count(f"{data} is no directory: run `pairstream prepare CORPUS --out {data}`; its numbers") == 1

    assert main(["reproduce", "toy", "--dry-run", "--json"]) == 0
    work = [one["key"] for one in told(capsys)[0]["work"]]
    assert [key.rsplit("-", 1)[0] for key in work] == ["digits-AE-1", "digits-AE-2"]
    assert main(["reproduce", "toy", "--work", work[0]]) == 0
    assert not capsys.readouterr().err, "who asks for one piece of work has heard it"

    assert main(["reproduce", "toy", "--rows", "NN"]) == 2
    assert "pairstream: data/mnist is no directory: run `pairstream prepare" in capsys.readouterr().err


def test_cells_are_named_without_any_data(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "likelihoods", "--columns", "mnist", "--rows", "nope"]) == 2
    said = capsys.readouterr().err
    assert "no such cell: --rows 'nope'; rows: VAE: log_p/image; " in said
    assert "columns: binary-mnist; mnist; " in said


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_no_data_says_what_to_prepare(name: str, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/digits").unlink()
    assert main(["reproduce", name]) == 2
    assert "is no directory: run `pairstream prepare" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--rows", "a", "--rows", "zzz"], ["--rows", "a", "zzz"], ["--columns", "1", "zzz"]])
def test_a_name_that_has_no_cell_is_not_passed_over(
    toy: Toy, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    toy.baselines = {"a": HALF, "b": HALF}
    assert main(["reproduce", "toy", *more]) == 2
    assert "'zzz'" in capsys.readouterr().err


def numbered(row: str) -> Number:
    return Number(
        "toy", row, "1", METRIC, paper=None, ours=0.5, spread=0.1, of="rows", runs=1, seeds="0", epochs=1.0,
        paper_epochs=2.0, rows=9, data="d", setting="", command="c",
    )  # fmt: skip


def put(file: Path, rows: range) -> None:
    for row in rows:
        write([numbered(str(row))], file)


def test_two_processes_at_one_table_lose_no_number(tmp_path: Path) -> None:
    file, context = tmp_path / "toy.csv", multiprocessing.get_context("spawn")
    both = [context.Process(target=put, args=(file, range(start, start + 40))) for start in (0, 40)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert {number.row for number in read(file)} == {str(row) for row in range(80)}


@pytest.mark.parametrize("left", [0.3, 0.9, 0.99, -1])
def test_a_file_that_was_cut_or_is_another_s_is_refused_before_anything_is_done(
    toy: Toy, left: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that nothing that was lost stands there as if it were known."""
    toy.baselines = {"a": refuses}
    file = Path("runs/reproduce/toy.csv")
    write([numbered("x"), numbered("y")], file)
    whole = file.read_bytes()
    file.write_bytes(b"\xff\xfe" if left < 0 else whole[: int(left * len(whole))])
    before = file.read_bytes()
    assert main(["reproduce", "toy"]) == 2
    said = capsys.readouterr().err
    assert "toy.csv" in said and "remove it, or choose another --out" in said  # noqa: PT018
    assert "this baseline takes no digits" not in said
    assert file.read_bytes() == before


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_done(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.baselines = {"a": refuses}
    Path("taken").write_text("")
    for out in ("taken", "taken/further", "/proc/nowhere"):
        assert main(["reproduce", "toy", "--out", out]) == 2
        said = capsys.readouterr().err
        assert f"--out {out}: nothing can be written there" in said
        assert "this baseline takes no digits" not in said


def interrupting(runs: list[Run], fitting: Fitting) -> list[dict[str, Scored]]:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    raise AssertionError("the signal was not heard")


def test_a_signal_outside_a_training_ends_with_75_and_a_table_of_what_there_is(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.baselines = {"a": HALF, "b": interrupting}
    assert main(["reproduce", "toy", "--json"]) == 75
    numbers = told(capsys)[0]["numbers"]
    assert [number["row"] for number in numbers] == ["a", "a"]


def test_a_signal_at_the_end_of_a_training_is_heard_too(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its last step is done and its pictures are drawn: the next training must not begin."""
    begun = []

    def train(run: Run, directory: Path, **_: object) -> SimpleNamespace:
        begun.append(directory)
        with StopRequest():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        return SimpleNamespace(status="finished")

    monkeypatch.setattr("pipeline.train.train", train)
    assert main(["reproduce", "digits-weak", "--budget", "0.01"]) == 75
    assert len(begun) == 1


def test_the_command_in_the_table_can_be_pasted() -> None:
    arguments = ["toy", "--rows", "it's k; $x", "--out=there", "--parallel", "2", "--json", "--columns", "20 %"]
    assert reproduce._told(arguments) == "toy --rows 'it'\"'\"'s k; $x' --columns '20 %'"


def test_damaged_data_are_not_passed_over_as_missing(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.baselines = {"NN": HALF, "AE": HALF}
    toy.recipes = {"NN": "mnist"}
    Path("data/mnist").mkdir()
    Path("data/mnist/manifest.arrow").write_bytes(b"torn")
    assert main(["reproduce", "toy"]) == 2
    assert "data/mnist" in capsys.readouterr().err


def test_one_that_breaks_keeps_nothing_else_from_being_made(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(runs: list[Run], fitting: Fitting) -> list[dict[str, Scored]]:
        raise RuntimeError("out of memory")

    toy.baselines = {"NN": breaks, "AE": HALF}
    assert main(["reproduce", "toy", "--json"]) == 1
    captured = capsys.readouterr()
    assert [number["row"] for number in json.loads(captured.out.splitlines()[-1])["numbers"]] == ["AE", "AE"]
    assert "out of memory" in captured.err
    assert "2 of 4 numbers are still to be made: above stands what failed" in captured.out
