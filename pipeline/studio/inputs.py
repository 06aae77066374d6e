"""The left of the page: what is given, an input fit to each modality, and how it is asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import streamlit as st

from infra.errors import UserError
from modalities import AnyModality, Attributes, Features, Image, Label, Sentences
from pipeline.asking import Values, asked
from pipeline.description import names_file
from pipeline.packaging import Packaged
from pipeline.studio.examples import SPLIT, Examples

ABSENT, GIVEN, SAMPLE = "absent", "given", "sample"
MOST = 64
"""That are made at once, which is what a page can show."""


@dataclass(frozen=True)
class Question:
    """What somebody chose at the left."""

    given: Values
    notes: list[str]
    """How what was given had to be converted."""
    whole: bool
    """Whether all inputs could be read; the others are marked with a sentence."""
    number: int
    temperature: float
    seed: int
    sample: bool


def question(packaged: Packaged, examples: Examples | None) -> Question:
    """Draw the inputs and read them."""
    given: Values = {}
    notes: list[str] = []
    wrong = 0
    st.header("Given")
    key, own = _example(examples) if examples else ("", {})
    for name, modality in packaged.run.modalities.items():
        with st.container(border=True):
            ways = [ABSENT, GIVEN, *([SAMPLE] if examples else [])]
            way = st.radio(f"**{name}**", ways, horizontal=True, key=f"way {name}")
            try:
                if way == GIVEN:
                    given[name], said = _value(name, modality, packaged)
                    notes += said
                elif way == SAMPLE:
                    if name not in own:
                        raise UserError(f"{key} has no {name}" if key else "there is no such sample")
                    given[name] = own[name]
            except (UserError, ValueError) as error:
                st.error(plain(str(error).removeprefix(f"--given {name}: ")))
                wrong += 1
    st.header("Asked")
    number = st.slider("how many", 1, MOST, 8, key="number", help="Each is made of a z of its own.")
    temperature = st.number_input(
        "temperature", 0.0, None, 1.0, 0.1, key="temperature",
        help="Multiplies the standard deviation of q(z | what is given), or of the prior; 0 takes the mean.",
    )  # fmt: skip
    seed = st.number_input("seed", 0, 2**53 - 1, 0, key="seed")
    kind = st.radio("of p(x | z)", ["mean", "sample"], horizontal=True, key="kind")
    return Question(given, notes, not wrong, number, temperature, seed, kind == "sample")


def names_of(name: str, modality: Label | Attributes, packaged: Packaged) -> list[str]:
    """What a modality's classes or attributes are called: by the names beside the data, or by their numbers."""
    count = modality.classes if isinstance(modality, Label) else modality.count
    data = packaged.files.get(names_file(name))
    if data:
        names: list[str] = json.loads(data)
        return names
    return [name] if isinstance(modality, Attributes) and count == 1 else [str(number) for number in range(count)]


def plain(text: str) -> str:
    """A text that reads as it is where Markdown is read."""
    return re.sub(r"([\\`*_\[\]$:<>~#|])", r"\\\1", text)


def _example(examples: Examples) -> tuple[str, Values]:
    """The sample that was chosen: its key, "" where there is no such sample, and what it has."""
    wanted = st.text_input(
        f"sample of the {SPLIT} split", "0", key="example", help=f"A number from 0 to {len(examples) - 1:,}, or a key."
    )
    try:
        key, own = examples.sample(wanted)
    except UserError as error:
        st.error(plain(str(error)))
        return "", {}
    if key != wanted:
        st.caption(plain(key))
    return key, own


def _value(name: str, modality: AnyModality, packaged: Packaged) -> tuple[np.ndarray, list[str]]:
    """What was put in, and how it was converted. Raises UserError, ValueError."""
    form, key = packaged.forms[name], f"value {name}"
    if isinstance(modality, Label):
        names = names_of(name, modality, packaged)
        chosen = st.selectbox(
            name, range(modality.classes), format_func=names.__getitem__, key=key, label_visibility="collapsed"
        )
        return form.read(chosen), []
    if isinstance(modality, Attributes):
        names = names_of(name, modality, packaged)
        applying = st.multiselect(
            name, range(modality.count), format_func=names.__getitem__, key=key, placeholder="none of them applies",
            label_visibility="collapsed",
        )  # fmt: skip
        return form.read([int(number in applying) for number in range(modality.count)]), []
    if isinstance(modality, Image | Features):
        what = "a picture of any size and mode" if isinstance(modality, Image) else f"a .npy file with {form.said}"
        file = st.file_uploader(what, key=key)
        if file is None:
            raise UserError("choose a file")
        return _asked(name, Path(file.name).name.strip(), file.getvalue(), packaged)
    field = st.text_area if isinstance(modality, Sentences) else st.text_input
    text = field(name, key=key, placeholder=form.said, label_visibility="collapsed")
    return _asked(name, "", text.encode(), packaged)


def _asked(name: str, file: str, data: bytes, packaged: Packaged) -> tuple[np.ndarray, list[str]]:
    """As `pairstream generate --given` takes a file, a text from one too: what begins with @ names no file here."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / (file or "text")
        path.write_bytes(data)
        try:
            values, notes = asked([f"{name}={path}" if file else f"{name}=@{path}"], packaged)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    return values[name], [note.replace(f"{folder}/", "") for note in notes]
