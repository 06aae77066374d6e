"""generate, embed and search as a user runs them: on a run, on its package, and on a model of texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from modalities import AnyModality, Sentences
from pipeline import tokenizers
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.description import model_file
from pipeline.manifest import open_manifest
from pipeline.packaging import save
from pipeline.settings import Model, Tracking, Training
from pipeline.train import train
from pipeline.writing import write
from tests.pipeline.tiny import given
from tests.pipeline.training import a_run

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Path:
    """A working directory with a run of ten steps, and its package as MLflow's folder has it."""
    place = tmp_path_factory.mktemp("work")
    run = a_run(digits_dir, **{"train.steps": 10, "train.validate_every": 10, "tracking.enabled": False})
    train(run, place / "runs" / "a")
    manifest = open_manifest(digits_dir).reading(run.modalities)
    save(run, place / "runs" / "a", manifest, place / "model" / "data" / "pairstream")
    return place


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def told(capsys: Out, *arguments: object) -> dict:
    """The closing JSON object of a job that ends well."""
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_any_modality_of_any(here: Path, tmp_path: Path, capsys: Out) -> None:
    photo = tmp_path / "photo.jpg"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8))
    result = told(capsys, "generate", "a", "--given", f"top={photo}", "-n", 12, "--out", tmp_path / "out")
    assert (result["given"], result["want"], result["number"]) == (["top"], ["bottom", "label"], 12)
    assert result["converted"] == [f"top: {photo} has 60 x 30 pixels in mode RGB; given as 8 x 4, grey"]
    assert result["files"] == [str(tmp_path / "out" / name) for name in ("samples.jsonl", "samples.txt", "grid.png")]
    assert result["texts"] == (tmp_path / "out" / "samples.txt").read_text().splitlines()
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"bottom", "label"}] * 12
    assert [f"label: {row['label']}" for row in rows] == result["texts"]
    assert cv2.imread(str(tmp_path / "out" / "grid.png")).std() > 5


def test_a_run_and_its_package_say_the_same_and_seeds_differ(here: Path, tmp_path: Path, capsys: Out) -> None:
    made = {}
    for name, run, more in (
        ("run", "a", []), ("path", "runs/a", []), ("package", "model", []), ("inner", "model/data/pairstream", []),
        ("seed", "a", ["--seed", 1]), ("cold", "a", ["--temperature", 0]), ("drawn", "a", ["--sample"]),
    ):  # fmt: skip
        told(capsys, "generate", run, "-n", 4, "--given", "label=3", "--out", tmp_path / name, *more)
        made[name] = (tmp_path / name / "samples.jsonl").read_bytes()
    assert made["run"] == made["path"] == made["package"] == made["inner"]
    assert len({made[name] for name in ("run", "seed", "cold", "drawn")}) == 4
    assert len(set(made["cold"].splitlines())) == 1


def test_nothing_given_is_the_prior_and_lands_under_runs(here: Path, capsys: Out) -> None:
    result = told(capsys, "generate", "a", "--want", "label,label", "--number", 3)
    assert result["want"] == ["label"]
    assert Path(result["out"]).parent == Path("runs")
    assert Path(result["out"]).name.startswith("generated-")
    assert {path.name for path in Path(result["out"]).iterdir()} == {"samples.jsonl", "samples.txt"}


