"""What a person gives is converted and said, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from modalities import AnyModality, Sentences
from pipeline import tokenizers
from pipeline.asking import asked
from pipeline.config import Run
from pipeline.forms import form_of
from pipeline.packaging import Packaged
from pipeline.settings import Model
from pipeline.train import build
from tests.pipeline.drawn import KINDS

NAMES = ("grey", "photo", "traits", "label", "string", "numbers")


@pytest.fixture(scope="module")
def packaged() -> Packaged:
    """An untrained model with names, letters and a tokenizer."""
    files = {
        "label.names.json": b'["ant", "bee", "cat", "7"]',
        "traits.names.json": b'["old", "very red", "big"]',
        "says.model": tokenizers.train(["one two three", "three two", "two"], 20, "word"),
    }
    size = tokenizers.Tokenizer(files["says.model"]).size
    says: AnyModality = Sentences(vocabulary=size, length=5, embedding=8, hidden=8)
    kinds = {name: KINDS[name] for name in NAMES} | {"says": says}
    run = Run("toy", "", kinds, model=Model(4))
    return Packaged(run, build(run).eval(), {n: form_of(n, m, files) for n, m in kinds.items()}, {}, files)


def one(packaged: Packaged, word: str) -> np.ndarray:
    values, notes = asked([word], packaged)
    assert notes == []
    return values[word.partition("=")[0]]


def test_a_picture_that_fits_is_taken_as_it_is(packaged: Packaged, tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(pixels).save(tmp_path / "a.png")
    value = one(packaged, f"grey={tmp_path / 'a.png'}")
    np.testing.assert_allclose(value, pixels / 255, atol=1e-6)
    assert value.dtype == np.float32


def test_a_picture_of_another_size_and_mode_is_converted_and_that_is_said(packaged: Packaged, tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (255, 0, 0)  # its middle is red
    Image.fromarray(wide).save(tmp_path / "wide.png")
    values, notes = asked([f"photo={tmp_path / 'wide.png'}", f"grey={tmp_path / 'wide.png'}"], packaged)
    assert values["photo"].shape == (3, 8, 8)
    np.testing.assert_array_equal(values["photo"].mean((1, 2)), [1, 0, 0])
    assert notes[0] == (
        f"photo: {tmp_path}/wide.png has 120 x 40 pixels in mode RGB; given of its middle as 8 x 8, red, green and blue"
    )
    assert notes[1] == f"grey: {tmp_path}/wide.png has 120 x 40 pixels in mode RGB; given of its middle as 6 x 4, grey"
    assert values["grey"].shape == (4, 6)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_of_pictures_is_read(packaged: Packaged, tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    else:
        picture = Image.new("RGB", (6, 4), "white").convert(mode)
    file = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(file)
    values, notes = asked([f"grey={file}"], packaged)
    np.testing.assert_array_equal(values["grey"], np.ones((4, 6)))
    assert f"in mode {mode}" in notes[0]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("label=2", 2),
        ("label=cat", 2),
        ("label=7", 3),  # a name before a number
        ("traits=0,1,1", [0, 1, 1]),
        ("traits=[1, 0, 0]", [1, 0, 0]),
        ("traits=very red, big", [0, 1, 1]),
        ("traits=old", [1, 0, 0]),
        ("numbers=1 2 3 4 -5.5", [1, 2, 3, 4, -5.5]),
        ("string=3 4", [3, 4, 0, 0]),
        ("string=[3, 4, 5, 0]", [3, 4, 5, 0]),
    ],
)
def test_values_as_words_and_numbers(packaged: Packaged, word: str, value: object) -> None:
    np.testing.assert_array_equal(one(packaged, word), value)


def test_texts_and_features_come_from_files_too(packaged: Packaged, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("two three\n")
    np.testing.assert_array_equal(one(packaged, f"says=@{tmp_path}/t.txt"), one(packaged, "says=two three"))
    assert packaged.forms["says"].write(one(packaged, "says=two three")) == "two three"
    np.save(tmp_path / "n.npy", np.arange(5.0))
    np.testing.assert_array_equal(one(packaged, f"numbers={tmp_path}/n.npy"), np.arange(5))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["photo"], "--given photo: expected NAME=VALUE, as in grey=…"),
        (["foto=a.png"], "--given: this model has no modality 'foto'; did you mean 'photo'?"),
        (["label=1", "label=2"], "--given label=… stands there twice"),
        (["says="], "--given says= gives nothing"),
        (["says=  "], "--given says= gives nothing"),
        (["photo=none.png"], "--given photo: none.png: No such file or directory"),
        (["photo=."], "--given photo: .: Is a directory"),
        (["photo=text.txt"], "--given photo: text.txt is no readable picture"),
        (["photo=cut.png"], "--given photo: cut.png is no readable picture"),
        (["says=@none.txt"], "--given says: none.txt: No such file or directory"),
        (["says=@cut.png"], "--given says: cut.png is no text in UTF-8"),
        (["says=@empty.txt"], "--given says: this text is empty"),
        (["says=one two one two one"], "this text has 5 tokens, and the model reads at most 4"),
        (["string=abc"], "--given string: this model has no tokenizer, so give a list of 4 tokens"),
        (["string=3 4 3 4 3"], "--given string: expected a list of 4 integers"),
        (["label=9"], "--given label: label 9 is not one of 0 to 3"),
        (["label=cot"], "--given label: 'cot' is no class; did you mean 'cat'?"),
        (["label=-1"], "--given label: '-1' is no class"),
        (["traits=0,1"], "--given traits: expected 3 numbers that are 0 or 1, got 2"),
        (["traits=old,bigg"], "--given traits: 'bigg' is no attribute; did you mean 'big'?"),
        (["numbers=1 2"], "--given numbers: expected 5 numbers, got 2"),
        (["numbers=none.npy"], "--given numbers: none.npy: No such file"),
        (["numbers=a b c d e"], "--given numbers: what is there are no numbers"),
    ],
)
def test_what_cannot_be_given_is_refused_with_a_sentence(
    packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("no picture")
    Path("empty.txt").write_text(" \n")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:2000])
    with pytest.raises(UserError) as error:
        asked(words, packaged)
    assert sentence in str(error.value)
