"""A model whose pictures are known: it copies what it sees. z is the logit of every pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infra.distributed import World
from modalities import AnyModality, Image, Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.evaluate.subject import Subject
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.settings import Model, Training
from pipeline.writing import write
from tests.pipeline.tiny import given

WORLD = World(0, 1, 0, torch.device("cpu"))
RNG = np.random.default_rng(5)


def blurred(*shape: int) -> np.ndarray:
    """A random picture with some structure."""
    noise = RNG.random(shape)
    return ((noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2)) / 3).astype(np.float32)


SHAPE = (8, 9)
KINDS: dict[str, AnyModality] = {
    "a": Image(*SHAPE, hidden=(3,)), "label": Label(3, hidden=(3, 3)), "b": Image(*SHAPE, hidden=(3,)),
}  # fmt: skip
ROWS = 30


class Sees(nn.Module):
    """An expert, sure of itself, whose mean is a function of the picture."""

    def __init__(self, answer: Callable[[Tensor], Tensor], sureness: float = 14.0) -> None:
        super().__init__()
        self.answer, self.sureness, self.nothing = answer, sureness, nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        said = self.answer(value).float() + self.nothing
        return said, torch.full_like(said, -self.sureness)


class Shows(nn.Module):
    """A decoder."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer, self.nothing = answer, nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        return self.answer(z) + self.nothing


def pixels(picture: Tensor) -> Tensor:
    return picture.flatten(1).logit(1e-6)


def ignoring(picture: Tensor) -> Tensor:
    return torch.zeros(len(picture), math.prod(SHAPE))


def unknowing(label: Tensor) -> Tensor:
    return torch.zeros(len(label), math.prod(SHAPE))


def unchanged(z: Tensor) -> Tensor:
    return z


PICTURES = {
    name: [np.rint(255 * np.clip(blurred(*SHAPE), 0.02, 0.98)) for _ in range(ROWS)] for name in ("a", "b")
}  # fmt: skip


def pairs(out: Path) -> Path:
    """Pairs of pictures with labels, written to `out`; every seventh row lacks b."""
    rows = []
    for row in range(ROWS):
        values = {name: PICTURES[name][row] for name in ("a", "b")} | {"label": np.asarray(row % 3)}
        rows.append(Entry(f"k{row:02d}", "test", {n: v for n, v in values.items() if n != "b" or row % 7}))
    write(out, given("toy", KINDS, rows))
    return out


def painter(
    data: Path,
    looks: Callable[[Tensor], Tensor] = pixels,
    world: World = WORLD,
    batch: int = 7,
    names: str = "a label b",
) -> Subject:
    """A model that copies what it sees as `looks` says, and knows nothing of labels."""
    kinds = {name: KINDS[name] for name in names.split()}
    run = Run("toy", str(data), kinds, seed=2, model=Model(math.prod(SHAPE)), train=Training(batch=batch))
    model = MultimodalVAE(kinds, run.model.latent, family_of(run)).eval()
    for name, kind in kinds.items():
        seen = isinstance(kind, Image)
        model.encoders[name] = Sees(looks) if seen else Sees(unknowing, -60.0)
        if seen:
            model.decoders[name] = Shows(unchanged)
    return Subject(model, run, open_manifest(data), "test", world)
