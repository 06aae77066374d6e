"""Pictures of a run as files: which there are, that they are pictures, and that they stay the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from infra.checkpoint import Checkpoints
from infra.errors import UserError
from infra.journal import Journal
from pipeline.config import Run
from pipeline.manifest import open_manifest
from pipeline.pictures import album, illustrate
from pipeline.train import build
from tests.pipeline.drawn import make, subject
from tests.pipeline.training import a_run

ALBUM = ["cross_generations.png", "cross_samples.png", "prior.png", "conditional.png"]
"""Of digits, in the order in which they are drawn."""


def saved(run: Run, directory: Path) -> Path:
    """What training leaves of a run whose weights are still the initial ones."""
    weights = {f"model.{name}": tensor for name, tensor in build(run).state_dict().items()}
    Checkpoints(directory / "checkpoints").save(2, weights.items(), {})
    journal = Journal(directory)
    for step in (1, 2):
        journal.metrics(step, {"train/elbo": -100.0 + step, "val/elbo": -99.0, "val/accuracy/label_given_top": 0.5})
    return directory


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> tuple[Run, Path]:
    """A run with the pictures of its end."""
    run = a_run(digits_dir)
    directory = saved(run, tmp_path_factory.mktemp("runs") / "r")
    files = illustrate(run, directory, open_manifest(run.data))
    assert [file.name for file in files] == ["curves.png", *ALBUM]
    return run, directory


def test_at_the_end_of_training_there_is_an_album(digits: tuple[Run, Path]) -> None:
    folder = digits[1] / "pictures"
    assert {file.name for file in folder.iterdir() if file.is_file()} == {"curves.png", *ALBUM}
    for file in (folder / name for name in ALBUM):
        with PIL.Image.open(file) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert 400 < picture.width < 2000
            assert 300 < picture.height < 2000
        assert 5_000 < file.stat().st_size < 1_000_000


def test_the_same_run_gives_the_same_bytes(digits: tuple[Run, Path], tmp_path: Path) -> None:
    run, directory = digits
    manifest, divergences = open_manifest(run.data), {name: np.arange(4.0) for name in run.modalities}
    before = {name: (directory / "pictures" / name).read_bytes() for name in ALBUM}
    files = album(run, directory, manifest, divergences=divergences)
    assert [file.name for file in files] == [*ALBUM, "traversals.png"]
    drawn = {file.name: file.read_bytes() for file in files}
    files[-1].unlink()
    assert drawn == before | {"traversals.png": drawn["traversals.png"]}
    shutil.copytree(directory / "checkpoints", tmp_path / "checkpoints")
    others = album(replace(run, seed=3), tmp_path, manifest, divergences=divergences)
    without_noise = ["cross_generations.png", "traversals.png"]
    assert [file.name for file in others if file.read_bytes() == drawn[file.name]] == without_noise


def test_another_split_has_a_folder_of_its_own(digits: tuple[Run, Path]) -> None:
    run, directory = digits
    folder = directory / "pictures"
    assert album(run, directory, open_manifest(run.data), "test") == [folder / "test" / name for name in ALBUM]
    assert (folder / "test/prior.png").read_bytes() == (folder / "prior.png").read_bytes(), "no data on it"
    generated = "cross_generations.png"
    assert (folder / "test" / generated).read_bytes() != (folder / generated).read_bytes()
    with pytest.raises(UserError, match="no split 'dev'"):
        album(run, directory, open_manifest(run.data), "dev")
    assert not (folder / "dev").exists(), "nothing is left behind"


def test_without_a_checkpoint_there_is_nothing_to_draw(digits: tuple[Run, Path], tmp_path: Path) -> None:
    run, manifest = digits[0], open_manifest(digits[0].data)
    assert illustrate(run, tmp_path, manifest) == []
    with pytest.raises(UserError, match="has no checkpoint yet: train it first"):
        album(run, tmp_path, manifest)


def test_a_run_without_images_leaves_curves_and_texts(tmp_path: Path) -> None:
    examined = subject(make(tmp_path / "d"), "numbers", "caption", "says")
    drawn = illustrate(examined.run, saved(examined.run, tmp_path / "r"), examined.manifest)
    assert [file.name for file in drawn] == ["curves.png", "translations.md", "captions.md"]
    assert "# Translations (val)" in drawn[1].read_text(encoding="utf-8")
    silent = subject(tmp_path / "d", "label", "traits")
    (curves,) = illustrate(silent.run, saved(silent.run, tmp_path / "s"), silent.manifest)
    with PIL.Image.open(curves) as picture:
        assert picture.size == (1320, 286), "three panels beside each other"
