"""MNIST of zeros and ones: sampled from MNIST's levels, and from the fixed binarisation's official files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from infra.errors import UserError
from pipeline.corpora import binary_mnist, mnist
from pipeline.corpora.binary_mnist import BINARY_MNIST, sampled
from tests.pipeline import official
from tests.pipeline.official import by_key, counts, cut, real, stored, written


def test_pixels_are_sampled_by_their_level(tmp_path: Path) -> None:
    """Against SplitMix64 in Python's integers, and against the probabilities that are asked for."""
    levels = np.arange(784).reshape(28, 28) % 256
    start, golden, size = xxhash.xxh3_64_intdigest(b"train/00007", seed=2011), 0x9E3779B97F4A7C15, 2**64

    def pixel(number: int) -> int:
        z = (start + (number + 1) * golden) % size
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % size
        z = (z ^ z >> 27) * 0x94D049BB133111EB % size
        return int((z ^ z >> 31) % 255 < levels.flat[number])

    np.testing.assert_array_equal(sampled("train/00007", levels).flat, [pixel(number) for number in range(784)])
    drawn = np.stack([sampled(f"train/{number:05d}", np.tile(np.arange(256), 8)) for number in range(500)])
    often = drawn.reshape(-1, 256).mean(0)
    assert often[0] == 0
    assert often[255] == 1
    expected = np.arange(256) / 255
    assert np.abs(often - expected).max() < 4.5 * np.sqrt(0.25 / 4000)
    assert abs((often - expected).mean()) < 4 * np.sqrt(1 / 6 / 4000 / 256)


def test_sampled_binary_mnist_is_mnist_in_all_else(tmp_path: Path) -> None:
    raw = official.write_mnist(tmp_path / "raw", picture=official.strokes)
    manifest = written(BINARY_MNIST, raw, tmp_path / "d")
    assert counts(manifest) == {"train": 20, "val": 4, "test": 6}
    original = by_key(mnist.MNIST, raw)
    held = stored(manifest, BINARY_MNIST.modalities, list(original))
    for key, image, label in zip(original, held["image"], held["label"], strict=True):
        value = mnist.load(original[key])
        assert label == value["label"]
        np.testing.assert_array_equal(image, sampled(key, value["image"]))
        np.testing.assert_array_equal(image[value["image"] != 100], value["image"][value["image"] != 100] == 255)
    assert {key: e.split for key, e in by_key(BINARY_MNIST, raw).items()} == {k: e.split for k, e in original.items()}
    (note,) = BINARY_MNIST.notes(raw)
    assert "sampled once, 1 with probability level / 255 (seed 2011), not the fixed binarisation" in note
    assert "binarized_mnist_train.amat" in note


@pytest.fixture
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """20, 4 and 6 lines instead of the official 50,000, 10,000 and 10,000, read 7 at a time."""
    train, valid, test = binary_mnist.FILES
    small = (train._replace(lines=20), valid._replace(first=20, lines=4), test._replace(lines=6))
    monkeypatch.setattr(binary_mnist, "FILES", small)
    monkeypatch.setattr(binary_mnist, "CHUNK", 7)


def fixed(place: Path, labelled: bool = True, end: str = "\n") -> Path:
    """The fixed binarisation of 20, 4 and 6 pictures, and MNIST beside it."""
    if labelled:
        official.write_mnist(place, picture=official.strokes)
    for part, of, numbers in (
        ("train", "train", range(20)),
        ("valid", "train", range(20, 24)),
        ("test", "t10k", range(6)),
    ):
        official.write_amat(place, part, [official.strokes(of, number) for number in numbers], end)
    return place


@pytest.mark.usefixtures("_small_files")
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_fixed_binarisation_is_stored_where_it_is_there(tmp_path: Path, labelled: bool, end: str) -> None:
    raw = fixed(tmp_path / "raw", labelled, end)
    manifest = written(BINARY_MNIST, raw, tmp_path / "d")
    splits = {split: manifest.keys(rows) for split, rows in manifest.splits.items()}
    assert splits["train"] == [f"train/{number:05d}" for number in range(20)]
    assert splits["val"] == [f"train/{number:05d}" for number in range(20, 24)]
    assert splits["test"] == [f"t10k/{number:05d}" for number in range(6)]
    keys = [key for part in splits.values() for key in part]
    images = stored(manifest, {"image": BINARY_MNIST.modalities["image"]}, keys)["image"]
    for key, image in zip(keys, images, strict=True):
        part, number = key.split("/")
        np.testing.assert_array_equal(image, official.strokes(part, int(number)) > 127)
    if labelled:
        held = stored(manifest, {"label": BINARY_MNIST.modalities["label"]}, keys)
        assert held["label"].tolist() == [int(key.split("/")[1]) % 10 for key in keys]
    else:
        assert not any("label" in BINARY_MNIST.load(entry) for entry in BINARY_MNIST.entries(raw))
    told = "labels: MNIST's" if labelled else "labels: none, every sample lacks its own"
    pixels, labels = BINARY_MNIST.notes(raw)
    assert pixels == "pixels and splits: the fixed binarisation's"
    assert labels.startswith(told)


