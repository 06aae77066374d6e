"""MNIST and CelebA as corpora: what all corpora have in common, and what MNIST is made from."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from modalities.networks import parameter_count
from pipeline.baselines import read
from pipeline.corpora import CORPORA, prepare
from pipeline.description import described, readers
from pipeline.recipes import recipe
from pipeline.train import build
from tests.pipeline import official
from tests.pipeline.official import counts, made, values


def test_a_corpus_that_needs_official_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in (("mnist", "train-images-idx3-ubyte"), ("celeba", "list_eval_partition")):
        with pytest.raises(UserError, match=f"corpus {name} is made from .*{file}.*: say with --source DIR"):
            prepare(name, tmp_path / name)
        with pytest.raises(UserError, match=f"--source nowhere is no directory: it has to hold .*{file}"):
            prepare(name, tmp_path / name, source=Path("nowhere"))
    with pytest.raises(UserError, match=f"digits is made from no files of yours: leave --source {tmp_path} away"):
        prepare("digits", tmp_path / "digits", source=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_needs_no_source(tmp_path: Path) -> None:
    manifest = made("mnist", official.write_mnist(tmp_path / "raw"), tmp_path / "mnist")
    assert prepare("mnist", tmp_path / "mnist").fingerprint == manifest.fingerprint
    (tmp_path / "mnist" / "modalities.json").unlink()  # as an earlier version left it
    assert prepare("mnist", tmp_path / "mnist").samples == 0
    assert described(manifest) == dict(CORPORA["mnist"].modalities)


def test_fashion_mnist_has_the_network_that_the_paper_counts() -> None:
    """Table 1; the corpus is read as MNIST's is."""
    run = recipe("fashion-mnist")
    assert parameter_count(build(run).encoders) == 3_742_976
    assert CORPORA["fashion-mnist"].load is CORPORA["mnist"].load


DEBIANS = Path("/usr/share/datasets/fashion-mnist")

# MNIST


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_what_the_official_files_hold(tmp_path: Path, zipped: bool) -> None:
    manifest = made("mnist", official.write_mnist(tmp_path / "raw", zipped=zipped), tmp_path / "mnist")
    assert counts(manifest) == {"train": 20, "val": 4, "test": 6}
    keys = manifest.keys(range(len(manifest)))
    assert set(keys) == {f"train/{n:05d}" for n in range(24)} | {f"t10k/{n:05d}" for n in range(6)}
    assert {key.split("/")[0] for key in manifest.keys(manifest.split("test"))} == {"t10k"}
    held = values(manifest)
    for key, image, label in zip(keys, held["image"], held["label"], strict=True):
        part, number = key.split("/")
        np.testing.assert_allclose(image * 255, official.digit(part, int(number)), atol=1e-4)
        assert label == int(number) % 10


def test_mnist_without_a_file(tmp_path: Path) -> None:
    raw = official.write_mnist(tmp_path / "raw")
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"has no t10k-labels-idx1-ubyte\.gz: expected are train-images-idx3-ubyte, "):
        made("mnist", raw, tmp_path / "mnist")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


DIGITS = np.zeros((24, 28, 28))
SPOILT_MNIST: dict[str, tuple[str, bytes, str]] = {
    "cut off": ("images-idx3", gzip.compress(official.idx(DIGITS))[:-9], "cannot be unpacked .*fetch it again"),
    "no gzip": ("images-idx3", b"<html>not found</html>", "cannot be unpacked"),
    "empty": ("images-idx3", gzip.compress(b""), "begins with nothing, expected 00000803"),
    "labels for images": (
        "images-idx3",
        gzip.compress(official.idx(np.arange(24))),
        "with 00000801, expected 00000803",
    ),
    "of floats": (
        "labels-idx1",
        gzip.compress(official.idx(np.arange(24), 0x0D01)),
        "with 00000d01, expected 00000801",
    ),
    "too short": ("images-idx3", gzip.compress(official.idx(DIGITS)[:-5]), "expected 18,832 bytes .* got 18,827"),
    "too long": ("labels-idx1", gzip.compress(official.idx(np.arange(24)) + b"0"), "expected 32 bytes .* got 33"),
    "one label less": ("labels-idx1", gzip.compress(official.idx(np.arange(23) % 10)), "24 images, .* 23 labels"),
    "of another size": ("images-idx3", gzip.compress(official.idx(DIGITS[:, 1:])), r"28 x 28 pixels, got \(27, 28\)"),
    "an eleventh class": (
        "labels-idx1",
        gzip.compress(official.idx(np.arange(24))),
        "image 10 is 10, expected 0",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT_MNIST)
def test_mnist_from_a_file_that_is_not_whole(tmp_path: Path, spoilt: str) -> None:
    kind, data, sentence = SPOILT_MNIST[spoilt]
    file = official.write_mnist(tmp_path / "raw") / f"train-{kind}-ubyte.gz"
    file.write_bytes(data)
    with pytest.raises(UserError, match=sentence) as caught:
        made("mnist", file.parent, tmp_path / "mnist")
    assert any(name in str(caught.value) for name in (file.name, "train/000"))


@pytest.mark.slow
def test_the_whole_of_mnist(tmp_path: Path) -> None:
    """Official counts, the split of the papers, the histogram of the label files, and the first digit of each."""
    raw = official.real("mnist")
    manifest = made("mnist", raw, tmp_path / "mnist")
    assert counts(manifest) == {"train": 50_000, "val": 10_000, "test": 10_000}
    run = recipe("mnist")
    labels = replace(run, modalities={"label": run.modalities["label"]})
    label = {split: read(manifest, labels, np.array(rows))["label"] for split, rows in manifest.splits.items()}
    training = np.bincount(np.concatenate([label["train"], label["val"]]))
    assert training.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(label["test"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    held = values(manifest, ["train/00000", "train/59999", "t10k/00000"])
    assert held["label"].tolist() == [5, 8, 7]
    with gzip.open(raw / "t10k-images-idx3-ubyte.gz") as file:
        first = np.frombuffer(file.read(16 + 784)[16:], np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(np.rint(held["image"][2] * 255), first)


@pytest.mark.slow
def test_the_whole_of_fashion_mnist(tmp_path: Path) -> None:
    """As Debian's package dataset-fashion-mnist has it: each class as often as every other."""
    if not DEBIANS.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    manifest = made("fashion-mnist", DEBIANS, tmp_path / "fashion-mnist")
    assert counts(manifest) == {"train": 50_000, "val": 10_000, "test": 10_000}
    labels = replace(recipe("fashion-mnist"), modalities={"label": described(manifest)["label"]})
    found = {split: read(manifest, labels, np.array(rows))["label"] for split, rows in manifest.splits.items()}
    assert np.bincount(np.concatenate([found["train"], found["val"]])).tolist() == [6000] * 10
    assert np.bincount(found["test"]).tolist() == [1000] * 10
    first = values(manifest, ["train/00000", "t10k/00000"])
    name = readers(manifest, labels.modalities)["label"]
    assert [name(label) for label in first["label"]] == ["Ankle boot", "Ankle boot"]
