"""What is made of MNIST: what these corpora have in common, MultiMNIST, MNIST-Split, and all from the real files."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from infra.errors import UserError
from pipeline.corpora import mnist, multimnist
from pipeline.corpora.binary_mnist import BINARY_MNIST
from pipeline.corpora.corpus import Corpus
from pipeline.corpora.mnist_digits import MNIST_DIGITS
from pipeline.corpora.mnist_split import MNIST_SPLIT, MNIST_SPLIT3
from pipeline.corpora.mnist_svhn import MNIST_SVHN
from pipeline.corpora.multimnist import MULTIMNIST
from tests.pipeline import official
from tests.pipeline.official import counts, mnist_and_svhn, real, stored, written

FAMILY = {
    corpus.name: corpus for corpus in (BINARY_MNIST, MULTIMNIST, MNIST_SPLIT, MNIST_SPLIT3, MNIST_SVHN, MNIST_DIGITS)
}


@pytest.mark.parametrize("name", FAMILY)
def test_keys_splits_and_values_follow_from_the_files_alone(tmp_path: Path, name: str) -> None:
    """The same in another directory, of which nothing is in a cache, and in another order."""
    corpus = FAMILY[name]
    first = corpus.entries(mnist_and_svhn(tmp_path / "a"))
    values = [corpus.load(entry) for entry in first]
    second = corpus.entries(mnist_and_svhn(tmp_path / "b"))
    assert [(e.key, e.split, e.links) for e in first] == [(e.key, e.split, e.links) for e in second]
    for entry, before in reversed(list(zip(second, values, strict=True))):
        after = corpus.load(entry)
        assert after.keys() == before.keys()
        for modality, value in before.items():
            np.testing.assert_array_equal(after[modality], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_other_processes_write_the_same_bytes(tmp_path: Path, name: str) -> None:
    raw = mnist_and_svhn(tmp_path / "raw")
    for workers in (1, 2):
        written(FAMILY[name], raw, tmp_path / str(workers), workers=workers, shard_bytes=8192)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


@pytest.mark.parametrize("name", FAMILY)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    raw = mnist_and_svhn(tmp_path / "raw")
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"has no t10k-labels-idx1-ubyte\.gz: expected are train-images-idx3-ubyte, "):
        FAMILY[name].entries(raw)
    assert "t10k-labels-idx1-ubyte" in FAMILY[name].needs


# MultiMNIST


def plain(part: str, number: int) -> np.ndarray:
    """A picture of one level, which tells its place, and by which it is known when it is scaled."""
    return np.full((28, 28), 1 + number + (100 if part == "t10k" else 0), np.uint8)


def test_a_canvas_holds_its_digits_and_its_string_reads_them(tmp_path: Path) -> None:
    raw = official.write_mnist(tmp_path / "raw", train=90, test=90, picture=plain)
    manifest = written(MULTIMNIST, raw, tmp_path / "d")
    assert counts(manifest) == {"train": 75, "val": 15, "test": 90}
    part_of = {"train": "train", "val": "train", "test": "t10k"}
    allowed: dict[str, set[int]] = {split: set() for split in part_of}
    for entry in mnist.entries(raw):
        allowed[entry.split].add(entry.source.number)
    shown: dict[str, set[int]] = {split: set() for split in part_of}
    filled = Counter[tuple[bool, ...]]()
    for split, rows in manifest.splits.items():
        keys = [f"{split}/{number:05d}" for number in range(len(rows))]
        assert manifest.keys(rows) == keys
        held = stored(manifest, MULTIMNIST.modalities, keys)
        for image, string in zip(np.rint(held["image"] * 255).astype(int), held["string"], strict=True):
            cells = [image[:25, :25], image[:25, 25:], image[25:, :25], image[25:, 25:]]
            assert all(np.ptp(cell) == 0 for cell in cells)
            levels = [int(cell[0, 0]) for cell in cells]
            numbers = [level - 1 - (100 if split == "test" else 0) for level in levels if level]
            assert string.tolist() == ([number % 10 + 2 for number in numbers] + [0] * 5)[:5]
            shown[split] |= set(numbers)
            filled[tuple(level > 0 for level in levels)] += 1
    assert all(shown[split] <= allowed[split] for split in part_of)
    assert all(len(shown[split]) > 0.6 * len(allowed[split]) for split in part_of)
    assert len(filled) == 16


def test_how_many_digits_where_and_which_is_uniform() -> None:
    places = [mnist.Place("", "train", 3 * number) for number in range(8000)]
    rows = np.array([entry.source.numbers for entry in multimnist._canvases("train", places)])
    count = (rows >= 0).sum(1)
    assert stats.chisquare(np.bincount(count, minlength=5)).pvalue > 1e-3
    for digits_there, choices in ((1, 4), (2, 6), (3, 4)):
        which = Counter(map(tuple, (rows[count == digits_there] >= 0).tolist()))
        assert len(which) == choices
        assert stats.chisquare(list(which.values())).pvalue > 1e-3
    used = rows[rows >= 0]
    assert (used % 3 == 0).all()
    assert stats.kstest(used / 24000, "uniform").pvalue > 1e-3
    four = rows[count == 4]
    assert abs(np.corrcoef(four.T) - np.eye(4)).max() < 0.1


def test_a_digit_is_scaled_by_the_mean_of_what_a_pixel_covers(tmp_path: Path) -> None:
    raw = official.write_mnist(tmp_path / "raw", picture=official.strokes)
    cover = np.zeros((25, 28))
    for row in range(25):
        for column in range(28):
            overlap = min((row + 1) * 28 / 25, column + 1) - max(row * 28 / 25, column)
            cover[row, column] = max(0.0, overlap) * 25 / 28
    canvases = [entry for entry in MULTIMNIST.entries(raw) if entry.source.numbers[1] >= 0]
    image = MULTIMNIST.load(canvases[0])["image"]
    assert isinstance(image, np.ndarray)
    digit = official.strokes("train", canvases[0].source.numbers[1])
    np.testing.assert_allclose(image[:25, 25:], cover @ digit @ cover.T, atol=1)


# MNIST-Split


@pytest.mark.parametrize(
    ("corpus", "heights"),
    [(MNIST_SPLIT, {"top": 14, "bottom": 14}), (MNIST_SPLIT3, {"top": 9, "middle": 10, "bottom": 9})],
)
def test_the_parts_of_a_digit_are_the_digit(tmp_path: Path, corpus: Corpus, heights: dict[str, int]) -> None:
    raw = official.write_mnist(tmp_path / "raw", picture=official.strokes)
    assert corpus.entries(raw) == mnist.entries(raw)
    keys = [entry.key for entry in mnist.entries(raw)]
    manifest = written(corpus, raw, tmp_path / "d")
    held = stored(manifest, corpus.modalities, keys)
    assert {name: held[name].shape[1:] for name in heights} == {name: (height, 28) for name, height in heights.items()}
    whole = np.concatenate([held[name] for name in heights], 1)
    for key, image, label in zip(keys, whole, held["label"], strict=True):
        part, number = key.split("/")
        np.testing.assert_array_equal(np.rint(image * 255), official.strokes(part, int(number)))
        assert label == int(number) % 10


# The real MNIST


OFFICIAL = {"train": 50_000, "val": 10_000, "test": 10_000}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary-mnist", "multimnist", "mnist-split", "mnist-split3", "mnist-digits"])
def test_the_whole_of_mnist(tmp_path: Path, name: str) -> None:
    corpus, raw = FAMILY[name], real("mnist")
    entries = corpus.entries(raw)
    pool = {"pool": 1797} if name == "mnist-digits" else {}
    assert Counter(entry.split for entry in entries) == OFFICIAL | pool
    with gzip.open(raw / "t10k-images-idx3-ubyte.gz") as file:
        first = np.frombuffer(file.read(16 + 784)[16:], np.uint8).reshape(28, 28)
    values = corpus.load(next(entry for entry in entries if entry.split == "test"))
    if name == "binary-mnist":
        assert np.corrcoef(np.ravel(values["image"]), first.ravel())[0, 1] > 0.7
        some = entries[::71]  # classes recur every so often in MNIST
        lit = np.mean([np.mean(corpus.load(entry)["image"]) for entry in some])
        assert lit == pytest.approx(np.mean([mnist.load(entry)["image"] for entry in some]) / 255, abs=1e-3)
    elif name == "multimnist":
        lengths = np.bincount([sum(n >= 0 for n in entry.source.numbers) for entry in entries])
        assert stats.chisquare(lengths).pvalue > 1e-3
    elif name == "mnist-digits":
        np.testing.assert_array_equal(values["mnist"], first)
        assert all(entry.split == "pool" or len((entry.links or {})["digits"]) == 20 for entry in entries)
        assert corpus.notes(raw) == []
    else:
        parts = [value for modality, value in values.items() if modality != "label"]
        np.testing.assert_array_equal(np.concatenate(parts), first)
