"""AE, VAE, RBM: something that is trained on all pictures, then logistic regression on its codes of the pairs.

MVAE section 5.1 (3) to (5), appendix H. What is trained on pictures does not hang on which of them are pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.baselines.fitting import Fitting, build, fit, in_parts
from pipeline.baselines.linear import flat, regression
from pipeline.baselines.pairs import UNKNOWN, Question, question, too_few
from pipeline.config import Run
from pipeline.evaluate.scored import Scored
from pipeline.manifest import Manifest
from pipeline.noise import normal
from pipeline.objectives.terms import beta_at
from pipeline.order import permute, seed_of

HIDDEN = 128
"""Hidden nodes of the RBM (appendix H)."""
Encode = Callable[[np.ndarray], np.ndarray]
"""Pictures (R, *shape) -> codes (R, H)."""
Learn = Callable[[Question, Fitting], Encode]
"""(what is asked, for how long) -> what has been learnt from the training split's pictures."""


def on_codes(learn: Learn) -> Callable[[Manifest, Sequence[Run], str, str, str, Fitting], list[Scored]]:
    """`Baseline.scores` of logistic regression on what `learn` makes of pictures, learnt once for all runs."""

    def scores(
        manifest: Manifest, runs: Sequence[Run], label: str, given: str, split: str, fitting: Fitting
    ) -> list[Scored]:
        asked = question(manifest, runs, label, given)
        pictures, truth = asked.rows(split)
        encode = learn(asked, fitting)
        codes = encode(pictures)
        pairs = (asked.pairs(run.pairing) for run in runs)
        return [
            UNKNOWN if too_few(labels) else regression(encode(seen), labels, codes, truth) for seen, labels in pairs
        ]

    return scores


def pixels(asked: Question, fitting: Fitting) -> Encode:
    """The pictures as they are: there is nothing to learn."""
    return flat


def autoencoder(asked: Question, fitting: Fitting) -> Encode:
    """The picture's encoder and decoder without noise and KL, for its likelihood alone."""
    return _trained(asked, fitting, "AE", variational=False)


def vae(asked: Question, fitting: Fitting) -> Encode:
    """The same networks, for the ELBO with the run's β; the codes are the posteriors' means."""
    return _trained(asked, fitting, "VAE", variational=True)


def _trained(asked: Question, fitting: Fitting, title: str, variational: bool) -> Encode:
    run, picture = asked.run, asked.picture
    net = build(run, picture, picture, title)
    device = next(net.parameters()).device
    pictures = torch.from_numpy(asked.pictures()).to(device)
    steps = fitting.epochs * -(-len(pictures) // run.train.batch)

    def loss(chosen: Tensor, step: int) -> Tensor:
        seen, noise = pictures[chosen], None
        if variational:
            rows = step * run.train.batch + torch.arange(len(chosen), device=device)
            noise = normal(run.seed, "baseline", rows, 1, run.model.latent)[0]
        parameters, q = net(seen, noise)
        error = -picture.log_likelihood(parameters, seen)
        if variational:
            error = error + beta_at(run.objective, step, steps) * q.kl_to_prior()
        return error.mean()

    fit(net, loss, len(pictures), run, fitting, title)
    return lambda some: in_parts(lambda part: net.encoder(part)[0], torch.from_numpy(some).to(device)).cpu().numpy()


def rbm(asked: Question, fitting: Fitting) -> Encode:
    """Probabilities of the hidden nodes of a restricted Boltzmann machine, given levels in [0, 1] as probabilities.

    scikit-learn's, which is trained by persistent contrastive divergence (Tieleman 2008), where the paper says
    contrastive divergence; in the run's batches, with scikit-learn's learning rate, for Adam's means nothing to it.
    """
    from rich.console import Console
    from sklearn.neural_network import BernoulliRBM

    seed, batch = seed_of(asked.run.seed, "baseline", "RBM"), asked.run.train.batch
    pictures = flat(asked.pictures())
    order = permute(np.arange(len(pictures)), len(pictures), seed)
    machine = BernoulliRBM(HIDDEN, n_iter=fitting.epochs, batch_size=batch, random_state=seed % 2**32)
    with Console(stderr=True).status(f"RBM: {fitting.epochs} epochs of {len(pictures):,} pictures"):
        machine.fit(pictures[order])
    return lambda some: np.asarray(machine.transform(flat(some)))
