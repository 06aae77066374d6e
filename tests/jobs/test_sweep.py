"""The sweep: every trial is the training of a plain run, and MLflow has one parent with a child per trial."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.journal import points
from infra.store import connect, runs
from jobs.cli import main
from jobs.sweep import main as sweep_job
from pipeline import config
from pipeline.config import override
from pipeline.recipes.digits import digits_sweep
from pipeline.sweep_table import Trial, best_trials, draw, write_csv
from pipeline.train import train

OPTIONS = ["--steps", "30", "--train.batch", "20", "--train.validate-every", "15"]
GRID = ["--grid", "pairing.fraction=0.05,1", "objective.lambda.label=2"]


def curve(directory: Path) -> list[tuple[int, dict[str, float]]]:
    return [
        (step, {name: value for name, value in values.items() if name.startswith(("train/", "val/"))})
        for step, values in points(directory)
        if not any(name.startswith("test/") for name in values)
    ]


@pytest.mark.slow
def test_a_sweep_is_its_plain_runs_and_one_honest_record(
    tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = ["sweep", "digits", "--data", str(digits_dir), *OPTIONS, *GRID, "--out", "runs/sw", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [trial["pairs"] for trial in result["trials"]] == [63, 1258]
    assert result["failed"] == 0
    for trial in result["trials"]:
        run = config.load(Path(trial["directory"]) / "run.json")
        assert run.pairing.fraction == trial["cell"]["pairing.fraction"]
        assert run.objective.lambda_["label"] == 2
        plain = train(override(run, {"tracking.enabled": False}), tmp_path / "plain" / Path(trial["directory"]).name)
        assert curve(plain.directory) == curve(Path(trial["directory"]))
        assert trial["metrics"]["val/elbo"] == plain.metrics["val/elbo"]
    store = runs(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (parent,) = [run for run in store if run["parent"] is None]
    assert parent["identity"] != parent["name"], "another sweep of this name must not be taken for this one"
    children = [run for run in store if run["parent"] == parent["identity"]]
    assert len(children) == 2
    assert {run["status"] for run in store} == {"FINISHED"}
    assert all(run["tags"]["mlflow.parentRunId"] == parent["run_id"] for run in children)
    for child in children:
        assert {"val/elbo", "train/elbo", "test/elbo", "test/accuracy/label_given_top"} <= set(child["metrics"])
        assert child["params"]["objective.lambda.label"] == "2.0"
        files = connect(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}").list_artifacts(child["run_id"], "model")
        assert "model/MLmodel" in [file.path for file in files], "each is the best of its supervision fraction"
    # Again with --resume: finished trials are not trained again, no child is doubled, the table is the same.
    before = [
        (Path(trial["directory"]) / "journal.jsonl").read_text().count("train/elbo") for trial in result["trials"]
    ]
    with pytest.raises(UserError, match=r"optim\.lr was"):
        sweep_job(["digits", "--resume", "--out", "runs/sw", "--optim.lr", "1"])
    assert main(["sweep", "digits", "--resume", "--out", "runs/sw", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [t["metrics"]["test/elbo"] for t in again["trials"]] == [t["metrics"]["test/elbo"] for t in result["trials"]]
    after = [(Path(trial["directory"]) / "journal.jsonl").read_text().count("train/elbo") for trial in result["trials"]]
    assert after == before
    assert len(runs(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")) == 3


def test_a_picture_of_settings_that_are_no_numbers(tmp_path: Path) -> None:
    plan = replace(digits_sweep(), grid={"pairing.fraction": (0.1, 1.0), "model.system": ("mvae", "svae")})
    cells = [plan.cell(number) for number in range(plan.total)]
    trials = [Trial(cell, tmp_path, dict.fromkeys(plan.columns, 0.5), 63) for cell in cells]
    assert draw(plan, trials, [], tmp_path / "t.png") is not None
    rows = list(csv.reader(write_csv(plan, trials, [], "pairstream sweep digits", tmp_path / "t.csv").open()))
    assert [row[0] for row in rows[2:]] == [trial.cell["model.system"].upper() for trial in trials]
    assert {row[0] for row in rows[2:]} == {"MVAE", "SVAE"}


def test_the_table_is_read_by_validation_and_names_its_command(tmp_path: Path) -> None:
    """The best trial is picked by the validation metric, never by the test columns; failures stay in the table."""
    plan = digits_sweep()
    test = plan.columns[0]
    trials = []
    for number, cell in enumerate(plan.grid_cells()):
        metrics = {plan.metric: 0.5 + 0.01 * number, **dict.fromkeys(plan.columns, 0.9 - 0.01 * number)}
        trials.append(Trial(cell, tmp_path / str(number), metrics if number else {}, 63, "" if number else "it burnt"))
    best = best_trials(plan, trials)
    assert best == [3, 7, 11]
    rows = list(csv.reader(write_csv(plan, trials, [], "pairstream sweep digits", tmp_path / "t.csv").open()))
    assert rows[0][0].startswith("# pairstream sweep digits; seed 0; 1500 steps")
    assert rows[2][-1] == "it burnt"
    assert float(rows[3][rows[1].index(test)]) == pytest.approx(0.89)
    picture = draw(plan, trials, [], tmp_path / "t.png")
    assert picture is not None
    assert picture.stat().st_size > 10_000
