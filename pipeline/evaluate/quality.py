"""How good generated pictures are: SSIM and PSNR against the real ones, Fréchet distances of samples from the prior.

Pictures are the means of p(x|z), with pixels from 0 to 1. Shape legend: R rows of a split, B rows of a batch, F
features, Y, X rows and columns of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from modalities import Image
from pipeline.batch import Batch
from pipeline.evaluate.scored import Scored, bootstrap, mean_of
from pipeline.evaluate.subject import Subject, filled
from pipeline.noise import normal
from pipeline.posteriors import generates

ROWS = 1000
"""Rows of a split, evenly spaced, by which pictures are compared one by one."""
SINGLES = 4
"""Of the generations of one image from another as many are compared, the first modality's before others."""
WINDOW = 11
"""Pixels a side of SSIM's windows."""
CLOSEST = 1e-10
"""The least mean squared error that counts, 100 dB: pictures that are the same have no finite PSNR."""
DRAWS = 50
"""Resamples of a Fréchet distance, which tell its standard error to a tenth."""
WIDE = 512
"""Features beyond which a Fréchet distance is not resampled: of 1,280 it takes seconds each time."""
Features = Callable[[Tensor], Tensor]
"""Pictures (B, *shape) with pixels from 0 to 1 -> features (B, F), each row's of its picture alone."""


def comparisons(subject: Subject) -> list[tuple[str, tuple[str, ...]]]:
    """(image, what it is generated from) for which pictures are compared; at most SINGLES and one for each image.

    Each image from all other modalities, and from one other image, as far as the run's system generates that. Of runs
    with one image its reconstruction.
    """
    names, images, family = list(subject.run.modalities), _images(subject), subject.model.family

    def possible(asked: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
        return [(wanted, given) for wanted, given in asked if generates(family, names, wanted, frozenset(given))]

    if len(images) == 1:
        return possible([(images[0], (images[0],))])
    singles = sorted(permutations(images, 2), key=lambda pair: (pair[0] != images[0], pair[1] != images[0]))
    some = possible([(wanted, (given,)) for wanted, given in singles])[:SINGLES]
    whole = possible([(wanted, tuple(name for name in names if name != wanted)) for wanted in images])
    return list(dict.fromkeys([*some, *whole]))


@torch.no_grad()
def picture_quality(subject: Subject) -> dict[str, Scored]:
    """`ssim/image_given_grey`, `psnr/…`: the mean picture against the real one of the same row. Collective.

    Means over those of at most ROWS rows of the split that have the image and all that is given, z being the mean of
    q(z|given). PSNR = 10 log10(1 / MSE) dB, MSE over all pixels and colours. SSIM = mean over windows of
    (2 μ_x μ_y + c_1)(2 σ_xy + c_2) / ((μ_x² + μ_y² + c_1)(σ_x² + σ_y² + c_2)), c_1 = 0.01², c_2 = 0.03², in windows of
    11x11 pixels weighted by a Gaussian of σ = 1.5, at all places where they lie within the picture (Wang et al. 2004,
    eq. 13, section III.C); of colours the mean over the three planes. In pictures of less than 11 pixels a side windows
    reach over the border, where pixels are mirrored.
    """
    asked = comparisons(subject)
    if not asked:
        return {}
    names, model = list(subject.run.modalities), subject.model

    def look(batch: Batch, _: Batch) -> dict[str, np.ndarray]:
        told = {}
        for wanted, given in asked:
            shown = batch.only(frozenset(given))
            parameters = model.decode(wanted, model.posterior(shown).mu, shown)
            made, real = model.modalities[wanted].mean(parameters).cpu().numpy(), filled(batch, wanted, 0)
            rows = np.flatnonzero(batch.present_BM[:, [names.index(name) for name in (wanted, *given)]].all(1))
            for kind, measure in (("ssim", ssim), ("psnr", psnr)):
                scores = np.full(len(batch), np.nan)
                scores[rows] = [measure(real[row], made[row]) for row in rows]
                told[f"{kind}/{wanted}_given_{'_'.join(given)}"] = scores
        return told

    some = replace(subject, few=min(subject.few or ROWS, ROWS))
    scored = {name: mean_of(values) for name, values in some.collect(look).items()}
    return {name: score for name, score in scored.items() if score.count}


def ssim(real: np.ndarray, made: np.ndarray) -> float:
    """Structural similarity of two pictures (Y, X) or (3, Y, X), at most 1: see `picture_quality`."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            real,
            made,
            win_size=min(WINDOW, *((side - 1) // 2 * 2 + 1 for side in real.shape[-2:])),
            data_range=1.0,
            channel_axis=0 if real.ndim == 3 else None,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def psnr(real: np.ndarray, made: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, at most 100."""
    return -10 * math.log10(max(float(np.square(real - made, dtype=np.float64).mean()), CLOSEST))


@torch.no_grad()
def frechet(
    subject: Subject, features: Features, name: str, modalities: Sequence[str] | None = None
) -> dict[str, Scored]:
    """`frechet.NAME/MODALITY` of image modalities, all of the run or those named. Collective.

    The Fréchet distance (`frechet_distance`) between the features of the split's pictures and those of as many mean
    pictures of z from the prior; its noise hangs on the row. With InceptionV3's features this would be the FID; with
    others the numbers compare among themselves, over as many rows, since few rows make distances larger
    (`Subject.few`). The error is NaN where there are more than WIDE features.

    {} where the run's system generates nothing from the prior alone (cvae).
    """
    model, seed = subject.model, subject.run.seed
    images = [] if model.family.conditions else _images(subject)
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


def _images(subject: Subject) -> list[str]:
    return [name for name, modality in subject.run.modalities.items() if isinstance(modality, Image)]
