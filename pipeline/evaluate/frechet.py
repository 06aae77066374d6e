"""Fréchet distances between real pictures and samples of the prior, in the features of a network that has a name.

With InceptionV3's features this would be the FID (Heusel et al. 2017). Here they are those of the oracle that judges
the picture, where the data have labels, or of EfficientNet-Lite0. Numbers compare with those of the same features over
as many rows: few rows make distances larger. Shape legend: B rows of a batch, R rows of a split, F features, Y, X rows
and columns of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Batch
from pipeline.evaluate.coherence import oracles
from pipeline.evaluate.oracle import Oracle, joined
from pipeline.evaluate.scored import Scored, bootstrap
from pipeline.evaluate.subject import Subject
from pipeline.noise import normal

SOME = 500
"""Rows of a split, evenly spaced, of which EfficientNet's features are taken: it sees one picture at a time."""
DRAWS = 50
"""Resamples of a distance, which tell its standard error to a tenth."""
WIDE = 512
"""Features beyond which a distance is not resampled: of 1,280 it takes seconds each time."""
Features = Callable[[Tensor], Tensor]
"""Pictures (B, Y, X) or (B, 3, Y, X) with pixels from 0 to 1 -> features (B, F), each row's of its picture alone."""


def prior_samples(subject: Subject) -> dict[str, Scored]:
    """`frechet.oracle/X` of each picture that an oracle judges, `frechet.efficientnet-lite0/X` of others in colours.

    Raises NotInstalled where EfficientNet is needed and its extra is not installed. Collective.
    """
    if subject.model.family.conditions:
        return {}
    judges = {picture: judge for picture, judge in oracles(subject).items() if picture in subject.images}
    found: dict[str, Scored] = {}
    for picture, judge in judges.items():
        found |= frechet(subject, penultimate(judge), "oracle", [picture])
    coloured = [name for name in subject.images if name not in judges and len(subject.run.modalities[name].shape) == 3]
    some = replace(subject, few=min(subject.few or SOME, SOME))
    return found | (frechet(some, efficientnet, "efficientnet-lite0", coloured) if coloured else {})


def penultimate(judge: Oracle) -> Features:
    """What an oracle's last layer sees, 256 features."""
    return lambda pictures: judge.network[:-1](joined([pictures]))


@torch.no_grad()
def frechet(
    subject: Subject, features: Features, name: str, modalities: Sequence[str] | None = None
) -> dict[str, Scored]:
    """`frechet.NAME/MODALITY` of image modalities, all of the run or those named. Collective.

    The distance (`frechet_distance`) between the features of the split's pictures and those of as many mean pictures of
    z from the prior; its noise hangs on the row. The error is NaN where there are more than WIDE features.

    {} where the run's system generates nothing from the prior alone (cvae).
    """
    model, seed = subject.model, subject.run.seed
    images = [] if model.family.conditions else subject.images
    asked = [image for image in images if modalities is None or image in modalities]

    def look(batch: Batch, _: Batch) -> dict[str, np.ndarray]:
        told = {}
        z_BZ = model.prior(batch.row_B.device).sample(normal(seed, "frechet", batch.row_B, 1, model.latent))[0]
        for image in asked:
            made = model.modalities[image].mean(model.decode(image, z_BZ, batch))
            seen = features(batch.values[image]).cpu().numpy()
            real = np.full((len(batch), seen.shape[1]), np.nan, np.float32)
            real[batch.rows_of[image]] = seen[: len(batch.rows_of[image])]
            told[f"real {image}"], told[f"made {image}"] = real, features(made).cpu().numpy()
        return told

    found = subject.collect(look) if asked else {}
    scores = {}
    for image in asked:
        there = ~np.isnan(found[f"real {image}"]).all(1)
        real, made = (found[f"{kind} {image}"][there].astype(np.float64) for kind in ("real", "made"))
        if len(real) > 1:  # one picture has no covariance
            scores[f"frechet.{name}/{image}"] = _distance(real, made)
    return scores


def _distance(real_RF: np.ndarray, made_RF: np.ndarray) -> Scored:
    count, width = real_RF.shape
    if width > WIDE:
        return Scored(frechet_distance(real_RF, made_RF), math.nan, count)
    return bootstrap(lambda rows: frechet_distance(real_RF[rows], made_RF[rows]), count, DRAWS)


def frechet_distance(one_RF: np.ndarray, other_RF: np.ndarray) -> float:
    """|μ_1 - μ_2|² + tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½), of the rows' means and covariances (Heusel et al. 2017, eq. 6).

    The trace of (Σ_1 Σ_2)^½ is the nuclear norm of Σ_1^½ Σ_2^½: no root is taken of a product, which rounding could
    leave with negative or complex eigenvalues where there are fewer rows than features.
    """
    (mean_1, covariance_1), (mean_2, covariance_2) = (
        (rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))) for rows in (one_RF, other_RF)
    )
    common = np.linalg.norm(_root(covariance_1) @ _root(covariance_2), "nuc")
    means = np.square(mean_1 - mean_2).sum()
    return float(means + np.trace(covariance_1) + np.trace(covariance_2) - 2 * common)


def _root(covariance_FF: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance_FF)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def efficientnet(pictures: Tensor) -> Tensor:
    """`Features` of EfficientNet-Lite0, 1,280 of them; grey pictures are shown in three planes that are the same.

    One picture at a time, on the CPU (`corpora/extractors.py`). Raises UserError without the extra `features`.
    """
    from pipeline.corpora.extractors import extract

    colours = pictures if pictures.ndim == 4 else pictures[:, None].expand(-1, 3, -1, -1)
    levels = (colours * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(np.stack([extract("efficientnet-lite0", "", picture) for picture in levels]))
