"""Models by hand, oracles by hand and small data, for the studies that judge what a model generates."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from infra import distributed
from infra.distributed import World
from modalities import Image, Label, Modality
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.corpora import digits
from pipeline.corpora.corpus import Entry
from pipeline.description import describe
from pipeline.evaluate.oracle import Oracle
from pipeline.evaluate.subject import Subject
from pipeline.experts import Gaussian
from pipeline.manifest import Manifest, open_manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.settings import Examine, Model
from pipeline.train import build
from pipeline.writing import write
from tests.pipeline.tiny import given
from tests.pipeline.training import a_run

ALONE = World(0, 1, 0, torch.device("cpu"))
CLASS = {entry.key: int(digits.load(entry)["label"]) for entry in digits.entries()}
"""Of each digit of the corpus, by key."""


@dataclass
class ByHand:
    """A model made of a function of what it is given, and a function that generates values in (0, 1) or classes."""

    run: Run
    mean: Callable[[Batch], Tensor]
    made: Callable[[str, Tensor], Tensor]
    latent: int = 2

    def __post_init__(self) -> None:
        self.family = family_of(self.run)

    def posterior(self, batch: Batch) -> Any:
        return SimpleNamespace(mu=self.mean(batch))

    def prior(self, device: torch.device) -> Gaussian:
        return Gaussian(torch.zeros(1, self.latent), torch.zeros(1, self.latent))

    def decode(self, name: str, z: Tensor, batch: Batch) -> Tensor:
        return torch.logit(self.made(name, z).flatten(1), 1e-6)


def subject_of(
    run: Run, model: Any = None, split: str = "test", world: World = ALONE, manifest: Manifest | None = None
) -> Subject:
    """A run's data with a model: one by hand, or its own with its initial weights, well above the usual ones."""
    manifest = (manifest or open_manifest(run.data)).reading(run.modalities)
    return Subject(cast(MultimodalVAE, model or lively(run)), run, manifest, split, world)


def lively(run: Run) -> MultimodalVAE:
    """A run's model whose weights are so large that what it generates hangs on what it is given."""
    model = build(run).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def on_a_rank(study: Callable[[Subject], Any], run: Run, cache: Path) -> Any:
    """A study of a run's model on this rank."""
    with mock.patch.dict(os.environ, PAIRSTREAM_CACHE=str(cache)):
        return study(subject_of(run, world=distributed.start("cpu", 1)))


class Brightest(nn.Module):
    """Reads as the class of a picture where it is brightest, counted in its own order."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, picture_BCYX: Tensor) -> Tensor:
        return picture_BCYX.flatten(1)[:, : self.classes]


def reads(classes: int) -> Oracle:
    """An oracle by hand."""
    return Oracle(Brightest(classes), {})


CLASSES = 3
STRIPES = {"upper": Image(1, 3, levels=16, hidden=(4,)), "lower": Image(1, 3, levels=16, hidden=(4,))}


def stripe(number: int) -> np.ndarray:
    """A row of three pixels that is brightest where its class says."""
    return np.where(np.arange(CLASSES) == number, 16, 0)[None]


def stripes(out: Path, rows: list[tuple[str, dict[str, int]]]) -> Run:
    """A run on data in which each row has a split and some of upper, lower and label, given as classes."""

    def value(name: str, number: int) -> np.ndarray:
        return np.asarray(number) if name == "label" else stripe(number)

    entries = [
        Entry(f"{split}/{n:04d}", split, {name: value(name, number) for name, number in has.items()})
        for n, (split, has) in enumerate(rows)
    ]
    known: dict[str, Modality] = {**STRIPES, "label": Label(CLASSES, hidden=(4, 4))}
    write(out, given("stripes", known, entries))
    describe(out, known)
    return Run(recipe="stripes", data=str(out), modalities=STRIPES, model=Model(latent=2), examine=Examine())


def of_parts(run: Run) -> Run:
    """The same run, its two images one picture."""
    return replace(run, examine=replace(run.examine, parts=("upper", "lower")))


def digit_run(data: Path, **changes: Any) -> Run:
    """A small run on the digits' halves and their label."""
    return a_run(data, **{"train.batch": 50, **changes})


def halves_alone(run: Run) -> Run:
    """The same run of a model that does not know the label."""
    halves = {name: run.modalities[name] for name in ("top", "bottom")}
    return replace(run, modalities=halves, objective=replace(run.objective, lambda_={}))
