"""A modality's value as a cell of a table, in a form that JSON carries, and back.

A picture is a PNG file in base64, black to white from 0 to 255 whatever the levels of its data; a text is a string; a
class is a whole number; attributes, features and tokens without a tokenizer are lists.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal

import numpy as np

from modalities import AnyModality, Attributes, Image, Label
from modalities.codecs import FRAME
from modalities.text import END, Text, Tokens
from pipeline.description import model_file, names_file
from pipeline.tokenizers import Tokenizer

NUMBERS: dict[Literal["integers", "numbers"], str] = {"integers": "biu", "numbers": "biuf"}
"""NumPy's kinds of what a list may hold."""


@dataclass(frozen=True)
class Form:
    """How the values of one modality are told."""

    said: str
    """What a cell holds, for people."""
    holds: Literal["integer", "integers", "numbers", "string"]
    read: Callable[[Any], np.ndarray]
    """The value, as `Modality.decode` gives it, of a cell. Raises ValueError where the cell is none."""
    write: Callable[[np.ndarray], Any]
    """A cell of a value, or of the mean that a decoder gives."""
    example: Any
    """A cell that is made up."""


def form_of(name: str, modality: AnyModality, files: Mapping[str, bytes]) -> Form:
    """The form of a modality; among the small `files` beside its data may be its tokenizer or its letters."""
    if isinstance(modality, Image):
        return _picture(modality)
    if isinstance(modality, Label):
        said = f"a whole number from 0 to {modality.classes - 1}"
        return Form(said, "integer", partial(_class, modality), int, 0)
    if isinstance(modality, Attributes):
        alone = modality.network_kind
        return Form(
            f"a list of {modality.count} numbers that are 0 or 1", "integers", partial(_list, alone, "integers"),
            lambda mean: (mean > 0.5).astype(int).tolist(), [0] * modality.count,
        )  # fmt: skip
    if isinstance(modality, Tokens):
        if model_file(name) in files:
            return _sentence(modality, Tokenizer(files[model_file(name)]))
        if isinstance(modality, Text) and names_file(name) in files:
            return _letters(modality, json.loads(files[names_file(name)]))
        example = [2, *[END] * (modality.length - 1)]
        said = f"a list of {modality.length} tokens: 2 to {modality.vocabulary - 1}, then zeros, at least one"
        return Form(said, "integers", partial(_list, modality, "integers"), np.ndarray.tolist, example)
    said = f"a list of {modality.count} numbers"
    return Form(said, "numbers", partial(_list, modality, "numbers"), np.ndarray.tolist, [0.0] * modality.count)


def _picture(image: Image) -> Form:
    stored = replace(image, codec="png", levels=255)
    size = image.height, image.width

    def read(cell: Any) -> np.ndarray:
        if not isinstance(cell, str):
            raise ValueError(f"expected a PNG file in base64, got {_kind(cell)}")
        try:
            data = b64decode("".join(cell.split()), validate=True)
        except ValueError as error:
            raise ValueError(f"expected a PNG file in base64, and this is no base64 ({error})") from None
        if data.startswith(FRAME["png"][0]) and len(data) >= 24:
            width, height = struct.unpack(">II", data[16:24])  # PNG specification, section 11.2.2
            if (height, width) != size:  # before a few bytes that promise gigabytes of pixels are decoded
                raise ValueError(f"expected a picture of {size[0]} x {size[1]} pixels, got {height} x {width}")
        value: np.ndarray = stored.decode([data])[0]
        return value

    def write(mean: np.ndarray) -> str:
        pixels = np.rint(mean.clip(0, 1) * 255).astype(np.uint8)
        return b64encode(stored.encode(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, 2))).decode()

    colours = "grey" if image.channels == 1 else "red, green and blue"
    said = f"a PNG file in base64: {size[0]} x {size[1]} pixels (height x width), {colours}, 8 bits"
    return Form(said, "string", read, write, write(np.zeros(image.shape)))


def _sentence(modality: Tokens, tokenizer: Tokenizer) -> Form:
    def read(cell: Any) -> np.ndarray:
        tokens, lost = tokenizer.encode([_text(cell)], modality.length)
        if lost[0]:
            raise ValueError(
                f"this text has {modality.length - 1 + lost[0]} tokens, and the model reads at most "
                f"{modality.length - 1}: shorten it"
            )
        return _checked(modality, tokens[0])

    def write(tokens: np.ndarray) -> str:
        return tokenizer.decode(tokens[None])[0]

    words = (tokenizer.decode(np.array([[token, END]]))[0] for token in range(3, tokenizer.size))
    example = next(word for word in words if word.isalnum())
    return Form(f"a text of at most {modality.length - 1} tokens", "string", read, write, example)


def _letters(modality: Text, names: list[str]) -> Form:
    """`names`: the letters by their tokens; the end and the start have none."""
    token_of = {letter: token for token, letter in enumerate(names) if letter}

    def read(cell: Any) -> np.ndarray:
        text = _text(cell)
        if len(text) >= modality.length or not set(text) <= set(token_of):
            raise ValueError(f"expected at most {modality.length - 1} of {' '.join(token_of)}, got {_short(text)}")
        tokens = [token_of[letter] for letter in text]
        return _checked(modality, np.array(tokens + [END] * (modality.length - len(tokens))))

    def write(tokens: np.ndarray) -> str:
        return "".join(names[token] for token in tokens[tokens != END])

    said = f"a text of at most {modality.length - 1} of {' '.join(token_of)}"
    return Form(said, "string", read, write, next(iter(token_of)))


def _text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError(f"expected a text, got {_kind(cell)}")
    if not cell.strip():
        raise ValueError("this text is empty: leave it out where there is none")
    return cell


def _class(modality: Label, cell: Any) -> np.ndarray:
    if not isinstance(cell, int | float | np.integer | np.floating) or isinstance(cell, bool) or cell % 1 != 0:
        raise ValueError(f"expected a whole number from 0 to {modality.classes - 1}, got {_short(cell)}")
    return _checked(modality, np.asarray(int(cell)))


def _list(modality: AnyModality, kind: Literal["integers", "numbers"], cell: Any) -> np.ndarray:
    if not isinstance(cell, list | tuple | np.ndarray):
        raise ValueError(f"expected a list of {modality.shape[0]} {kind}, got {_kind(cell)}")
    try:
        values = np.asarray(cell)
    except ValueError:  # lists of different lengths in it
        raise ValueError(f"expected a list of {modality.shape[0]} {kind}, got lists in a list") from None
    if values.shape != modality.shape:
        raise ValueError(f"expected a list of {modality.shape[0]} {kind}, got shape {values.shape}")
    if values.dtype.kind not in NUMBERS[kind]:
        raise ValueError(f"expected a list of {modality.shape[0]} {kind}, and not all of these are")
    return _checked(modality, values)


def _checked(modality: AnyModality | Tokens, value: np.ndarray) -> np.ndarray:
    """The value as it comes back from a shard. Raises ValueError where the modality has no such value."""
    back: np.ndarray = modality.decode([modality.encode(value)])[0]
    return back


def _kind(cell: Any) -> str:
    return "a number" if isinstance(cell, Real) else f"a {type(cell).__name__}"


def _short(cell: Any) -> str:
    told = repr(cell)
    return told if len(told) <= 60 else f"{told[:57]}…"
