"""MNIST's digits cut into two or three parts, each a modality: SVAE (In Defense of Product-of-Experts, section 4).

    pairstream prepare mnist-split --source DIR
    pairstream train mnist-split                SVAE, 200 epochs: 3.3 h; --model.system vaevae-b, vaevae-star
    pairstream prepare mnist-split3 --source DIR
    pairstream train mnist-split3               SVAE, 50 epochs: 1.9 h

Hours are those of two CPU cores: `seconds_per_step` of `pairstream train NAME --steps 60 --json`, times the steps. No
GPU was at hand.

What to expect: not measured here at this length. An oracle reads the right digit off 0.948 of the pictures that SVAE
makes of both halves, 0.872 off those made of the top half and 0.816 of the bottom half (table 1).

The settings are the paper's (appendix F.1, F.4): Adam with 2e-4, 64 latent dimensions, the networks of tables F.2 and
F.7 as far as they take these sizes (modalities/networks.py lists each change). The paper names neither batch nor
annealing: here 100 rows and none. It picks the epoch by an oracle's accuracy on pictures made of the top half, this by
the joint ELBO on validation data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modalities import AnyModality, Image, Modality
from pipeline.config import Run
from pipeline.corpora.mnist_split import HALVES, MNIST_SPLIT, MNIST_SPLIT3, THIRDS
from pipeline.recipes.mnist import BATCH, EPOCH
from pipeline.settings import Examine, Model, Optim, Training


def mnist_split() -> Run:
    """SVAE on the top and bottom halves of MNIST's digits."""
    return Run(
        recipe="mnist-split",
        data="data/mnist-split",
        modalities=_parts(MNIST_SPLIT.modalities),
        model=Model(latent=64, system="svae"),
        optim=Optim(lr=2e-4),
        examine=Examine(parts=tuple(HALVES)),
        train=Training(
            batch=BATCH, steps=200 * EPOCH, log_every=100, validate_every=4 * EPOCH, checkpoint_every=2 * EPOCH
        ),
    )


def mnist_split3() -> Run:
    """SVAE on the top, middle and bottom thirds of MNIST's digits."""
    base = mnist_split()
    return replace(
        base,
        recipe="mnist-split3",
        data="data/mnist-split3",
        modalities=_parts(MNIST_SPLIT3.modalities),
        examine=Examine(parts=tuple(THIRDS)),
        train=replace(base.train, steps=50 * EPOCH, validate_every=EPOCH, checkpoint_every=EPOCH),
    )


def _parts(modalities: Mapping[str, Modality]) -> dict[str, AnyModality]:
    """The parts of the pictures with the paper's networks; their label is there for an oracle only."""
    return {
        name: replace(modality, network="conv-split", hidden=(786,))
        for name, modality in modalities.items()
        if isinstance(modality, Image)
    }
