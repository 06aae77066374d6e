"""CUB's birds as picture, captions and class attributes, or as picture features and captions: MMVAE and SVAE.

    pairstream prepare cub --source DIR
    pairstream train cub                        picture, caption and class attributes, naturally partial: MVAE
    pairstream prepare cub-features --source DIR
    pairstream train cub-features               features of a pretrained network and captions: SVAE (appendix F.3)
    pairstream train cub-resnet                 the same with the papers' network, whose weights you bring

On two CPU cores `cub` takes 2.6 h and `cub-features` 3.3 h: `seconds_per_step` of `pairstream train NAME --steps 12
--json` (60), times the steps. No GPU was at hand.

What to expect: not measured here at this length. The papers score by the CCA correlation of feature and caption: MMVAE
has 0.263 for pairs from the prior, 0.104 from image to sentence and 0.135 back, the data 0.273 (MMVAE table 4), with
2,048 features of a ResNet-101 where these are EfficientNet-Lite0's 1,280.

SVAE's settings: Adam with 1e-4, 64 latent dimensions, 200 epochs, the networks of tables F.5 and F.6, Laplace features
and categorical captions; MMVAE has 1e-3 and 128 (section 4.3; --model.system mmvae --model.latent 128 --optim.lr 1e-3),
its authors' code (iffsid/mmvae) K = 50 and AMSGrad, which is not built here. The papers name neither batch nor the
features' scale: here 64 and 1; those authors' command has 0.01 with a weight of 0.002, and so have the tables of
`pairstream reproduce`. `cub` is no experiment of theirs: what a bird lacks of its picture and captions is missing, by
nature, in most samples.
"""

from __future__ import annotations

from dataclasses import replace

from modalities import Features
from pipeline.config import Run
from pipeline.corpora.corpus import Corpus
from pipeline.corpora.cub import CUB_FEATURES, CUB_RESNET, MODALITIES
from pipeline.settings import Model, Objective, Optim, Training

BATCH = 64
EPOCH = round(11_788 * 0.8 / BATCH)
"""Steps in which about as many rows are seen as there are training birds."""


def cub() -> Run:
    """MVAE on birds: picture, caption and class attributes, each of which many samples lack."""
    return Run(
        recipe="cub",
        data="data/cub",
        modalities=dict(MODALITIES),
        model=Model(latent=64),
        objective=Objective(k=1, anneal=0.1),
        optim=Optim(lr=1e-4),
        train=Training(
            batch=BATCH, steps=200 * EPOCH, log_every=20, validate_every=4 * EPOCH, checkpoint_every=2 * EPOCH
        ),
    )


def cub_features() -> Run:
    """SVAE on EfficientNet-Lite0's features of a bird's picture, and its captions."""
    return _captioned(CUB_FEATURES)


def cub_resnet() -> Run:
    """SVAE on ResNet-101's features of a bird's picture, the papers', and its captions."""
    return _captioned(CUB_RESNET)


def _captioned(corpus: Corpus) -> Run:
    features = corpus.modalities["features"]
    assert isinstance(features, Features)
    return replace(
        cub(),
        recipe=corpus.name,
        data=f"data/{corpus.name}",
        modalities={"features": features, "caption": MODALITIES["caption"]},
        model=Model(latent=64, system="svae"),
        objective=Objective(),
    )
