"""How like the real ones generated pictures are: SSIM and PSNR.

Pictures are the means of p(x|z), with pixels from 0 to 1. Shape legend: Y, X rows and columns of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline.batch import Batch
from pipeline.evaluate.scored import Scored, mean_of
from pipeline.evaluate.subject import Subject, filled
from pipeline.posteriors import generates

ROWS = 1000
"""Rows of a split, evenly spaced, by which pictures are compared one by one."""
WINDOW = 11
"""Pixels a side of SSIM's windows."""
CLOSEST = 1e-10
"""The least mean squared error that counts, 100 dB: pictures that are the same have no finite PSNR."""


def comparisons(subject: Subject) -> list[tuple[str, tuple[str, ...]]]:
    """(image, what it is generated from) for which pictures are compared.

    Each image from all other modalities; the first image from each other one, and each of these from it; as far as the
    run's system generates that. Of runs with one image its reconstruction.
    """
    names, images, family = list(subject.run.modalities), subject.images, subject.model.family

    def possible(asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
        return [(wanted, given) for wanted, given in asked if generates(family, names, wanted, frozenset(given))]

    if len(images) < 2:
        return possible([(image, (image,)) for image in images])
    first, *others = images
    singles = possible([(first, (other,)) for other in others] + [(other, (first,)) for other in others])
    whole = possible([(wanted, tuple(name for name in names if name != wanted)) for wanted in images])
    return list(dict.fromkeys([*singles, *whole]))


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
