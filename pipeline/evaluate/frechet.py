"""Fréchet distances between real pictures and samples of the prior, in the features of a network that has a name.

With InceptionV3's features this would be the FID (Heusel et al. 2017). Here they are those of the oracle that judges
the picture, where the data have labels, or of EfficientNet-Lite0. Numbers compare with those of the same features over
as many rows: few rows make distances larger. Shape legend: B rows of a batch, R rows of a split, F features, Y, X rows
and columns of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Batch
from pipeline.evaluate.coherence import judged, oracles
from pipeline.evaluate.oracle import Oracle, joined
from pipeline.evaluate.scored import Scored, bootstrap
from pipeline.evaluate.subject import Subject, filled
from pipeline.noise import normal

SOME = 500
"""Rows of a split, evenly spaced, of which EfficientNet's features are taken: it sees one picture at a time."""
DRAWS = 50
"""Resamples of a distance, which tell its standard error to a tenth. That holds for fewer rows than features too: of
500 faces in EfficientNet's it is 2.0 to 2.3, and distances of other 500 have a standard deviation of 2.2."""
Features = Callable[[Tensor], Tensor]
"""Pictures (B, Y, X) or (B, 3, Y, X) with pixels from 0 to 1 -> features (B, F), each row's of its picture alone."""


def prior_samples(subject: Subject) -> dict[str, Scored]:
    """`frechet.oracle/X` of each picture that an oracle judges, strips of one (`parts`) joined, and
    `frechet.efficientnet-lite0/X` of others in colours.

    Raises NotInstalled where EfficientNet is needed and its extra is not installed. Collective.
    """
    if subject.model.family.conditions:
        return {}
    judges = oracles(subject)
    pictures = judged(subject.run) if judges else {}
    found: dict[str, Scored] = {}
    for picture, parts in pictures.items():
        found |= frechet(subject, penultimate(judges[picture]), "oracle", {picture: parts})
    others = [name for name in subject.images if all(name not in parts for parts in pictures.values())]
    coloured = {name: (name,) for name in others if len(subject.run.modalities[name].shape) == 3}
    some = replace(subject, few=min(subject.few or SOME, SOME))
    return found | (frechet(some, efficientnet, "efficientnet-lite0", coloured) if coloured else {})


def penultimate(judge: Oracle) -> Features:
    """What an oracle's last layer sees, 256 features."""
    return lambda pictures: judge.network[:-1](joined([pictures]))


@torch.no_grad()
def frechet(
    subject: Subject, features: Features, name: str, pictures: Mapping[str, Sequence[str]]
) -> dict[str, Scored]:
    """`frechet.NAME/PICTURE` of pictures, each given as the image modalities that it is made of, from the top; mostly
    one. Collective.

    The distance (`frechet_distance`) between the features of the split's pictures and those of as many mean pictures,
    all parts of one z from the prior; its noise hangs on the row. Rows count that have all parts. The error is over
    rows; that a distance over fewer rows is larger, it does not tell.

    {} where the run's system generates nothing from the prior alone (cvae).
    """
    model, seed, names = subject.model, subject.run.seed, list(subject.run.modalities)
    asked = {} if model.family.conditions else pictures

    def look(batch: Batch, _: Batch) -> dict[str, np.ndarray]:
        told, device = {}, batch.row_B.device
        z_BZ = model.prior(device).sample(normal(seed, "frechet", batch.row_B, 1, model.latent))[0]
        for picture, parts in asked.items():
            strips = [model.modalities[part].mean(model.decode(part, z_BZ, batch)) for part in parts]
            made = features(torch.cat(strips, -2)).cpu().numpy()
            real, has = np.full_like(made, np.nan), batch.present_BM[:, [names.index(part) for part in parts]].all(1)
            if has.any():
                own = [torch.from_numpy(filled(batch, part, 0)[has]) for part in parts]
                real[has] = features(torch.cat(own, -2).to(device)).cpu().numpy()
            told[f"real {picture}"], told[f"made {picture}"] = real, made
        return told

    found = subject.collect(look) if asked else {}
    scores = {}
    for picture in asked:
        there = ~np.isnan(found[f"real {picture}"]).all(1)
        real, made = (found[f"{kind} {picture}"][there].astype(np.float64) for kind in ("real", "made"))
        if len(real) > 1:  # one picture has no covariance
            scores[f"frechet.{name}/{picture}"] = _distance(real, made)
    return scores


def _distance(real_RF: np.ndarray, made_RF: np.ndarray) -> Scored:
    return bootstrap(lambda rows: frechet_distance(real_RF[rows], made_RF[rows]), len(real_RF), DRAWS)


def frechet_distance(one_RF: np.ndarray, other_RF: np.ndarray) -> float:
    """|μ_1 - μ_2|² + tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½), of the rows' means and covariances (Heusel et al. 2017, eq. 6).

    The trace of (Σ_1 Σ_2)^½ is the nuclear norm of W_1 W_2ᵀ for any W with WᵀW = Σ: no root is taken of a product,
    which rounding could leave with negative or complex eigenvalues where there are fewer rows than features.
    """
    one, other = _factor(one_RF), _factor(other_RF)
    means = np.square(one_RF.mean(0) - other_RF.mean(0)).sum()
    return float(means + np.square(one).sum() + np.square(other).sum() - 2 * np.linalg.norm(one @ other.T, "nuc"))


def _factor(rows_RF: np.ndarray) -> np.ndarray:
    """W with WᵀW the rows' covariance, with as few rows as the rows or the features are."""
    centred = (rows_RF - rows_RF.mean(0)) / math.sqrt(len(rows_RF) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    factor: np.ndarray = (vectors * np.sqrt(values.clip(0))).T
    return factor


def efficientnet(pictures: Tensor) -> Tensor:
    """`Features` of EfficientNet-Lite0, 1,280 of them; grey pictures are shown in three planes that are the same.

    One picture at a time, on the CPU (`corpora/extractors.py`). Raises UserError without the extra `features`.
    """
    from pipeline.corpora.extractors import extract

    colours = pictures if pictures.ndim == 4 else pictures[:, None].expand(-1, 3, -1, -1)
    levels = (colours * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(np.stack([extract("efficientnet-lite0", "", picture) for picture in levels]))
