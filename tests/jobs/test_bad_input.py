"""Bad input: a sentence that says what was wrong and what to do, exit code 2, nothing lost."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused command says; asserts exit code 2 and that it is words, not a traceback."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as leave:  # the option parser's own way
        code = int(leave.code or 0)
    said = capsys.readouterr()
    assert code == 2, said.out + said.err
    assert "Traceback" not in said.err
    return " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "needs a recipe first"),
        (["train", "digit"], "did you mean 'digits'"),
        (["train", "digits", "--objective.kk", "2"], "--objective.k"),
        (["train", "digits", "--objective.k", "many"], "--objective.k"),
        (["train", "digits", "--objective.k", "-1"], "objective.k is -1"),
        (["train", "digits", "--pairing.fraction", "1.5"], "between 0 and 1"),
        (["train", "digits", "--objective.lambda.lable", "5"], "--objective.lambda.label"),
        (["train", "digits", "--optim.lr", "0"], "positive learning rate"),
        (["train", "digits", "--train.keep", "1"], "at least two checkpoints"),
        (["train", "digits", "--seeds", "0"], "at least 1"),
        (["train", "digits", "--weights"], "--from"),
        (["train", "digits", "--from", "nobody"], "no run 'nobody'"),
        (["train", "digits", "--resume"], "no unfinished run of digits"),
        (["train", "digits", "--resume", "--out", "nowhere"], "no run to resume in nowhere"),
        (["train", "digits"], "pairstream prepare"),
        (["prepare", "digit"], "did you mean 'digits'"),
        (["inspect"], "needs a directory"),
        (["inspect", "nowhere"], "is no directory"),
        (["evaluate", "nobody"], "no run 'nobody'"),
        (["sweep", "digits", "--grid", "pairing.fractoin=1"], "did you mean 'pairing.fraction'"),
        (["sweep", "digits", "--grid", "pairing.fraction=2"], "between 0 and 1"),
        (["sweep", "digits", "--grid", "pairing.fraction"], "KEY=VALUE"),
        (["sweep", "digits", "--cpus", "1000"], "cores"),
        (["sweep", "digits", "--resume"], "needs --out"),
        (["sweep", "digits", "--resume", "--out", "nowhere"], "no sweep to resume in nowhere"),
        (["bench", "stpe"], "did you mean 'step'"),
    ],
)  # fmt: skip
def test_a_sentence_and_exit_code_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_sentence_is_json_too_where_json_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--json"]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["job"] == "train"
    assert "pairstream prepare" in last["error"]
    with pytest.raises(SystemExit):
        main(["train", "digits", "--objective.k", "many", "--json"])
    said = capsys.readouterr()
    assert "--objective.k" in said.err
    assert json.loads(said.out.splitlines()[-1])["job"] == "train"


@pytest.fixture
def train(digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training command that would work."""
    monkeypatch.chdir(tmp_path)
    return ["train", "digits", "--data", str(digits_dir), "--out", "out", "--steps", "2", "--tracking.no-enabled"]


