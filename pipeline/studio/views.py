"""The right of the page: values as pictures, texts and bars.

Shape legend: K what is made, C classes or attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import streamlit as st

from modalities import Attributes, Features, Image, Label
from modalities.text import Tokens
from pipeline.packaging import Packaged
from pipeline.pictures.generated import words_of
from pipeline.pictures.looks import Face, faces
from pipeline.pictures.made import Value, Values
from pipeline.pictures.page import scaled
from pipeline.sheet import DARK
from pipeline.studio.inputs import names_of, plain

SIDE = 128
"""Pixels of a picture's longer side, at most; smaller ones are magnified by a whole number."""
BARS = 24
"""Classes or attributes that have a bar, the likeliest first where there are more."""
ROW = 19
"""Pixels of a bar and what is between two."""
AXIS = 24
"""Pixels of what stands below them."""
BETWEEN = (0.1, 0.9)
"""Quantiles between which the spread of what is made is drawn."""


def pictures(
    packaged: Packaged,
    made: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    captions: Sequence[str] | None = None,
) -> None:
    """What was made (K, …), parts of one picture together, those that were not made as they were given.

    Without captions of their own, pictures have the classes and short texts below them that were made with them.
    """
    words = words_of(packaged)
    count = len(next(iter(made.values())))
    whole: dict[str, list[Value]] = {
        name: [*made[name]] if name in made else [given.get(name)] * count for name in packaged.run.modalities
    }
    told = {name: whole[name] for name in made}
    for face in _faces(packaged, made):
        st.caption(plain(face.title))
        row(face, whole, captions or [words.short(told, place) for place in range(count)])


def row(face: Face, values: Values, captions: Sequence[str]) -> None:
    """One face of several rows beside each other, enlarged without smoothing."""
    tiles = [
        (scaled(one, SIDE), plain(text))
        for one, text in zip(face.pictures(values), captions, strict=True)
        if one is not None
    ]
    if tiles:
        images, texts = zip(*tiles, strict=True)
        st.image(list(images), caption=list(texts) if any(texts) else None, output_format="PNG")


def texts(packaged: Packaged, made: Mapping[str, np.ndarray]) -> None:
    """What texts that were made read like, a line each."""
    words, kinds = words_of(packaged), packaged.run.modalities
    for name, values in made.items():
        if isinstance(kinds[name], Tokens):
            st.caption(plain(name))
            st.code("\n".join(words.value(name, value) for value in values), language=None, wrap_lines=True)


def spreads(packaged: Packaged, found: Mapping[str, np.ndarray]) -> None:
    """Probabilities (K, C) of classes and attributes: bars of their mean, lines between two quantiles."""
    columns = st.columns(2)
    for place, (title, names, values_KC) in enumerate(grouped(packaged, found)):
        low, high = np.quantile(values_KC, BETWEEN, axis=0)
        with columns[place % 2]:
            bars(title, names, values_KC.mean(0), low, high)


def changes(packaged: Packaged, found: Mapping[str, np.ndarray]) -> None:
    """Probabilities (2, C) before and after something was moved: bars of these, lines from there."""
    groups = grouped(packaged, found)
    if groups:
        st.caption("Orange lines reach to where bars were before.")
    for title, names, (before, after) in groups:
        bars(title, names, after, np.minimum(before, after), np.maximum(before, after))


def grouped(packaged: Packaged, found: Mapping[str, np.ndarray]) -> list[tuple[str, list[str], np.ndarray]]:
    """A title, the names of bars and probabilities (K, C) of each modality; of those of one attribute together."""
    alone = [name for name, values_KC in found.items() if values_KC.shape[1] == 1]
    groups = [(name, _names(packaged, name), values_KC) for name, values_KC in found.items() if name not in alone]
    if alone:
        names = [one for name in alone for one in _names(packaged, name)]
        groups.append(
            (", ".join(alone[:3]) + " …" * (len(alone) > 3), names, np.hstack([found[name] for name in alone]))
        )
    return groups


def _names(packaged: Packaged, name: str) -> list[str]:
    kind = packaged.run.modalities[name]
    assert isinstance(kind, Label | Attributes)
    return names_of(name, kind, packaged)


def bars(title: str, names: Sequence[str], value_C: np.ndarray, from_C: np.ndarray, to_C: np.ndarray) -> None:
    """Bars of probabilities, with a line on each."""
    shown = range(len(names))
    if len(names) > BARS:
        shown = sorted(np.argsort(-value_C, kind="stable")[:BARS].tolist())  # type: ignore[assignment]
        title += f", the likeliest {BARS} of {len(names)}"
    st.caption(plain(title))
    data = [
        {
            "name": names[one],
            "probability": round(float(value_C[one]), 4),
            "from": round(float(from_C[one]), 4),
            "to": round(float(to_C[one]), 4),
        }
        for one in shown
    ]
    place = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False, labelFlush=False))
    chart = alt.Chart(alt.InlineData(data))
    bar = chart.mark_bar(color=DARK, height=11).encode(
        alt.X("probability:Q", scale=alt.Scale(domain=[0, 1]), title=None), place, tooltip=["name:N", "probability:Q"]
    )
    line = chart.mark_rule(color="#e07a1f", strokeWidth=2.5).encode(alt.X("from:Q"), place, x2="to:Q")
    st.altair_chart((bar + line).properties(height=ROW * len(data) + AXIS))


def numbers(packaged: Packaged, made: Mapping[str, np.ndarray]) -> None:
    """Feature vectors (K, …): their mean, between two quantiles of what was made."""
    for name, values in made.items():
        if not isinstance(packaged.run.modalities[name], Features):
            continue
        low, high = np.quantile(values, BETWEEN, axis=0)
        data = [
            {"number": place, "mean": float(mean), "from": float(one), "to": float(other)}
            for place, (mean, one, other) in enumerate(zip(values.mean(0), low, high, strict=True))
        ]
        chart = alt.Chart(alt.InlineData(data))
        area = chart.mark_area(color="#e07a1f", opacity=0.4).encode(
            alt.X("number:Q", scale=alt.Scale(nice=False)), alt.Y("from:Q"), y2="to:Q"
        )
        line = chart.mark_line(color=DARK, strokeWidth=1).encode(
            alt.X("number:Q", title=None), alt.Y("mean:Q", title=None)
        )
        st.caption(plain(name))
        st.altair_chart((area + line).properties(height=160))


def shown(packaged: Packaged, given: Mapping[str, np.ndarray]) -> None:
    """What was given, as the model sees it."""
    words, kinds = words_of(packaged), packaged.run.modalities
    own: dict[str, list[Value]] = {name: [given.get(name)] for name in kinds}
    for face in _faces(packaged, given):
        row(face, own, [" + ".join(name for name in face.names if name in given)])
    said = {
        name: words.value(name, value) for name, value in given.items() if not isinstance(kinds[name], Image | Features)
    }
    for name, text in said.items():
        st.markdown(f"{plain(name)}: **{plain(text or 'none of them applies')}**")
    numbers(packaged, {name: value[None] for name, value in given.items()})


def _faces(packaged: Packaged, names: Mapping[str, np.ndarray]) -> list[Face]:
    return [face for face in faces(packaged.run) if set(face.names) & set(names)]
