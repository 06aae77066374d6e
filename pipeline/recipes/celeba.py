"""CelebA's faces at 64x64 with 18 of their attributes, or with five transformations: MVAE (Wu & Goodman, 2018).

    pairstream prepare celeba --source DIR      the official files of DIR -> data/celeba
    pairstream train celeba                     100 epochs of the 162,770 official training rows: 23 h

Hours are those of two CPU cores: `seconds_per_step` of `pairstream train NAME --steps 12 --json`, times the steps. No
GPU was at hand.

What to expect: not measured here at this length. The paper has log p(image) = -6236.9 nats by 100 importance samples
(table 2), with batch normalisation where this has group normalisation (modalities/networks.py).

The settings are those of the paper: Adam with 1e-4, batch 100, 100 epochs, β rising to 1 over the first 20 (appendix
A), 100 latent dimensions (earlier version, section 4.4), a mini-DCGAN for images and two layers of 512 for attributes
(4,447,504 parameters of inference networks, table 1). The weight of the attributes is the published version's 50
(section 4); the earlier version has 1, which is --objective.lambda.attributes 1. Data that are an excerpt get as many
steps as the whole: give --steps for fewer.

    pairstream train celeba19                   the same data, each attribute a modality of its own, k = 1: 29 h

MVAE19 has log p(image) = -6236.1 nats (table 2). Its shards are celeba's: 18 modalities lie in one member. An
attribute's network has one input (10,700,376 parameters of inference networks; the paper's 10,857,048 count 18 inputs
each). The paper gives no weight of the single attributes: here it is 1.

    pairstream prepare celeba-transforms --source DIR
    pairstream train celeba-transforms          six pictures of a face; 250 latent dimensions, k = 1 (section 6): 142 h

The paper shows pictures of this one (figures 4 and 11 to 14) and no number.
"""

from __future__ import annotations

from dataclasses import replace

from modalities import Attributes
from pipeline.config import Run
from pipeline.corpora.celeba import ATTRIBUTES, MODALITIES
from pipeline.corpora.celeba_transforms import MODALITIES as TRANSFORMS
from pipeline.settings import Model, Objective, Optim, Training

BATCH = 100
EPOCH = round(162_770 / BATCH)
"""Steps in which about as many rows are seen as there are official training samples."""


def celeba() -> Run:
    """MVAE on CelebA, image and 18 attributes, with the paper's settings: 162,800 steps."""
    return Run(
        recipe="celeba",
        data="data/celeba",
        modalities=dict(MODALITIES),
        model=Model(latent=100),
        objective=Objective(lambda_={"attributes": 50.0}, anneal=20 / 100),
        optim=Optim(lr=1e-4),
        train=Training(batch=BATCH, steps=100 * EPOCH, log_every=100, validate_every=2 * EPOCH, checkpoint_every=EPOCH),
    )


def celeba19() -> Run:
    """MVAE19: CelebA's image and each of 18 attributes as a modality of its own, k = 1."""
    attributes = {
        name.lower(): Attributes(count=1, of="attributes", first=place, among=len(ATTRIBUTES))
        for place, name in enumerate(ATTRIBUTES)
    }
    return replace(
        celeba(),
        recipe="celeba19",
        modalities={"image": MODALITIES["image"], **attributes},
        objective=Objective(k=1, anneal=20 / 100),
    )


def celeba_transforms() -> Run:
    """MVAE on six pictures of a face: colours, grey, edges, landmarks' mask, half hidden, watermarked; k = 1."""
    batch = 50
    base = celeba()
    return replace(
        base,
        recipe="celeba-transforms",
        data="data/celeba-transforms",
        modalities=dict(TRANSFORMS),
        model=Model(latent=250),
        objective=Objective(k=1, anneal=20 / 100),
        train=replace(base.train, batch=batch, steps=base.train.steps * BATCH // batch),
    )
