"""MNIST's digits with partners of their class: SVHN's house numbers, scikit-learn's digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from scipy import stats
from scipy.io import savemat
from sklearn.datasets import load_digits

from infra.errors import UserError
from pipeline.corpora import digits, mnist, mnist_svhn
from pipeline.corpora.corpus import Entry
from pipeline.corpora.mnist_digits import MNIST_DIGITS
from pipeline.corpora.mnist_svhn import MNIST_SVHN
from tests.pipeline import official
from tests.pipeline.official import CLASSES, by_key, cut, mnist_and_svhn, stored, written


def check_links(entries: dict[str, Entry], modality: str, label: Callable[[Entry], int], split: dict[str, str]) -> None:
    """20 different partners of the digit's class, from the pictures of its split."""
    for entry in entries.values():
        if entry.split == "pool":
            assert entry.links is None
            continue
        assert entry.links is not None
        assert list(entry.links) == [modality]
        keys = entry.links[modality]
        assert len(set(keys)) == len(keys) == 20
        assert {entries[key].split for key in keys} == {"pool"}
        assert {label(entries[key]) for key in keys} == {int(entry.source.number) % 10}
        assert {split[key] for key in keys} == {entry.split}


def test_mnist_digits_have_house_numbers_of_their_class_and_split(tmp_path: Path) -> None:
    """250 of each class in tiny SVHN: the sixth of those is enough for 20 partners in val."""
    raw = official.write_mnist(tmp_path / "raw")
    official.write_svhn(raw, "train", [1 + number % 10 for number in range(2500)])
    official.write_svhn(raw, "test", [1 + number % 10 for number in range(230)])
    entries = by_key(MNIST_SVHN, raw)
    assert list(entries)[:30] == [entry.key for entry in mnist.entries(raw)]
    pool = {key: entry for key, entry in entries.items() if entry.split == "pool"}
    names = [f"svhn/{part}/{n:05d}" for part, count in (("train", 2500), ("test", 230)) for n in range(count)]
    assert list(pool) == names
    assert Counter(entry.split for entry in entries.values()) == {"train": 20, "val": 4, "test": 6, "pool": 2730}
    training = [key for key in pool if key.startswith("svhn/train/")]
    val = set(sorted(training, key=lambda key: xxhash.xxh3_64_intdigest(key.encode(), seed=1998))[: 2500 // 6])
    split = {key: "val" if key in val else key.split("/")[1] for key in pool}
    check_links(entries, "svhn", lambda entry: (1 + entry.source.number) % 10, split)
    assert len({tuple(entry.links["svhn"]) for entry in entries.values() if entry.links}) == 30
    assert MNIST_SVHN.notes(raw) == []


def test_partners_are_chosen_evenly(tmp_path: Path) -> None:
    raw = official.write_mnist(tmp_path / "raw", train=2400, picture=lambda part, number: np.zeros((28, 28)))
    official.write_svhn(raw, "train", CLASSES * 3)
    official.write_svhn(raw, "test", CLASSES)
    chosen = Counter(
        key
        for entry in MNIST_SVHN.entries(raw)
        if entry.split == "train" and entry.links and entry.source.number % 10 == 4
        for key in entry.links["svhn"]
    )
    assert len(chosen) == pytest.approx(60 * 5 / 6, abs=10)
    # chosen without replacement: less uneven than independent draws, for which this would be chi-squared
    assert stats.chisquare(list(chosen.values())).pvalue > 1e-3


def test_house_numbers_are_stored_as_they_are(tmp_path: Path) -> None:
    raw = mnist_and_svhn(tmp_path / "raw")
    manifest = written(MNIST_SVHN, raw, tmp_path / "d")
    keys = ["svhn/train/00000", "svhn/train/00199", "svhn/test/00017"]
    held = stored(manifest, {"svhn": MNIST_SVHN.modalities["svhn"]}, keys)["svhn"]
    assert held.shape == (3, 3, 32, 32)
    for key, image in zip(keys, held, strict=True):
        _, part, number = key.split("/")
        np.testing.assert_allclose(image * 255, official.house_number(part, int(number)).transpose(2, 0, 1), atol=1e-4)
    modalities = {name: MNIST_SVHN.modalities[name] for name in ("mnist", "label")}
    held = stored(manifest, modalities, ["train/00013", "t10k/00002"])
    np.testing.assert_array_equal(np.rint(held["mnist"][0] * 255), official.strokes("train", 13))
    np.testing.assert_array_equal(np.rint(held["mnist"][1] * 255), official.strokes("t10k", 2))
    assert held["label"].tolist() == [3, 2]


def test_too_few_partners_are_counted(tmp_path: Path) -> None:
    """In this test file each class has 20 pictures but for 3, which has 18, and 0, which has none."""
    raw = official.write_mnist(tmp_path / "raw", train=120, test=30)
    official.write_svhn(raw, "train", CLASSES * 12)
    official.write_svhn(raw, "test", [one for one in CLASSES if one not in (3, 10)] + [3] * 18)
    entries = by_key(MNIST_SVHN, raw)
    of_class = {number: entries[f"t10k/{number:05d}"].links for number in range(30)}
    assert all(of_class[number] is None for number in (0, 10, 20))
    for number in (3, 13, 23):
        links = of_class[number]
        assert links is not None
        assert len(set(links["svhn"])) == 18
    assert all(len(links["svhn"]) == 20 for number, links in of_class.items() if links and number % 10 != 3)
    assert MNIST_SVHN.notes(raw) == [
        "svhn: 3 digits 0 of test have none: they lack it",
        "svhn: 3 digits 3 of test have 18 partners each instead of 20",
    ]


def test_mnist_digits_have_digits_of_their_class_and_split(tmp_path: Path) -> None:
    raw = official.write_mnist(tmp_path / "raw", train=60, test=20)
    entries, original = by_key(MNIST_DIGITS, raw), {entry.key: entry for entry in digits.entries()}
    assert len(entries) == 80 + 1797
    split = {key: entry.split for key, entry in original.items()}
    check_links(entries, "digits", lambda entry: int(digits.load(entry)["label"]), split)
    assert MNIST_DIGITS.notes(raw) == []
    manifest = written(MNIST_DIGITS, raw, tmp_path / "d")
    held = stored(manifest, {"digits": MNIST_DIGITS.modalities["digits"]}, list(original))["digits"]
    np.testing.assert_array_equal(np.rint(held * 16), load_digits().images)


WHOLE = {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.ones((20, 1), np.uint8)}
SPOILT_SVHN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: cut(file, 0), "cannot be read .*fetch it again"),
    "a page": (lambda file: file.write_text("<html>not found</html>"), "cannot be read"),
    "cut in its header": (lambda file: cut(file, 100), "cannot be read"),
    "cut in X": (lambda file: cut(file, 400), "cannot be read"),
    "cut at its end": (lambda file: cut(file, file.stat().st_size - 3), "cannot be read"),
    "damaged": (lambda file: file.write_bytes(file.read_bytes()[:300] + b"!" + file.read_bytes()[301:]), "cannot be"),
    "of version 7.3": (lambda file: file.write_bytes(b"MATLAB 7.3".ljust(124) + b"\x00\x02IM"), "cannot be read"),
    "without X": (lambda file: savemat(file, {"y": WHOLE["y"]}), "has no variable X: expected are X and y"),
    "without y": (lambda file: savemat(file, {"X": WHOLE["X"]}), "has no variable y: expected are X and y"),
    "grey": (lambda file: savemat(file, {**WHOLE, "X": WHOLE["X"][:, :, 0]}), r"got uint8 of \(32, 32, 20\)"),
    "the wrong way": (lambda file: savemat(file, {**WHOLE, "X": WHOLE["X"].T}), r"got uint8 of \(20, 3, 32, 32\)"),
    "of floats": (lambda file: savemat(file, {**WHOLE, "X": WHOLE["X"] / 255}), "of bytes .* got float64"),
    "one class less": (lambda file: savemat(file, {**WHOLE, "y": WHOLE["y"][1:]}), r"shape \(20, 1\).* got \(19, 1\)"),
    "a class 0": (lambda file: savemat(file, {**WHOLE, "y": classes(7, 0)}), "class of picture 7 is 0, expected 1 to"),
    "a class 11": (lambda file: savemat(file, {**WHOLE, "y": classes(0, 11)}), "class of picture 0 is 11, expected"),
}


