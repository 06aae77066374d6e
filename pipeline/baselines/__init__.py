"""What a model has to beat: MVAE's baselines of weak supervision (section 5.1, appendix H, tables 8 and 9).

Each predicts a label from a picture, and of labels it sees those of the run's pairs only. JMVAE, the sixth of the
paper, is a run itself: `jmvae_on_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.baselines.codes import autoencoder, on_codes, pixels, rbm, vae
from pipeline.baselines.fitting import Fitting
from pipeline.baselines.linear import logistic_regression
from pipeline.baselines.pairs import complete_samples, jmvae_on_pairs, read
from pipeline.baselines.supervised import network
from pipeline.config import Run
from pipeline.evaluate.scored import Scored
from pipeline.manifest import Manifest

__all__ = ["BASELINES", "Baseline", "Fitting", "complete_samples", "jmvae_on_pairs", "logistic_regression", "read"]


@dataclass(frozen=True)
class Baseline:
    """A way to predict a label from a picture that is no multimodal VAE."""

    title: str
    """What the paper's tables call it."""
    scores: Callable[[Manifest, Sequence[Run], str, str, str, Fitting], list[Scored]]
    """(manifest, runs, label, given, split, for how long) -> each run's accuracy on the split's rows that have both.

    The runs differ in their pairing only: what needs no label is trained once for all of them. NaN where a run's pairs
    hold fewer than two classes. Raises UserError where `label` is no Label, `given` no Image, or a split lacks them.
    """
    shared: bool = False
    """Whether something is trained without labels, once for all runs."""
    lasts: bool = True
    """Whether it is trained for epochs; else until nothing changes any more."""


BASELINES: dict[str, Baseline] = {
    "autoencoder": Baseline("AE", on_codes(autoencoder), shared=True),
    "network": Baseline("NN", network),
    "logistic-regression": Baseline("LOGREG", on_codes(pixels), lasts=False),
    "rbm": Baseline("RBM", on_codes(rbm), shared=True),
    "vae": Baseline("VAE", on_codes(vae), shared=True),
}
"""In the order of table 8."""
