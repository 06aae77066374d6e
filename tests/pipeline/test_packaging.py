"""A trained model lives in a folder of its own: it needs neither data nor run, and says when it does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.checkpoint import Checkpoints
from infra.errors import UserError
from modalities import Sentences
from pipeline import config, tokenizers
from pipeline.completing import completed
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.description import model_file
from pipeline.manifest import open_manifest
from pipeline.packaging import load, of_run, save
from pipeline.settings import Model, Tracking, Training
from pipeline.train import build, load_weights, train
from pipeline.writing import write
from tests.pipeline.tiny import given, make
from tests.pipeline.training import a_run

ROOT = Path(__file__).parents[2]


def package(run: Run, directory: Path, where: Path) -> Path:
    save(run, directory, open_manifest(run.data).reading(run.modalities), where)
    return where


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> tuple[Run, Path]:
    """A run whose best checkpoint is not its last."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    settings = {"train.steps": 9, "train.validate_every": 3, "train.checkpoint_every": 3, "optim.lr": 0.02}
    run = a_run(digits_dir, **settings, **{"tracking.enabled": False, "train.best": "val/elbo", "train.best_is": "min"})
    train(run, directory)
    return run, directory


@pytest.fixture
def packed(trained: tuple[Run, Path], tmp_path: Path) -> Path:
    return package(*trained, tmp_path / "packed")


def test_the_folder_has_the_best_checkpoint_in_float32(trained: tuple[Run, Path], packed: Path) -> None:
    run, directory = trained
    best, last = Checkpoints(directory / "checkpoints").best(), Checkpoints(directory / "checkpoints").latest()[0]
    assert best
    assert last
    assert best.step != last.step
    weights = load_file(packed / "weights.safetensors")
    assert {f"model.{name}" for name in weights} == set(best.tensors("model"))
    for name, tensor in best.tensors("model").items():
        assert weights[name.removeprefix("model.")].dtype == torch.float32
        assert torch.equal(weights[name.removeprefix("model.")], tensor)
    about = json.loads((packed / "pairstream.json").read_text())
    assert about | {"step": best.step, "data": best.meta["fingerprint"], "configuration": config.identity(run)} == about


def test_it_answers_as_the_run_s_own_model(trained: tuple[Run, Path], packed: Path) -> None:
    run, directory = trained
    best = Checkpoints(directory / "checkpoints").best()
    assert best
    own = build(run)
    load_weights(own, best)
    columns = {"top": [None] * 10, "bottom": [None] * 10, "label": [np.asarray(n) for n in range(10)]}
    ours, theirs = completed(own.eval(), columns), completed(load(packed).model, columns)
    for name in columns:
        np.testing.assert_array_equal(np.stack(ours[name]), np.stack(theirs[name]))
    assert load(packed).run == run


def test_a_run_s_directory_gives_what_its_package_gives(trained: tuple[Run, Path], packed: Path) -> None:
    ours, theirs = of_run(trained[1]), load(packed)
    assert (ours.run, ours.about, ours.files) == (theirs.run, theirs.about, theirs.files)
    assert ours.weights == theirs.weights
    assert not ours.model.training


def test_without_its_data_a_run_needs_its_package(trained: tuple[Run, Path], packed: Path, tmp_path: Path) -> None:
    """Beside the data are the tokenizers and names; they may be others where the data are."""
    run, directory = replace(trained[0], data=str(tmp_path / "gone")), tmp_path / "run"
    shutil.copytree(trained[1], directory)
    config.save(run, directory / "run.json")
    with pytest.raises(UserError, match="gone is no directory"):
        of_run(directory)
    make(tmp_path / "gone", 8)
    with pytest.raises(UserError, match=r"was trained on data .*: its tokenizers and names may be others"):
        of_run(directory)
    (packed / "label.names.json").write_text('["zero"]')
    shutil.copytree(packed, directory / "model" / "data" / "pairstream")
    assert of_run(directory).files == {"label.names.json": b'["zero"]'}


def test_everybody_who_may_read_the_folder_may_read_the_weights(packed: Path) -> None:
    assert len({file.stat().st_mode for file in packed.iterdir()}) == 1


def python(program: str, place: Path, *arguments: Path) -> str:
    """What a fresh interpreter prints that starts in `place`."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRANSLATE = """
import sys
from pathlib import Path
from pipeline.completing import completed
from pipeline.packaging import load
packaged = load(Path(sys.argv[1]))
value = packaged.forms["en"].read("two one")
made = completed(packaged.model, {"en": [value], "vi": [None]})
print(packaged.forms["vi"].write(made["vi"][0]))
print(packaged.forms["en"].write(made["en"][0]))
"""
EN, VI = ("one", "two", "three", "four"), ("một", "hai", "ba", "bốn")


def test_texts_go_in_and_out_without_data_or_run_from_anywhere(tmp_path: Path) -> None:
    """Both languages have a tokenizer of their own."""
    files, tokens, kinds = {}, {}, {}
    for name, words in (("en", EN), ("vi", VI)):
        texts = [f"{words[n % 4]} {words[n // 4]}" for n in range(16)]
        files[model_file(name)] = tokenizers.train(texts, 40, "word")
        tokenizer = tokenizers.Tokenizer(files[model_file(name)])
        tokens[name] = tokenizer.encode(texts, 4)[0]
        kinds[name] = Sentences(vocabulary=tokenizer.size, length=4, embedding=8, hidden=8)
    entries = [
        Entry(f"k{n}", "val" if n > 12 else "train", {name: tokens[name][n] for name in kinds}) for n in range(16)
    ]
    write(tmp_path / "data", replace(given("toy", kinds, entries), files=files))
    tracking = Tracking(enabled=False)
    run = Run("toy", str(tmp_path / "data"), kinds, model=Model(4), train=Training(batch=4, steps=3), tracking=tracking)
    train(run, tmp_path / "run")
    packed = package(run, tmp_path / "run", tmp_path / "packed")
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    moved = packed.rename(tmp_path / "elsewhere" / "moved")
    written, echoed = python(TRANSLATE, tmp_path / "elsewhere", moved).splitlines()
    assert set(written.split()) <= {*VI, "⁇"}
    assert echoed == "two one"


def newer(folder: Path) -> None:
    about = json.loads((folder / "pairstream.json").read_text())
    (folder / "pairstream.json").write_text(json.dumps(about | {"format": 2, "pairstream": "7.1.0"}))


def unknown_field(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"flavour": "new"}))


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "label" not in name}, folder / "weights.safetensors")


def cut_weights(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            newer,
            r"is a model in format 2, written by pairstream 7\.1\.0; pairstream .* reads format 1: install pairstr",
        ),
        (unknown_field, "flavour is no field of a run"),
        (other_weights, "the weights do not fit the model that pairstream .* builds of run.json .*label"),
        (cut_weights, "weights.safetensors cannot be read"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors cannot be read"),
        (lambda folder: (folder / "pairstream.json").unlink(), "is no model of pairstream"),
        (lambda folder: (folder / "pairstream.json").write_text("[]"), "is no model of pairstream"),
        (lambda folder: (folder / "run.json").unlink(), "cannot read the run's configuration"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(
    packed: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(packed)
    with pytest.raises(UserError, match=words):
        load(packed)


def test_without_a_checkpoint_there_is_no_model(trained: tuple[Run, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint yet"):
        package(trained[0], tmp_path / "empty", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