def test_embed_and_search(here: Path, tmp_path: Path, digits_dir: Path, capsys: Out) -> None:
    file, picture = tmp_path / "tops.parquet", tmp_path / "found.png"
    done = told(capsys, "embed", "a", "--data", digits_dir, "--out", file, "--given", "top", "--split", "test,val")
    assert (done["rows"], done["left_out"], done["latent"]) == (539, 0, 4)
    assert set(pq.read_table(file)["split"].to_pylist()) == {"test", "val"}
    sheet = ["--data", digits_dir, "--sheet", picture]
    found = told(capsys, "search", "model", "--index", file, "--given", "label=3", "-k", 5, *sheet)["found"]
    assert len({one["key"] for one in found}) == 5
    assert [one["distance"] for one in found] == sorted(one["distance"] for one in found)
    assert cv2.imread(str(picture)) is not None
    assert main(["search", "a", "--index", str(file), "--given", "label=3", "--metric", "euclidean"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].split()[1].startswith("digit")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("generate", "needs a run first"),
        ("generate b", "no run 'b'"),
        ("generate a --given topp=x.png", "this model has no modality 'topp'; did you mean 'top'"),
        ("generate a --want age", "--want: this model has no modality 'age'"),
        ("generate a --given label=1 --given label=2", "--given label=… stands there twice"),
        ("generate a --given label=1 top=none.png", "none.png: No such file"),
        ("generate a -n 0", "-n 0: choose 1 to 10,000"),
        ("generate a --temperature -1", "--temperature -1.0: choose 0"),
        ("generate a --temperature nan", "--temperature nan: choose 0"),
        ("embed a --data none --out v.parquet", "none is no directory"),
        ("embed a --data DATA --out v.parquet --given age", "--given: this model has no modality 'age'"),
        ("embed a --data DATA --out v.parquet --split all", "no split 'all'"),
        ("search a --index v.parquet --given label=1", "v.parquet: no such file"),
        ("search a --index v.parquet", "nothing is looked for"),
        ("search a --index v.parquet --given label=1 -k 0", "-k 0: choose 1 or more"),
        ("search a --index v.parquet --given label=1 --data DATA --sheet x.txt", "a sheet is a picture"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(
    here: Path, digits_dir: Path, capsys: Out, command: str, sentence: str
) -> None:
    assert main(command.replace("DATA", str(digits_dir)).split()) == 2
    assert sentence in capsys.readouterr().err
    assert not (here / "v.parquet").exists()


def test_a_run_without_a_checkpoint_is_refused_and_one_that_goes_on_says_so(
    here: Path, tmp_path: Path, capsys: Out
) -> None:
    import shutil

    begun = tmp_path / "begun"
    begun.mkdir()
    run = json.loads(Path("runs/a/run.json").read_text())
    run["train"]["steps"] = 1000
    (begun / "run.json").write_text(json.dumps(run))
    assert main(["generate", str(begun)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    shutil.copytree("runs/a/checkpoints", begun / "checkpoints")
    assert main(["generate", str(begun), "-n", "1", "--out", str(tmp_path / "out")]) == 0
    assert "its training is at step 10 of 1,000" in capsys.readouterr().err


EN, VI = ("one", "two", "three", "four"), ("một", "hai", "ba", "bốn")


def test_texts_go_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    """From a run whose tokenizers lie beside its data; a text comes back as it went in where it is wanted again."""
    monkeypatch.chdir(tmp_path)
    files, tokens, kinds = {}, {}, dict[str, AnyModality]()
    for name, words in (("en", EN), ("vi", VI)):
        texts = [words[n % 4] for n in range(80)]
        files[model_file(name)] = tokenizers.train(texts, 40, "word")
        tokenizer = tokenizers.Tokenizer(files[model_file(name)])
        tokens[name] = tokenizer.encode(texts, 3)[0]
        kinds[name] = Sentences(vocabulary=tokenizer.size, length=3, embedding=16, hidden=16)
    entries = [Entry(f"k{n}", "val" if n > 70 else "train", {m: tokens[m][n] for m in kinds}) for n in range(80)]
    write(tmp_path / "data", replace(given("toy", kinds, entries), files=files))
    training = Training(batch=20, steps=250, validate_every=250)
    run = Run("toy", "data", kinds, model=Model(8), train=training, tracking=Tracking(enabled=False))
    run = replace(run, optim=replace(run.optim, lr=0.01), objective=replace(run.objective, anneal=1.0, cross=1.0))
    train(run, Path("runs/t"))
    (tmp_path / "text.txt").write_text("three\n")
    result = told(capsys, "generate", "t", "--given", "en=@text.txt", "--want", "en,vi", "-n", 2, "--temperature", 0)
    assert result["texts"] == ["en: three; vi: ba"] * 2
    assert not (Path(result["out"]) / "grid.png").exists()
    told(capsys, "embed", "t", "--data", "data", "--out", "vi.parquet", "--given", "vi")
    found = told(capsys, "search", "t", "--index", "vi.parquet", "--given", "en=two", "-k", 10)["found"]
    assert {int(one["key"][1:]) % 4 for one in found} == {1}
    assert main(["generate", "t", "--given", "en=five"]) == 0  # an unknown word is a word
