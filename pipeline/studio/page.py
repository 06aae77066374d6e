"""The page: inputs at the left, what the model makes of them at the right, latent dimensions to drag below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import streamlit as st
import torch
from torch import Tensor

from infra.errors import UserError
from modalities import Attributes, Label
from pipeline.generating import generate, vectors
from pipeline.packaging import Packaged
from pipeline.studio import views
from pipeline.studio.examples import Examples
from pipeline.studio.inputs import Question, plain, question
from pipeline.studio.latents import Latent, decodable, decoded, latent, probabilities

DIMENSIONS, ACROSS = 8, 4
"""That have a slider at first, and beside each other."""
FAR = 5.0
"""Standard deviations of the prior by which a dimension is moved at most (MMVAE section 4.2)."""
LEFT = 330
"""Pixels of the left."""
STYLE = """<style>
.block-container {padding-top: 3rem}
[data-testid=stImage] img {image-rendering: pixelated; border-radius: 0; padding: 0 4px 4px 0}
</style>"""


@dataclass(frozen=True)
class Studio:
    """What the page is about."""

    packaged: Packaged
    examples: Examples | None


def show(studio: Studio) -> None:
    """The whole page, from the top."""
    run, about = studio.packaged.run, studio.packaged.about
    st.set_page_config(page_title=f"{run.recipe} · pairstream", layout="wide", initial_sidebar_state=LEFT)
    st.html(STYLE)
    st.subheader(
        f"{plain(run.recipe)}, {run.model.system}, {run.model.latent} latent dimensions, step {about['step']:,}"
    )
    with st.sidebar:
        asked = question(studio.packaged, studio.examples)
    for note in asked.notes:
        st.info(plain(note))
    if not asked.whole:
        st.warning("Nothing is made until what is marked at the left is put right.")
        return
    try:
        made = answer(studio.packaged, asked)
    except UserError as error:
        st.error(plain(str(error)))
        return
    if asked.given:
        st.markdown("#### Given, as the model sees it")
        views.shown(studio.packaged, asked.given)
    _made(studio.packaged, asked, made)
    _latent(studio.packaged, latent(studio.packaged.model, asked.given))


def answer(packaged: Packaged, asked: Question) -> dict[str, np.ndarray]:
    """What `pairstream generate` makes of the same: all that is not given; where nothing is left, everything again.

    Raises UserError where the model's system makes no such thing of what is given.
    """
    lacking = [name for name in packaged.run.modalities if name not in asked.given]
    return generate(
        packaged.model, asked.given, lacking or decodable(packaged.model), asked.number,
        sample=asked.sample, temperature=asked.temperature, seed=asked.seed,
    )  # fmt: skip


def _made(packaged: Packaged, asked: Question, made: Mapping[str, np.ndarray]) -> None:
    again = all(name in asked.given for name in made)
    of = "Made again of all that is given" if again else f"Made of {' and '.join(asked.given) or 'nothing: the prior'}"
    st.markdown(f"#### {plain(of)}")
    views.pictures(packaged, made, {} if again else asked.given)
    views.texts(packaged, made)
    judged = [name for name in made if isinstance(packaged.run.modalities[name], Label | Attributes)]
    if judged:
        z_KZ, _ = vectors(
            packaged.model, asked.given, range(asked.number), temperature=asked.temperature, seed=asked.seed
        )
        found = decoded(packaged.model, asked.given, judged, z_KZ)
        st.caption(
            f"Probabilities: bars are means over the {asked.number} of them, orange lines reach from their 10 % "
            "quantile to that of 90 %."
        )
        views.spreads(packaged, _probabilities(packaged, found))
    views.numbers(packaged, made)


@st.fragment
def _latent(packaged: Packaged, start: Latent) -> None:
    """Sliders and the row that follows them; only this part of the page runs when one is dragged."""
    st.markdown("#### Latent dimensions")
    left, right, _ = st.columns([2, 2, 4], vertical_alignment="bottom")
    most = len(start.mean_Z)
    count = left.number_input("dimensions, the most active first", 1, most, min(DIMENSIONS, most), key="dimensions")
    st.caption(plain(f"In standard deviations of the prior, from the mean of z; beside each its {start.measure}."))
    dimensions = start.strongest[:count]
    right.button("set them back", on_click=_set_back, args=(dimensions,), key="back")
    offsets = _sliders(start, dimensions)
    _row(packaged, start, torch.cat([start.moved({}), start.moved(offsets)]))


def _sliders(start: Latent, dimensions: Sequence[int]) -> dict[int, float]:
    """By how many standard deviations of the prior each is moved."""
    offsets = {}
    for place, dimension in enumerate(dimensions):
        if place % ACROSS == 0:
            columns = st.columns(ACROSS)
        key = _key(dimension)
        st.session_state.setdefault(key, 0.0)
        label = f"z {dimension} · {start.activity_Z[dimension]:.2f}"
        offsets[dimension] = columns[place % ACROSS].slider(label, -FAR, FAR, step=0.1, key=key)
    return offsets


def _key(dimension: int) -> str:
    return f"z{dimension}"


def _set_back(dimensions: Sequence[int]) -> None:
    for dimension in dimensions:
        st.session_state[_key(dimension)] = 0.0


def _row(packaged: Packaged, start: Latent, z_2Z: Tensor) -> None:
    """What is made of the mean, and of the mean moved: all that the model decodes, what was given too."""
    kinds = packaged.run.modalities
    found = decoded(packaged.model, start.given, decodable(packaged.model), z_2Z)
    made = {name: kinds[name].mean(parameters).numpy() for name, parameters in found.items()}
    left, right = st.columns(2)
    with left:
        views.pictures(packaged, made, start.given, ("the mean", "moved"))
        views.texts(packaged, made)
        views.numbers(packaged, {name: values[1:] for name, values in made.items()})
    with right:
        views.changes(packaged, _probabilities(packaged, found))


def _probabilities(packaged: Packaged, found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Of the classes and attributes among what was decoded."""
    kinds = {name: packaged.run.modalities[name] for name in found}
    return {
        name: probabilities(kind, found[name]) for name, kind in kinds.items() if isinstance(kind, Label | Attributes)
    }
