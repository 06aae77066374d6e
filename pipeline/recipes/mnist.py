"""MNIST, BinaryMNIST and FashionMNIST as image and label, MultiMNIST as image and string: MVAE (Wu & Goodman, 2018).

    pairstream prepare mnist --source DIR       the four official files of DIR -> data/mnist
    pairstream train mnist                      500 epochs of 50,000 rows: 1.2 h

Hours are those of two CPU cores: `seconds_per_step` of `pairstream train NAME --steps 60 --json`, times the steps. No
GPU was at hand.

What to expect: not measured here at this length. The paper has log p(image) = -90.6 nats by 1,000 importance samples
(table 2) and predicts 0.968 of the labels with all pairs, 0.884 with 1 % of them (table 8; --pairing.view split
--pairing.fraction 0.01).

The settings are those of the paper: Adam with 1e-3, batch 100, 64 latent dimensions, 500 epochs, β rising to 1 over
the first 200, two hidden layers of 512 (appendix A; 1,063,680 parameters of inference networks, table 1). The weight
of the label is 1, as in the paper's earlier version (section 4.1); the published one has 50 (section 4), which is
--objective.lambda.label 50.

    pairstream prepare fashion-mnist --source DIR
    pairstream train fashion-mnist              the same, with a miniature DCGAN for the image (supplement A): 8.1 h

Not measured here either. The paper has log p(image) = -232.5 nats (table 2) and predicts 0.947 of the labels with all
pairs, 0.862 with 1 % of them (table 9); 3,742,976 parameters of inference networks.

    pairstream prepare binary-mnist --source DIR
    pairstream train binary-mnist               MNIST's settings, for pixels that are 0 or 1: 1.7 h

The paper has log p(image) = -86.0 nats (table 2).

    pairstream prepare multimnist --source DIR
    pairstream train multimnist                 MNIST's settings with 100 latent dimensions (appendix A): 18 h

The paper has log p(image) = -152.8 nats (table 2) and predicts 0.529 of the digits of a string with all pairs (table
10); 1,841,936 parameters of inference networks.
"""

from __future__ import annotations

from dataclasses import replace

from modalities import Image
from pipeline.config import Run
from pipeline.corpora.binary_mnist import MODALITIES as BINARY
from pipeline.corpora.mnist import MODALITIES
from pipeline.corpora.multimnist import MODALITIES as SEVERAL
from pipeline.settings import Model, Objective, Optim, Training

BATCH = 100
EPOCH = 50_000 // BATCH
"""Steps in which as many rows are seen as there are training samples."""


def mnist() -> Run:
    """MVAE on MNIST, image and label, with the paper's settings: 250,000 steps."""
    return Run(
        recipe="mnist",
        data="data/mnist",
        modalities=dict(MODALITIES),
        model=Model(latent=64),
        objective=Objective(lambda_={"label": 1.0}, anneal=200 / 500),
        optim=Optim(lr=1e-3),
        train=Training(
            batch=BATCH, steps=500 * EPOCH, log_every=100, validate_every=10 * EPOCH, checkpoint_every=2 * EPOCH
        ),
    )


def fashion_mnist() -> Run:
    """MVAE on FashionMNIST: MNIST's settings, with convolutions for the image."""
    image = Image(height=28, width=28, network="conv-shallow", hidden=(512,))
    base = mnist()
    return replace(
        base, recipe="fashion-mnist", data="data/fashion-mnist", modalities=base.modalities | {"image": image}
    )


def binary_mnist() -> Run:
    """MVAE on MNIST's digits in black and white: MNIST's settings."""
    return replace(mnist(), recipe="binary-mnist", data="data/binary-mnist", modalities=dict(BINARY))


def multimnist() -> Run:
    """MVAE on pictures of up to four digits and the string of them: MNIST's settings, 100 latent dimensions."""
    image = Image(height=50, width=50, network="conv-strided", hidden=(512,))
    base = mnist()
    return replace(
        base,
        recipe="multimnist",
        data="data/multimnist",
        modalities=dict(SEVERAL) | {"image": image},
        model=Model(latent=100),
        objective=replace(base.objective, lambda_={"string": 1.0}),
    )
