"""A digit in two domains, MNIST and street numbers (or scikit-learn's small digits): MMVAE (Shi et al., 2019) and SVAE.

    pairstream prepare mnist-svhn --source DIR
    pairstream train mnist-svhn                 MMVAE
    pairstream train mnist-svhn-svae            SVAE on the same data
    pairstream prepare mnist-digits --source DIR
    pairstream train mnist-digits               MMVAE where there is no SVHN: the second domain is real 8x8 digits

`mnist-digits` takes 0.4 h on two CPU cores: `seconds_per_step` of `pairstream train mnist-digits --steps 60 --json`
(0.125), times the steps. No GPU was at hand. SVHN was not at hand: `mnist-svhn` has trained on tiny files in its format
only.

What to expect: not measured here at this length; a tenth of it is in the README (`pairstream reproduce two-domains
--budget 0.1`), where MMVAE's pairs of pictures from the prior show the same digit in 40.5 % of all cases. In the paper
they do in 42.1 %, a street number made of an MNIST digit in 86.4 %, the reverse in 69.1 % (table 2, chance is 10 %); a
linear classifier finds the digit in 91.3 % of MNIST's latents and 68.0 % of SVHN's (table 1).

MMVAE's settings: Adam with 1e-3, 20 latent dimensions, Laplace prior and posteriors (sections 4.1, 4.2), an MLP of 400
for MNIST and convolutions for SVHN (table 6 a, b). The paper has AMSGrad, which is not built here. It gives neither K,
batch, epochs nor the pictures' likelihood: here the authors' code (iffsid/mmvae) decides, K = 30, 128 rows, 30 epochs
and Laplace with a scale of 0.75, where the smaller picture's likelihood weighs as much more as the other has more
elements (README of that code). SVAE's settings (appendix F.2): Adam with 1e-4, 20 latent dimensions, 50 epochs, the
same networks; its pictures are Bernoulli's. An epoch shows each of MNIST's 50,000 digits once, with another partner
each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from modalities import AnyModality, Image, Modality
from pipeline.config import Run
from pipeline.corpora.mnist_digits import MNIST_DIGITS
from pipeline.corpora.mnist_svhn import MNIST_SVHN
from pipeline.recipes.mnist import BATCH, EPOCH
from pipeline.settings import Model, Objective, Optim, Training

ROWS = 128
PASS = round(50_000 / ROWS)
"""Steps in which as many rows are seen as there are training digits."""


def mnist_svhn() -> Run:
    """MMVAE on MNIST's digits and street numbers of the same class."""
    return Run(
        recipe="mnist-svhn",
        data="data/mnist-svhn",
        modalities=_domains(MNIST_SVHN.modalities, "laplace", 0.75),
        model=Model(latent=20, system="mmvae"),
        objective=Objective(samples=30, lambda_={"mnist": 32 * 32 * 3 / 28**2}),
        optim=Optim(lr=1e-3),
        train=Training(batch=ROWS, steps=30 * PASS, log_every=50, validate_every=PASS, checkpoint_every=PASS),
    )


def mnist_svhn_svae() -> Run:
    """SVAE on MNIST's digits and street numbers of the same class."""
    return replace(
        mnist_svhn(),
        recipe="mnist-svhn-svae",
        modalities=_domains(MNIST_SVHN.modalities, "bernoulli", 1.0),
        model=Model(latent=20, system="svae"),
        objective=Objective(),
        optim=Optim(lr=1e-4),
        train=Training(batch=BATCH, steps=50 * EPOCH, log_every=100, validate_every=EPOCH, checkpoint_every=EPOCH),
    )


def mnist_digits() -> Run:
    """MMVAE on MNIST's digits and scikit-learn's real 8x8 digits of the same class."""
    modalities = _domains(MNIST_DIGITS.modalities, "laplace", 0.75)
    base = mnist_svhn()
    objective = replace(base.objective, lambda_={"digits": 28**2 / 8**2})
    return replace(base, recipe="mnist-digits", data="data/mnist-digits", modalities=modalities, objective=objective)


def _domains(
    modalities: Mapping[str, Modality], likelihood: Literal["laplace", "bernoulli"], scale: float
) -> dict[str, AnyModality]:
    """The two pictures with the papers' networks; the label is there for evaluation only."""
    return {
        name: replace(
            modality,
            likelihood=likelihood,
            scale=scale,
            **({"network": "conv-svhn", "hidden": ()} if name == "svhn" else {"activation": "relu", "hidden": (400,)}),
        )
        for name, modality in modalities.items()
        if isinstance(modality, Image)
    }