def test_more_ranks_than_cores(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "cores" in refused(capsys, *train, "--ranks", "50")


def test_a_batch_that_ranks_do_not_divide(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *train, "--ranks", "2", "--train.batch", "15")
    assert "cannot be divided among 2 ranks" in said
    assert "1, 3, 5, 15" in said


def test_a_port_that_is_taken(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}" in refused(capsys, *train, "--ranks", "2", "--port", str(port))


def test_an_output_directory_that_cannot_be_written(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("precious")
    said = refused(capsys, *train, "--out", "file/run")
    assert "cannot be written" in said
    assert Path("file").read_text() == "precious"


def test_a_run_that_is_there_already(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/run.json").write_text("{}")
    assert "--resume" in refused(capsys, *train)
    assert Path("out/run.json").read_text() == "{}"


def test_an_unknown_validation_metric(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'val/elbo'" in refused(capsys, *train, "--train.best", "val/elbow")


def test_an_empty_or_half_written_data_directory(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    assert "empty, or preparing it was cut off" in refused(capsys, *train, "--data", "data")
    Path("data/manifest.arrow").write_bytes(b"ARROW1 and no more")
    assert "not a readable manifest" in refused(capsys, *train, "--data", "data")


@pytest.mark.parametrize("damage", ["cut", "gone", "another"])
def test_shards_that_do_not_match_the_manifest(
    damage: str, train: list[str], digits_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits_dir, "data")
    shard = Path("data/train-000000.tar")
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-5000])
    elif damage == "gone":
        shard.unlink()
    else:
        shutil.copy("data/val-000000.tar", shard)
    said = refused(capsys, *train, "--data", "data")
    assert "train-000000.tar" in said
    assert "does not match its manifest" in said


def test_prepare_does_not_overwrite(digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "not empty" in refused(capsys, "prepare", "digits", "--out", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_resume_refuses_other_data_and_other_mathematics(
    train: list[str], digits_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both fingerprints are shown; a changed field is named; the run can still be resumed afterwards."""
    from pipeline.corpora import DIGITS
    from pipeline.writing import write

    assert main([*train, "--train.checkpoint-every", "1"]) == 0
    other = replace(DIGITS, entries=lambda source: DIGITS.entries(source)[:-1])
    fingerprint = write(Path("other"), other).fingerprint
    capsys.readouterr()
    resume = ["train", "digits", "--out", "out", "--resume"]
    said = refused(capsys, *resume, "--data", "other")
    assert fingerprint in said
    assert "resume with the data it began with" in said
    assert "model.latent was" in refused(capsys, *resume, "--model.latent", "3")
    said = refused(capsys, "train", "mnist", *resume[2:])
    assert "out is a run of digits: continue it with pairstream train digits --resume" in said
    assert main(resume) == 0


def test_a_tracking_uri_with_a_typo(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *train[:-1], "--tracking.uri", "htp://host:5000")
    assert "scheme" in said
    assert not Path("out").exists()


def test_a_directory_that_another_process_trains_in(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from filelock import FileLock

    Path("out").mkdir()
    with FileLock("out/training.lock"):
        assert "another process is training" in refused(capsys, *train)


def test_ranks_with_an_output_directory_that_cannot_be_written(
    train: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("precious")
    assert "cannot be written" in refused(capsys, *train, "--ranks", "2", "--out", "file/run")


def test_training_again_into_a_used_directory_is_refused(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, with seeds, and from Python: old weights never stand under a new configuration."""
    from infra.errors import UserError
    from pipeline import config
    from pipeline.train import train as train_run

    assert main([*train, "--seeds", "2"]) == 0
    weights = Path("out-seed0/checkpoints/step_2/model.safetensors").read_bytes()
    assert "holds a run already" in refused(capsys, *train, "--seeds", "2", "--optim.lr", "0.1")
    run = config.override(config.load(Path("out-seed0/run.json")), {"optim.lr": 0.1})
    with pytest.raises(UserError, match="holds a run already"):
        train_run(run, Path("out-seed0"))
    assert Path("out-seed0/checkpoints/step_2/model.safetensors").read_bytes() == weights
    assert config.load(Path("out-seed0/run.json")).optim.lr != 0.1


def test_a_sweep_into_a_file(digits_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    options = ["--data", str(digits_dir), "--out", str(tmp_path / "file")]
    assert "not an empty directory" in refused(capsys, "sweep", "digits", *options)


def test_cores_are_named_before_the_batch(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "cores" in refused(capsys, *train, "--ranks", "64")


def test_a_grid_over_what_the_system_makes_no_use_of(
    digits_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its cells would be the same run, trained again and again."""
    said = refused(
        capsys, "sweep", "digits", "--data", str(digits_dir), "--out", str(tmp_path / "sweep"), "--model.system",
        "mopoe", "--grid", "objective.k=0,1", "seed=0",
    )  # fmt: skip
    assert "objective.k, which model.system = mopoe makes no use of" in said


def test_a_sheet_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.corpora import prepare

    prepare("digits", tmp_path / "d")
    (tmp_path / "s.png").mkdir()
    assert main(["inspect", str(tmp_path / "d"), "--no-verify", "--sheet", str(tmp_path / "s.png")]) == 2
    assert "s.png cannot be written (Is a directory): choose another place" in capsys.readouterr().err
