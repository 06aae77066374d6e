"""`pairstream evaluate`: what it says, to whom, and of which checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.store import default_uri, runs
from jobs.cli import main

SMALL = ["--steps", "10", "--train.batch", "20", "--engine.threads", "1", "--out", "runs/a"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_dir: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits_dir)


def evaluated(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, float]:
    assert main(["evaluate", "a", *options, "--json"]) == 0
    told: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    return told


def test_every_metric_that_applies_is_there_without_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *SMALL, "--tracking.no-enabled"]) == 0
    assert main(["evaluate", "a", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "evaluate a: 270 of 270 samples" in err
    whole = json.loads(out.splitlines()[-1])
    told, of_each = whole["metrics"], whole["dimensions"]
    names = ("log_p/all", "log_p/top", "log_p/top_given_label", "log_weight_variance/all", "elbo", "synergy/parts",
             "accuracy/label_given_top", "sampled/label_given_top", "probe/label_given_top", "ssim/top_given_bottom",
             "latents/kl.top", "latents/symmetric_kl.top+bottom", "precision.label")  # fmt: skip
    assert {f"test/{name}" for name in names} <= set(told)
    assert told["test/elbo"] < told["test/log_p/all"] < 0
    assert told["test/log_p/label_given_top"] < 0
    assert sum(of_each["kl/top"]) == pytest.approx(told["test/latents/kl.top"], rel=1e-4)
    assert len(of_each["symmetric_kl/top+bottom"]) == len(of_each["kl/top"]) > 1


def test_mlflow_has_the_last_evaluation_and_keeps_that_of_few_rows_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Of few rows and then of all: the first must not pass for the second, nor stand in its way."""
    assert main(["train", "digits", *SMALL]) == 0
    few = evaluated(capsys, "--few", "20", "--samples", "0")
    coarse = evaluated(capsys, "--samples", "1")
    fine = evaluated(capsys, "--samples", "50")
    assert coarse["test/log_p/all"] != fine["test/log_p/all"]
    (found,) = runs(default_uri())
    assert found["metrics"]["test.20/elbo"] == few["test/elbo"]
    assert found["metrics"]["test/elbo"] == fine["test/elbo"] != few["test/elbo"]
    assert found["metrics"]["test/log_p/all"] == fine["test/log_p/all"]
    assert "--samples 50 --few 0" in found["tags"]["evaluation.test"]
    assert "--few 20" in found["tags"]["evaluation.test.20"]


def test_a_checkpoint_of_another_system_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *SMALL, "--tracking.no-enabled"]) == 0
    file = Path("runs/a/run.json")
    told = json.loads(file.read_text())
    told["model"]["system"] = "mvae-q"
    file.write_text(json.dumps(told))
    assert main(["evaluate", "a"]) == 2
    said = capsys.readouterr().err
    assert "is of a model of the system mvae, and runs/a/run.json says mvae-q" in said


def test_a_model_without_posteriors_of_one_modality_has_its_pictures_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "digits", *SMALL, "--tracking.no-enabled", "--model.system", "cvae", "--train.best", "val/elbo"])
        == 0
    )
    assert main(["evaluate", "a", "--pictures", "--samples", "0", "--json"]) == 0
    drawn = {Path(file).name for file in json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"]}
    assert "cross_generations.png" in drawn
    assert "traversals.png" not in drawn
