"""What a run's pairs are, a run on them alone, and what is said where baselines do not apply."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipeline.baselines import BASELINES, Fitting, complete_samples, jmvae_on_pairs, read
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.corpora.digits import DIGITS, load
from pipeline.data import check_data, training_stream
from pipeline.manifest import Manifest, open_manifest
from pipeline.settings import Pairing
from pipeline.writing import write
from tests.pipeline.baselines import a_run, flip, scores
from tests.pipeline.tiny import MODALITIES, NAMES, given, held, make
from tests.pipeline.training import reference_steps


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """80 samples: ten of each pattern of image, tag and label, also of none."""
    return make(tmp_path_factory.mktemp("baselines") / "tiny", 80)


@pytest.mark.parametrize("names", [None, ["image", "label"], ["tag"]])
@pytest.mark.parametrize(
    "pairing",
    [Pairing(view="split", fraction=0.5), Pairing(view="keep-one", fraction=0.5), Pairing(view="keep", keep=0.6), None],
)
def test_samples_of_which_a_view_shows_all_that_is_asked_for(
    tiny: Manifest, names: list[str] | None, pairing: Pairing | None
) -> None:
    run = Run(recipe="tiny", data=tiny.directory, modalities=MODALITIES, pairing=pairing or Pairing())
    expected = {
        sample
        for sample, key in enumerate(tiny.keys(range(len(tiny))))
        if key.startswith("train") and set(names or NAMES) <= set(held(int(key[-4:])))
    }
    if pairing:
        stream = training_stream(run, check_data(run))
        rows = stream.rows(np.arange(sum(stream.describe().values()) - stream.describe().get("empty", 0)))
        wanted = [NAMES.index(name) for name in names or NAMES]
        expected &= set(rows.sample_B[(rows.member_BM[:, wanted] >= 0).all(1)].tolist())
    found = complete_samples(tiny, run, "train", pairing, names)
    assert sorted(found.tolist()) == sorted(expected)
    assert expected


def test_only_what_is_asked_for_is_read(tiny: Manifest, tmp_path: Path) -> None:
    shutil.copytree(tiny.directory, tmp_path / "d")
    manifest = open_manifest(tmp_path / "d")
    run = Run(recipe="tiny", data=str(tmp_path / "d"), modalities=MODALITIES)
    samples = complete_samples(manifest, run, "train")
    expected = read(manifest, run, samples)
    flip(manifest, samples, "label")
    found = read(manifest, replace(run, train=replace(run.train, damage=0.0)), samples, ["image"])
    assert list(found) == ["image"]
    np.testing.assert_array_equal(found["image"], expected["image"])
    assert {name: value.shape for name, value in read(manifest, run, samples[:0]).items()} == {
        "image": (0, 2, 3), "tag": (0,), "label": (0,),
    }  # fmt: skip


@pytest.mark.parametrize("view", ["split", "keep-one", "declared"])
def test_jmvae_trains_on_the_pairs_only(view: str, digits_dir: Path) -> None:
    settings = {"pairing.complete_share": 0.25, "train.batch": 50, "train.best": "val/elbo"}
    run = a_run(digits_dir, 0.05, **{"pairing.view": view, **settings})
    there = jmvae_on_pairs(run)
    assert (there.model.system, there.objective.alpha) == ("jmvae", 0.01)
    assert there.optim == run.optim
    assert there.train == run.train
    manifest = check_data(there)
    shown = training_stream(there, manifest).rows(np.arange(20 * 50))
    if view == "declared":
        shown = training_stream(there, manifest).rows(np.arange(1300))
    assert (shown.member_BM >= 0).all()
    expected = complete_samples(manifest, run, "train", run.pairing)
    assert len(expected) == (1258 if view == "declared" else 63)
    assert set(shown.sample_B.tolist()) == set(expected.tolist())
    losses, _ = reference_steps(there, 3)
    assert np.isfinite(losses).all()


# What is said where it cannot be done


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    ("label", "picture", "sentence"),
    [
        ("top", "bottom", "baselines predict a class, and 'top' is no label of recipe digits: choose label"),
        ("labels", "bottom", "'labels' is no label of recipe digits: choose label"),
        ("label", "label", "baselines predict from a picture, and 'label' is no image .*: choose top or bottom"),
    ],
)
def test_of_what_and_from_what(name: str, label: str, picture: str, sentence: str, digits_dir: Path) -> None:
    run = a_run(digits_dir)
    with pytest.raises(UserError, match=sentence):
        BASELINES[name].scores(check_data(run), [run], label, picture, "test", Fitting(1))


def test_no_label_at_all(digits_dir: Path) -> None:
    modalities = {"bottom": DIGITS.modalities["bottom"]}
    run = Run(recipe="halves", data=str(digits_dir), modalities=modalities)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="'label' is no label of recipe halves: it has none, so they do not apply to it"
    ):
        scores("network", [run])


def test_runs_that_differ_in_more_than_pairs_share_nothing(digits_dir: Path) -> None:
    with pytest.raises(UserError, match="may differ in their pairing only"):
        scores("vae", [a_run(digits_dir), a_run(digits_dir, seed=1)])


def test_a_split_without_labels(tmp_path: Path) -> None:
    whole = [
        entry._replace(source=load(entry), split=("train", "val")[entry.source % 2])
        for entry in DIGITS.entries(None)[:60]
    ]
    bare = Entry("bare", "test", {"bottom": np.zeros((4, 8))})
    write(tmp_path / "d", given("digits", DIGITS.modalities, [*whole, bare]))
    for name in BASELINES:
        with pytest.raises(UserError, match="no sample of split test has both bottom and label"):
            scores(name, [a_run(tmp_path / "d")], epochs=1)


def test_a_view_that_knows_no_pairs_trains_no_jmvae(digits_dir: Path) -> None:
    run = a_run(digits_dir)
    with pytest.raises(UserError, match="knows no pairs to train JMVAE on"):
        jmvae_on_pairs(replace(run, pairing=Pairing(view="keep", keep=0.5)))
