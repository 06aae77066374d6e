"""What a person gives a trained model, NAME=VALUE, as values of its modalities.

A picture is a file of any size and mode, a text stands as it is or in @FILE, a class is a name or a number, attributes
are names or a list of 0 and 1, features a .npy file or numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from infra.errors import Unusable, UserError, nearest
from modalities import Attributes, Features, Image, Label
from modalities.text import END, Tokens
from pipeline.corpora.files.cells import ReadFlags, ReadNumbers, ReadPicture
from pipeline.description import names_file
from pipeline.forms import Form
from pipeline.packaging import Packaged

Values = dict[str, np.ndarray]
"""By modality a value as `Modality.decode` gives it."""


def asked(words: Sequence[str], packaged: Packaged) -> tuple[Values, list[str]]:
    """What is given, and a sentence for each value that had to be converted. Raises UserError."""
    known, values, notes = list(packaged.run.modalities), {}, []
    for word in words:
        name, separator, text = word.partition("=")
        if not separator:
            raise UserError(f"--given {word}: expected NAME=VALUE, as in {known[0]}=…")
        check_names([name], known, "--given")
        if name in values:
            raise UserError(f"--given {name}=… stands there twice: a model takes one value of each modality")
        if not text.strip():
            raise UserError(f"--given {name}= gives nothing: write a value, or leave {name} out where there is none")
        try:
            values[name], note = _value(name, text, packaged)
        except (Unusable, ValueError) as error:
            raise UserError(f"--given {name}: {error}") from None
        if note:
            notes.append(f"{name}: {note}")
    return values, notes


def check_names(names: Sequence[str], known: list[str], option: str) -> None:
    """Raise UserError where an option names what is no modality of the model."""
    for name in names:
        if name not in known:
            raise UserError(f"{option}: this model has no modality {name!r}" + nearest(name, known))


def _value(name: str, text: str, packaged: Packaged) -> tuple[np.ndarray, str]:
    """A value, and how it was converted, "" where it was not. Raises Unusable, ValueError."""
    modality, form = packaged.run.modalities[name], packaged.forms[name]
    data = packaged.files.get(names_file(name))
    names: list[str] = json.loads(data) if data and not isinstance(modality, Tokens) else []
    if isinstance(modality, Image):
        return _picture(modality, text)
    if isinstance(modality, Features):
        return ReadNumbers(Path(), modality.count)((text,)), ""
    if isinstance(modality, Label):
        return form.read(_class(text.strip(), modality.classes, names)), ""
    if isinstance(modality, Attributes):
        return form.read(_flags(text, modality.count, names)), ""
    if text.startswith("@"):
        text = _read(Path(text[1:]))
    return form.read(text if form.holds == "string" else _tokens(text, form, modality.shape[0])), ""


def _picture(image: Image, path: str) -> tuple[np.ndarray, str]:
    import PIL.Image

    pixels = ReadPicture(Path(), image.height, image.width, image.channels, "crop")((path,))
    stored = replace(image, codec="npy", levels=255)
    with PIL.Image.open(path.strip()) as picture:
        (width, height), mode = picture.size, picture.mode
    wanted = "L" if image.channels == 1 else "RGB"
    note = ""
    if (width, height, mode) != (image.width, image.height, wanted):
        of = "" if width * image.height == height * image.width else " of its middle"
        colours = "grey" if image.channels == 1 else "red, green and blue"
        size = f"{image.width} x {image.height}"
        note = f"{path} has {width} x {height} pixels in mode {mode}; given{of} as {size}, {colours}"
    value: np.ndarray = stored.decode([stored.encode(pixels)])[0]
    return value, note


def _class(text: str, classes: int, names: list[str]) -> int:
    if text in names:
        return names.index(text)
    if text.isdecimal():
        return int(text)
    raise ValueError(f"{text!r} is no class" + nearest(text, names or [f"0 to {classes - 1}"]))


def _flags(text: str, count: int, names: list[str]) -> list[int]:
    """0 and 1 of each, from a list of them or from the names of those that apply."""
    applying = [part.strip() for part in text.split(",") if part.strip()]
    if names and all(part in names for part in applying):
        return [int(name in applying) for name in names]
    parts = text.strip().strip("[]").replace(",", " ").split()
    try:
        flags = ReadFlags()(parts).tolist()
    except Unusable:
        unknown = next(part for part in applying if part not in names)
        hint = nearest(unknown, names) if names else f"; give {count} numbers that are 0 or 1, as in 0,1,1"
        raise ValueError(f"{unknown!r} is no attribute{hint}") from None
    if len(flags) != count:
        raise ValueError(f"expected {count} numbers that are 0 or 1, got {len(flags)}")
    return list(flags)


def _tokens(text: str, form: Form, length: int) -> list[int]:
    """The tokens of a text without a tokenizer, filled up with its end."""
    try:
        tokens = [int(part) for part in text.strip().strip("[]").replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"this model has no tokenizer, so give {form.said}") from None
    return tokens + [END] * (length - len(tokens))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
