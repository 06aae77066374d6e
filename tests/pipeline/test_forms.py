"""A value and the cell of a table that tells it: one makes the other, and what is no value is refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from base64 import b64decode, b64encode
from typing import Any

import numpy as np
import PIL.Image
import pytest

from modalities import AnyModality, Attributes, Features, Image, Label, Sentences, Text
from pipeline import tokenizers
from pipeline.description import named
from pipeline.forms import Form, form_of

WORDS = tokenizers.train(["one two three four", "four three", "two two one"], 30, "word")
LETTERS = named("string", ["", "", *"0123456789"])
DIGITS = Text(vocabulary=12, length=5)
SAID = Sentences(vocabulary=tokenizers.Tokenizer(WORDS).size, length=5)
FORMS: dict[str, tuple[AnyModality, dict[str, bytes]]] = {
    "grey": (Image(height=3, width=5, levels=16), {}),
    "colour": (Image(height=3, width=5, channels=3, codec="jpg"), {}),
    "label": (Label(classes=10), {}),
    "attributes": (Attributes(count=3), {}),
    "one": (Attributes(count=1, of="attributes", first=2, among=18), {}),
    "features": (Features(count=3), {}),
    "text": (SAID, {"text.model": WORDS}),
    "string": (DIGITS, LETTERS),
    "tokens": (DIGITS, {}),
}


def form(name: str) -> Form:
    modality, files = FORMS[name]
    return form_of(name, modality, files)


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return b64encode(file.getvalue()).decode()


GREY = np.arange(15, dtype=np.uint8).reshape(3, 5) * 17
COLOUR = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "cell", "value"),
    [
        ("grey", png(GREY), GREY / 255),
        ("colour", png(COLOUR), np.moveaxis(COLOUR, 2, 0) / 255),
        ("label", 7, np.asarray(7)),
        ("attributes", [0, 1, 1], np.array([0, 1, 1])),
        ("one", [1], np.array([1])),
        ("features", [0.5, -2.0, 3.25], np.array([0.5, -2, 3.25])),
        ("text", "two one four", None),
        ("string", "407", np.array([6, 2, 9, 0, 0])),
        ("tokens", [6, 2, 9, 0, 0], np.array([6, 2, 9, 0, 0])),
    ],
)
def test_a_cell_is_read_and_written_again(name: str, cell: Any, value: np.ndarray | None) -> None:
    one = form(name)
    read = one.read(cell)
    assert (read.shape, read.dtype) == (FORMS[name][0].shape, FORMS[name][0].dtype)
    if value is not None:
        np.testing.assert_allclose(read, value, rtol=1e-6)
    again = one.write(read)
    assert json.loads(json.dumps(again)) == again
    np.testing.assert_array_equal(one.read(again), read)
    if name not in ("grey", "colour"):  # other encoders, other bytes
        assert again == cell


@pytest.mark.parametrize("name", ["grey", "colour"])
def test_a_picture_is_written_as_what_it_is(name: str) -> None:
    """By another library's decoder; means lie between levels, and rounding is to the nearest."""
    modality = FORMS[name][0]
    mean = np.random.default_rng(1).random(modality.shape).astype(np.float32)
    file = io.BytesIO(b64decode(form(name).write(mean)))
    seen = np.asarray(PIL.Image.open(file))
    expected = np.rint(mean * 255)
    np.testing.assert_array_equal(seen, expected if name == "grey" else np.moveaxis(expected, 0, 2))


def test_attributes_are_written_as_the_likelier_of_the_two() -> None:
    assert form("attributes").write(np.array([0.49, 0.51, 0.5])) == [0, 1, 0]


def test_base64_in_lines_is_read() -> None:
    """As coreutils' base64 writes it."""
    cell = png(COLOUR)
    lines = "\n".join(cell[start : start + 76] for start in range(0, len(cell), 76)) + "\n"
    np.testing.assert_array_equal(form("colour").read(lines), form("colour").read(cell))


@pytest.mark.parametrize("name", FORMS)
def test_the_made_up_example_is_a_value(name: str) -> None:
    one = form(name)
    assert one.read(one.example).shape == FORMS[name][0].shape


def promises(width: int, height: int) -> str:
    """A PNG of a few bytes whose header tells of so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b64encode(b"\x89PNG\r\n\x1a\n" + chunks + b"\0\0\0\0IEND\xaeB`\x82").decode()


@pytest.mark.parametrize(
    ("name", "cell", "words"),
    [
        ("grey", 3, "expected a PNG file in base64, got a number"),
        ("grey", [[0] * 5] * 3, "expected a PNG file in base64, got a list"),
        ("grey", "no!", "no base64"),
        ("grey", "é", "no base64"),
        ("grey", "", "expected a whole png file, got 0 other bytes"),
        ("grey", png(GREY.T.copy()), "expected a picture of 3 x 5 pixels, got 5 x 3"),
        ("grey", promises(2**30, 2**30), "expected a picture of 3 x 5 pixels, got 1073741824 x 1073741824"),
        ("grey", png(COLOUR), "1 channel"),
        ("colour", png(GREY), "3 channel"),
        ("label", 10, "label 10 is not one of 0 to 9"),
        ("label", -1, "not one of 0 to 9"),
        ("label", 2.5, "expected a whole number from 0 to 9, got 2.5"),
        ("label", float("inf"), "expected a whole number from 0 to 9, got inf"),
        ("label", "3", "expected a whole number from 0 to 9, got '3'"),
        ("label", True, "expected a whole number from 0 to 9, got True"),
        ("label", 1e300, "not one of 0 to 9"),
        ("label", [3], r"expected a whole number from 0 to 9, got \[3\]"),
        ("attributes", [0, 1], r"list of 3 integers, got shape \(2,\)"),
        ("attributes", [0, 1, 2], "0 or 1, got 0 to 2"),
        ("attributes", [0, 1, 0.5], "and not all of these are"),
        ("attributes", [0, 1, None], "and not all of these are"),
        ("attributes", 1, "expected a list of 3 integers, got a number"),
        ("features", ["1", "2", "3"], "list of 3 numbers, and not all of these are"),
        ("features", [[1], [2, 3], [4]], "lists in a list"),
        ("features", [1, 2, float("nan")], "expected finite numbers"),
        ("features", [1, 2, 1e300], "expected finite numbers"),
        ("features", [10**400, 2, 3], "and not all of these are"),
        ("features", "abc", "expected a list of 3 numbers, got a str"),
        ("text", 5, "expected a text, got a number"),
        ("text", "  ", "this text is empty"),
        ("text", "one two three four one", "this text has 5 tokens, and the model reads at most 4"),
        ("string", "12345", "expected at most 4 of 0 1 2"),
        ("string", "1a", "got '1a'"),
        ("string", "", "this text is empty"),
        ("tokens", [1, 2, 0, 0, 0], "start"),
        ("tokens", [2, 0, 2, 0, 0], "hold none after it"),
    ],
)
def test_what_is_no_value_is_refused_with_a_sentence(name: str, cell: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        form(name).read(cell)
