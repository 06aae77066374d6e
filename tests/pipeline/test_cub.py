"""Caltech-UCSD Birds as a corpus: from tiny files as published and as an excerpt, from spoilt ones, from the real."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipeline.corpora.cub import CUB, crop, words
from pipeline.tokenizers import Tokenizer
from tests.pipeline import official
from tests.pipeline.official_birds import (
    CLASSES,
    EACH,
    box,
    captions,
    class_of,
    key,
    name,
    opened,
    percentages,
    prepared,
    stored,
    write_birds,
)

NUMBERS = range(1, len(CLASSES) * EACH + 1)
THIRD = range(2 * EACH + 1, 3 * EACH + 1)


@pytest.mark.parametrize("excerpt", [False, True])
def test_cub_is_what_the_official_files_hold(tmp_path: Path, excerpt: bool) -> None:
    """An excerpt has no pictures of the third class, and no names of those in it without captions."""
    raw = write_birds(tmp_path / "raw", excerpt)
    manifest = prepared(CUB, raw, tmp_path / "cub")
    assert official.counts(manifest) == {"train": 48, "val": 6, "test": 6}
    held, tokenizer = stored(CUB, tmp_path / "cub"), Tokenizer(opened(CUB, raw).files["caption.model"])
    nameless = [n for n in THIRD if n % 2 == 0] if excerpt else []
    keys = {n: key(n) for n in NUMBERS} | {n: f"003/unnamed_{i:02d}" for i, n in enumerate(nameless, start=1)}
    assert sorted(held) == sorted(keys.values())
    for n in NUMBERS:
        values = held[keys[n]]
        seen = not excerpt or n not in THIRD
        assert set(values) == {"attributes"} | ({"caption"} if n % 2 else set()) | ({"image"} if seen else set())
        np.testing.assert_allclose(values["attributes"], np.array(percentages(class_of(n))) / 100, rtol=1e-6)
        if n % 2:
            assert tokenizer.decode(np.array(values["caption"])) == [words(caption) for caption in captions(n)]
        if seen:
            assert values["image"].shape == (3, 64, 64)
            _, _, across, down = box(n)
            half = 32 * across / down
            middle = values["image"][:, 8:-8, int(36 - half) : int(28 + half)] * 255
            np.testing.assert_allclose(middle, 4 * (n % 32), atol=12)
            for side in (values["image"][:, 8:-8, : int(29 - half)], values["image"][:, 8:-8, int(36 + half) :]):
                assert (side > 0.9).all()


@pytest.mark.parametrize("excerpt", [False, True])
def test_cub_says_what_its_samples_have(tmp_path: Path, excerpt: bool) -> None:
    raw = write_birds(tmp_path / "raw", excerpt)
    held, *others = CUB.notes(raw)
    counts = "20 samples have a picture and captions, 20 a picture only, 10 captions only, 10 neither"
    if not excerpt:
        counts = "30 samples have a picture and captions, 30 a picture only, 0 captions only, 0 neither"
    assert held == f"{counts}; all have the attributes of their class"
    unnamed = ["10 images have no name in these files: their keys are CLASS/unnamed_NN"] if excerpt else []
    assert others == [
        *unnamed,
        "0 of 90 captions have more than 31 words: cut off there",
        "splits: 80 % train, 10 % val, 10 % test of each class by the hash of the key",
    ]


def test_every_class_is_divided(tmp_path: Path) -> None:
    """16, 2 and 2 of its 20; the same whatever the order of the rows."""
    raw = write_birds(tmp_path / "raw")
    split = {entry.key: entry.split for entry in CUB.entries(raw)}
    for number in ("001", "002", "003"):
        assert Counter(split[k] for k in split if k.startswith(number)) == {"train": 16, "val": 2, "test": 2}
    other = write_birds(tmp_path / "other")
    for file in ("images.txt", "image_class_labels.txt"):
        (other / file).write_text("\n".join(reversed((other / file).read_text().splitlines())))
    assert {entry.key: entry.split for entry in CUB.entries(other)} == split


def test_words_that_train_does_not_have_are_unknown(tmp_path: Path) -> None:
    """The tokenizer has seen no caption of val and test."""
    raw = write_birds(tmp_path / "raw")
    split = {entry.key: entry.split for entry in CUB.entries(raw)}
    for n in NUMBERS[::2]:
        path = raw / "text_c10" / f"{name(n)}.txt"
        path.write_text(f"a bird of {split[key(n)]}\n" + "long " * 40)
    corpus = opened(CUB, shutil.copytree(raw, tmp_path / "copy"))
    tokenizer = Tokenizer(corpus.files["caption.model"])
    read = {e.split: tokenizer.decode(e.source.captions) for e in corpus.entries(tmp_path / "copy") if len(e.source[2])}
    assert read["train"][0] == "a bird of train"
    assert read["val"][0].split() == read["test"][0].split() == ["a", "bird", "of", "⁇"]
    assert read["val"][1].split() == ["long"] * 31
    assert "30 of 60 captions have more than 31 words" in " ".join(CUB.notes(tmp_path / "copy"))


def test_words_and_signs_are_apart() -> None:
    assert words("A Grey-brown bird's  bill, with(out) spots.") == "a grey-brown bird's bill , with ( out ) spots ."


@pytest.mark.parametrize(
    ("box", "scale", "corner", "side"),
    [
        ((20, 30, 40, 20), 1.0, (20, 20), 40),
        ((20, 30, 20, 40), 1.0, (10, 30), 40),
        ((0, 0, 30, 10), 1.0, (0, 0), 30),
        ((180, 90, 20, 10), 1.0, (180, 80), 20),
        ((10, 10, 170, 30), 1.0, (45, 0), 100),
        ((60, 90, 120, 60), 1 / 3, (20, 20), 40),
        ((199.9, 99.9, 0.1, 0.1), 1.0, (199, 99), 1),
    ],
)
def test_a_bird_is_cut_out_as_a_square(
    box: tuple[float, ...], scale: float, corner: tuple[int, int], side: int
) -> None:
    """Red tells the column and green the row of a picture of 100x200; corner is (column, row)."""
    rows, columns = np.mgrid[:100, :200].astype(np.uint8)
    image = crop(np.stack([columns, rows, np.zeros_like(rows)], 2), box, scale).astype(float)
    assert image.shape == (64, 64, 3)
    middle = side / 2 - 0.5
    np.testing.assert_allclose(image.mean((0, 1)), (corner[0] + middle, corner[1] + middle, 0), atol=0.6)
    assert abs(np.ptp(image[..., 0]) - side * (1 - 1 / max(side, 64))) < 2.1


def edited(file: str, before: str, after: str) -> Callable[[Path], object]:
    """Replace a text in one of the tables."""
    return lambda raw: (raw / file).write_text((raw / file).read_text().replace(before, after, 1))


def without(*files: str) -> Callable[[Path], object]:
    """Files or folders less."""

    def remove(raw: Path) -> None:
        for file in files:
            shutil.rmtree(raw / file) if (raw / file).is_dir() else (raw / file).unlink()

    return remove


def as_json(text: str) -> Callable[[Path], object]:
    """The captions in a file of this text."""

    def write(raw: Path) -> None:
        without("text_c10")(raw)
        (raw / "captions_by_image.json").write_text(text)

    return write


LABELS, BOXES, CONTINUOUS = "image_class_labels.txt", "bounding_boxes.txt", "class_attribute_labels_continuous.txt"
CAPTION = f"text_c10/{name(1)}.txt"
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no classes": (without("classes.txt"), r"expected one classes\.txt or classes\.txt\.xz, but it has none"),
    "no boxes": (without(BOXES), r"expected one bounding_boxes\.txt or .*none"),
    "no names": (without("images.txt"), r"expected one images\.txt or .*none"),
    "no attributes": (without(f"attributes/{CONTINUOUS}"), rf"attributes: expected one {CONTINUOUS} or .*none"),
    "no pictures": (without("images"), r"has no pictures: expected is a folder images/CLASS/ of JPEGs, or an images\*"),
    "no captions": (without("text_c10"), r"has no captions: expected is a folder text_c10/, or captions_by"),
    "an empty table": (lambda raw: (raw / LABELS).write_text(""), r"labels\.txt is empty: fetch it again"),
    "a number twice": (edited(LABELS, "7 1\n", "6 1\n"), r"labels\.txt, line 7: expected a number of its own and 1"),
    "a value more": (edited(LABELS, "7 1\n", "7 1 1\n"), r"line 7: expected a number of its own and 1 value.*'7 1 1'"),
    "a value less": (edited(BOXES, "2 58.0 ", "2 "), r"boxes\.txt, line 2: expected a number of its own and 4 value"),
    "no number": (edited(BOXES, "2 58.0", "2 left"), r"boxes\.txt, line 2: expected numbers only"),
    "a box less": (edited(BOXES, "1 54.0 30.0 60.0 101.0\n", ""), r"60 rows, bounding_boxes 59; image 1 is in one of"),
    "a fourth class": (edited(LABELS, "7 1\n", "7 4\n"), r"image_class_labels has class 4, which classes has not"),
    "another class": (edited(LABELS, "7 1\n", "7 2\n"), r"images calls image 7 001\.Crow/Crow_0007, which is not"),
    "an image more": (edited("images.txt", "1 ", "61 001.Crow/Crow_0061.jpg\n1 "), r"images calls image 61 001\.Crow"),
    "a percentage less": (edited(f"attributes/{CONTINUOUS}", "10.0 ", ""), r"line 1: expected 312 percentages, .* 311"),
    "too large a percentage": (edited(f"attributes/{CONTINUOUS}", "10.0 ", "101 "), "line 1: expected 312 percentages"),
    "a word": (edited(f"attributes/{CONTINUOUS}", "10.0 ", "often "), "line 1: expected numbers only"),
    "attributes of more": (edited(f"attributes/{CONTINUOUS}", "10.0", "1\n1"), "has 4 rows, classes 3: fetch both"),
    "captions of a strange class": (
        lambda raw: (raw / "text_c10/001.Crow").rename(raw / "text_c10/004.Jay"),
        r"captions of 004\.Jay/Crow_0001, whose class is not in classes",
    ),
    "captions of a strange image": (
        lambda raw: (raw / CAPTION).rename(raw / "text_c10/001.Crow/Crow_9999.txt"),
        r"name 1 more of class 001\.Crow than image_class_labels has",
    ),
    "a box of no numbers": (
        lambda raw: (raw / "bounding_boxes.txt").write_text("1 nan 1 2 3\n"),
        r"bounding_boxes\.txt, line 1: expected numbers only",
    ),
    "an image's name cut off": (
        lambda raw: (raw / "images.txt").write_text((raw / "images.txt").read_text()[:-8]),
        r"calls image 60 003\.Owl/Owl_0: expected a \.jpg of its own",
    ),
    "an image's name twice": (
        lambda raw: (raw / "images.txt").write_text(f"1 {name(1)}.jpg\n2 {name(1)}.jpg\n"),
        r"calls image 2 001\.Crow/Crow_0001\.jpg: expected a \.jpg of its own",
    ),
    "captions in Latin-1": (lambda raw: (raw / CAPTION).write_bytes(b"bl\xe5"), r"Crow_0001\.txt is not in UTF-8 "),
    "captions cut off": (as_json('{"001.Crow/Crow_0001": ["a'), r"captions_by_image\.json is no JSON .*fetch it again"),
    "captions in a list": (as_json('["a bird"]'), "expected an object that has a list of captions for each CLASS/NAME"),
    "captions of numbers": (as_json('{"001.Crow/Crow_0001": [1]}'), "expected an object that has a list of captions"),
    "empty captions": (as_json('{"001.Crow/Crow_0001": [" "]}'), r"captions_by_image\.json has no captions"),
    "a cut picture": (
        lambda raw: (raw / f"images/{name(9)}.jpg").write_bytes((raw / f"images/{name(9)}.jpg").read_bytes()[:-20]),
        r"Crow_0009\.jpg: picture 001/Crow_0009 is no whole JPEG \([\d,]+ bytes\): fetch it again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_cub_from_files_that_are_not_right(tmp_path: Path, spoilt: str) -> None:
    raw = write_birds(tmp_path / "raw")
    spoil, sentence = SPOILT[spoilt]
    spoil(raw)
    with pytest.raises(UserError, match=sentence) as caught:
        prepared(CUB, raw, tmp_path / "cub")
    assert str(raw) in str(caught.value)
    assert not (tmp_path / "cub").exists()


def test_captions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    raw = write_birds(tmp_path / "raw")
    as_json("")(raw)
    (raw / "captions_by_image.json").write_bytes(b'{"001.Crow/Crow_0001": ["bl\xe5"]}')
    with pytest.raises(UserError, match=r"captions_by_image\.json cannot be read .*fetch it again"):
        CUB.entries(raw)


def test_pictures_that_no_row_names_are_left_out(tmp_path: Path) -> None:
    raw = write_birds(tmp_path / "raw")
    (raw / f"images/{name(1)}.jpg").rename(raw / "images/001.Crow/Crow_9999.jpg")
    assert "1 pictures have no row in images: they are left out" in CUB.notes(raw)
    held = {entry.key: entry.source.picture for entry in CUB.entries(raw)}
    assert "001/Crow_9999" not in held
    assert held["001/Crow_0001"] is None


def test_a_bird_without_a_number_has_its_captions_alone(tmp_path: Path) -> None:
    """Its box is not known, so that its picture is left out too."""
    raw = write_birds(tmp_path / "raw")
    edited("images.txt", f"1 {name(1)}.jpg\n", "")(raw)
    held = {entry.key: entry.source for entry in CUB.entries(raw)}
    assert len(held) == len(NUMBERS)
    assert (held[key(1)].picture, len(held[key(1)].captions)) == (None, 3)
    assert "1 pictures have no row in images: they are left out" in CUB.notes(raw)


@pytest.mark.slow
def test_the_excerpt_of_cub(tmp_path: Path) -> None:
    """All 11,788 images, of which 2,889 have a picture and 3,208 captions."""
    source = official.real("cub")
    manifest = prepared(CUB, source, tmp_path / "cub")
    patterns = Counter(manifest.patterns(range(len(manifest))).tolist())
    assert patterns == {0b111: 1258, 0b101: 1631, 0b110: 1950, 0b100: 6949}
    for rows in manifest.splits.values():
        assert set(manifest.patterns(range(len(manifest)))[rows.start : rows.stop].tolist()) == set(patterns)
    held = stored(CUB, tmp_path / "cub")
    tokenizer = Tokenizer(opened(CUB, source).files["caption.model"])
    assert tokenizer.size == 1590
    albatross = held["001/Black_Footed_Albatross_0001_796111"]
    assert len(albatross["caption"]) == 10
    assert tokenizer.decode(albatross["caption"][0][None]) == [
        "the medium sized bird has a dark grey color , a black downward curved beak , and long wings ."
    ]
    np.testing.assert_allclose(albatross["attributes"][:5], [0, 0.02919708, 0.01459854, 0, 0.59854015], rtol=1e-5)