def change(file: Path, line: int, place: int, byte: bytes) -> None:
    data = bytearray(file.read_bytes())
    data[(line - 1) * 1568 + place : (line - 1) * 1568 + place + 1] = byte
    file.write_bytes(data)


SPOILT_AMAT: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: cut(file, 0), "line 1: expected 784 zeros and ones"),
    "a page": (lambda file: file.write_text("<html>not found</html>\n"), "line 1: expected 784"),
    "cut in a line": (lambda file: cut(file, 9 * 1568 + 100), "line 10: expected 784 .*fetch it again"),
    "cut between lines": (lambda file: cut(file, 9 * 1568), "has 9 lines, expected 20"),
    "one line more": (lambda file: file.write_bytes(file.read_bytes() + file.read_bytes()[:1568]), "has 21 lines"),
    "a two": (lambda file: change(file, 16, 6, b"2"), "line 16: expected 784"),
    "one bit": (lambda file: change(file, 16, 7, b"!"), "line 16: expected 784"),
    "a tab": (lambda file: change(file, 3, 5, b"\t"), "line 3: expected 784"),
    "a pixel less": (lambda file: change(file, 8, 4, b""), "line 8: expected 784"),
    "a blank more": (lambda file: change(file, 20, 0, b" 0"), "line 20: expected 784"),
    "another digit": (lambda file: redraw(file, 18, official.strokes("t10k", 3)), "line 18 does not show the digit"),
    "black": (lambda file: redraw(file, 5, np.zeros((28, 28))), "line 5 does not show the digit at its place"),
}


def redraw(file: Path, line: int, picture: np.ndarray) -> None:
    pictures = [official.strokes("train", number) for number in range(20)]
    pictures[line - 1] = picture
    official.write_amat(file.parent, "train", pictures)


@pytest.mark.usefixtures("_small_files")
@pytest.mark.parametrize("spoilt", SPOILT_AMAT)
def test_a_binarisation_that_is_not_whole(tmp_path: Path, spoilt: str) -> None:
    spoil, sentence = SPOILT_AMAT[spoilt]
    file = fixed(tmp_path / "raw") / "binarized_mnist_train.amat"
    spoil(file)
    with pytest.raises(UserError, match=sentence) as caught:
        BINARY_MNIST.entries(file.parent)
    assert str(file) in str(caught.value)


@pytest.mark.usefixtures("_small_files")
def test_half_a_binarisation_or_another_mnist(tmp_path: Path) -> None:
    raw = fixed(tmp_path / "raw")
    (raw / "binarized_mnist_valid.amat").unlink()
    with pytest.raises(UserError, match=r"has no binarized_mnist_valid\.amat: expected are .* or both"):
        BINARY_MNIST.entries(raw)
    with pytest.raises(UserError, match=r"has no binarized_mnist_train\.amat: expected are .*train-images-idx3-ubyte"):
        BINARY_MNIST.entries(tmp_path)
    raw = fixed(tmp_path / "fewer")
    official.write_mnist(raw, train=22, picture=official.strokes)
    with pytest.raises(UserError, match=r"valid\.amat, line 3 does not show the digit at its place in MNIST's files"):
        BINARY_MNIST.entries(raw)


@pytest.mark.slow
def test_lines_are_told_from_those_of_another_digit() -> None:
    """All real digits, binarised, fit their own place; shifted by one place, no 100 of them fit."""
    images = mnist.read_part(str(real("mnist")), "t10k")[0]
    bits = np.stack([sampled(f"t10k/{number:05d}", image).ravel() for number, image in enumerate(images)])
    lines = np.packbits(bits, axis=1)
    binary_mnist._compare(Path("x.amat"), lines, images)
    for start in range(0, 9900, 100):
        with pytest.raises(UserError, match="does not show the digit"):
            binary_mnist._compare(Path("x.amat"), lines[start : start + 100], images[start + 1 :])
