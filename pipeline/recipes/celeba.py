"""CelebA's faces at 64x64 and 18 of their attributes as one modality, as in MVAE (Wu & Goodman, 2018).

    pairstream prepare celeba --source DIR      the official files of DIR -> data/celeba
    pairstream train celeba                     100 epochs of the 162,770 official training rows

What to expect: not measured here at this length. The paper has log p(image) = -6236.9 nats by 100 importance samples
(table 2), with batch normalisation where this has group normalisation (modalities/networks.py).

The settings are those of the paper: Adam with 1e-4, batch 100, 100 epochs, β rising to 1 over the first 20 (appendix
A), 100 latent dimensions (earlier version, section 4.4), a mini-DCGAN for images and two layers of 512 for attributes
(4,447,504 parameters of inference networks, table 1). The weight of the attributes is the published version's 50
(section 4); the earlier version has 1, which is --objective.lambda.attributes 1. Data that are an excerpt get as many
steps as the whole: give --steps for fewer.
"""

from __future__ import annotations

from pipeline.config import Run
from pipeline.corpora.celeba import MODALITIES
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
