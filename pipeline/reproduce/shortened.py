"""Runs of a paper's length, or of a share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config import Run, override
from pipeline.manifest import NoData, open_manifest
from pipeline.recipes import recipe

VALIDATIONS = 20
"""Of each run, evenly spaced: from them its best checkpoint is chosen."""


def lasting(
    name: str, epochs: float, changes: Mapping[str, Any] | None = None, seed: int = 0, kept: Sequence[str] = ()
) -> Run:
    """A recipe with some dotted keys changed, of all its modalities or of those `kept`, trained for so many epochs of
    the data at hand.

    An epoch is as many rows as the training split has samples, at every fraction of pairs (MVAE section 5.1: "the total
    number of examples shown to the model is always fixed"). Where there are no such data nobody knows how many steps
    that are: the run is as long as the recipe says, and `makeable` leaves out the cell that it is of.
    """
    run = recipe(name)
    if kept:
        weights = {one: weight for one, weight in run.objective.lambda_.items() if one in kept}
        modalities = {one: run.modalities[one] for one in kept}
        run = replace(run, modalities=modalities, objective=replace(run.objective, lambda_=weights))
    run = override(run, {**(changes or {}), "seed": seed})
    try:
        rows = training_rows(run.data)
    except NoData:
        return run
    steps = max(1, round(epochs * rows / run.train.batch))
    every = max(1, steps // VALIDATIONS)
    return replace(run, train=replace(run.train, steps=steps, validate_every=every, checkpoint_every=every))


def training_rows(data: str) -> int:
    """Samples of a data directory's training split. Raises NoData where there are none, and UserError."""
    return len(open_manifest(data).split("train"))
