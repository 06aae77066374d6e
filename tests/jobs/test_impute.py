"""`pairstream impute` as a user runs it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.impute import thresholds
from pipeline.train import train
from tests.jobs.test_bad_input import refused
from tests.pipeline.test_resuming import tree
from tests.pipeline.training import a_run
from tests.promises.test_ranks_promise import KILLS, killed

SMALL = ["--shard-mib", "0.2", "--device", "cpu", "--pairing.view", "keep-one", "--pairing.fraction", "0.1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Path:
    """A run of a few steps."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(a_run(digits_dir, **{"train.steps": 4, "tracking.enabled": False, "train.best": "val/elbo"}), directory)
    return directory


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    said = capsys.readouterr().out
    last: dict[str, Any] = json.loads(said.splitlines()[-1])
    return last, said


def test_it_completes_and_what_it_writes_is_inspected_and_trained_on(
    run: Path, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["impute", str(run), "--data", str(digits_dir), "--out", "out", *SMALL, "--json"]
    assert main(command) == 0
    result, said = told(capsys)
    assert result["samples"] == 1797
    assert sum(result["imputed"].values()) == 2 * (1258 - 126)
    assert "samples/s" in said
    assert f"label: imputed {result['imputed']['label']:,}" in said
    assert result["samples_per_second"] > 0
    assert main(command) == 0  # done already
    assert told(capsys)[0] | {"samples_written": 0, "fingerprint": result["fingerprint"]} == result | {
        "samples_written": 0, "seconds": pytest.approx(0, abs=60), "samples_per_second": 0.0, "notes": [],
        "shards_kept": result["shards"],
    }  # fmt: skip
    assert main(["inspect", "out", "--json"]) == 0
    seen, said = told(capsys)
    assert seen["imputed"] == result["imputed"]
    assert seen["patterns"]["train"] == {"top+bottom+label": 1258}
    assert "imputed by run at step 4" in " ".join(said.split())
    steps = ["--steps", "4", "--train.batch", "20", "--tracking.no-enabled", "--engine.threads", "1"]
    assert main(["train", "digits", *steps, "--data", "out", "--pairing.view", "declared", "--out", "r", "--json"]) == 0
    assert told(capsys)[0]["status"] == "finished"


def test_doubtful_ones_stay_missing(
    run: Path, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["impute", str(run), "--data", str(digits_dir), *SMALL, "--json", "--out"]
    assert main([*command, str(tmp_path / "out"), "--doubt", "label=0.001"]) == 0
    result, said = told(capsys)
    assert result["imputed"].get("label", 0) + result["doubtful"]["label"] > 300
    assert f"left {result['doubtful']['label']:,} that are doubtful" in said
    assert main([*command, str(tmp_path / "labels"), "--only", "label"]) == 0
    assert set(told(capsys)[0]["imputed"]) == {"label"}


@pytest.mark.slow
def test_kill_9_at_any_time_and_the_same_command_goes_on(run: Path, digits_dir: Path, tmp_path: Path) -> None:
    """Two ranks, one or all of them or who started them killed; the same bytes as one rank that nobody disturbs."""
    whole, out, chance = tmp_path / "whole", tmp_path / "out", random.Random(1)
    command = [sys.executable, "-m", "jobs.cli", "impute", str(run), "--data", str(digits_dir), *SMALL, "--out"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, str(whole)], check=True, **quiet)

    def shards() -> int:
        return len(list((tmp_path / "out.partial" / "data").glob("*.tar")))

    kills = midway = 0
    while kills < KILLS:
        if out.exists():  # it was done before it could be killed
            assert tree(out) == tree(whole)
            shutil.rmtree(out)
        job, before = subprocess.Popen([*command, str(out), "--ranks", "2"], **quiet), shards()
        while kills % 4 and shards() == before and job.poll() is None:  # every fourth is killed while it starts
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.2 if kills % 4 else 8))
        if job.poll() is None:
            killed(job, chance)
            kills, midway = kills + 1, midway + (shards() > 0)
    assert midway > 0
    done = subprocess.run([*command, str(out), "--ranks", "2", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == 1797
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert set(os.listdir(tmp_path)) == {"whole", "out"}
    rows = pq.read_table(tmp_path / "out" / "imputed.parquet").to_pylist()
    assert len({(row["key"], row["modality"]) for row in rows}) == len(rows) == 2 * (1258 - 126)


def test_thresholds_are_for_all_or_by_name() -> None:
    assert thresholds("", ["a", "b"]) == {}
    assert thresholds("0.2", ["a", "b"]) == {"a": 0.2, "b": 0.2}
    assert thresholds("0.2, b=0.1", ["a", "b"]) == {"a": 0.2, "b": 0.1}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--out", "DATA"], "exists and is not empty: choose another --out"),
        (["--out", "out", "--doubt", "label=much"], "--doubt label=much: give a number from 0 to 1"),
        (["--out", "out", "--only", "lable"], "did you mean 'label'"),
        (["--out", "out", "--splits", "holdout"], "no split 'holdout'"),
        (["--out", "out", "--samples", "1"], "choose at least 2"),
        (["--out", "out", "--shard-mib", "0"], "--shard-mib 0"),
        (["--out", "out", "--ranks", "1000"], "this machine lets us use"),
        (["--out", "out", "--data", "nowhere"], "nowhere is no directory"),
        ([], "--out"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence(
    run: Path, digits_dir: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [str(digits_dir) if option == "DATA" else option for option in more]
    assert words in refused(capsys, "impute", str(run), "--data", str(digits_dir), *given)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_is_named(
    digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import config

    config.save(a_run(digits_dir), tmp_path / "run.json")
    said = refused(capsys, "impute", str(tmp_path), "--data", str(digits_dir), "--out", str(tmp_path / "out"))
    assert "has no checkpoint yet" in said
    assert "no run 'nobody'" in refused(capsys, "impute", "nobody", "--data", "x", "--out", "y")