def classes(wrong: int, value: int) -> np.ndarray:
    """Of 20 pictures, one of which has a class that there is not."""
    result = np.full((20, 1), 10, np.uint8)
    result[wrong] = value
    return result


@pytest.mark.parametrize("spoilt", SPOILT_SVHN)
def test_a_file_of_svhn_that_is_not_whole(tmp_path: Path, spoilt: str) -> None:
    spoil, sentence = SPOILT_SVHN[spoilt]
    file = mnist_and_svhn(tmp_path / "raw") / "test_32x32.mat"
    spoil(file)
    with pytest.raises(UserError, match=sentence) as caught:
        MNIST_SVHN.entries(file.parent)
    assert str(file) in str(caught.value)


def test_a_file_of_svhn_that_was_cut_off_anywhere(tmp_path: Path) -> None:
    """scipy raises half a dozen kinds of errors, and none where the second variable is not there."""
    file = official.write_svhn(tmp_path, "test", CLASSES)
    data = file.read_bytes()
    for size in (*range(200), *range(200, len(data), 41), *range(len(data) - 100, len(data))):
        file.write_bytes(data[:size])
        with pytest.raises(UserError, match="fetch it again"):
            mnist_svhn.read_mat(str(file))


def test_svhn_without_a_file(tmp_path: Path) -> None:
    raw = mnist_and_svhn(tmp_path / "raw")
    (raw / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"has no test_32x32\.mat: expected are .* train_32x32\.mat and test_32x32"):
        MNIST_SVHN.entries(raw)
