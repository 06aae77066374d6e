"""CelebA: few pairs, sampled terms, dropped modalities, transformations (MVAE sections 5 and 6, figures 4, 9, 10)."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline.corpora.celeba_transforms import MODALITIES
from pipeline.evaluate.attributes import attribute_accuracy
from pipeline.evaluate.quality import picture_quality
from pipeline.reproduce.plots import beside, curves, subset_curves, supervision
from pipeline.reproduce.published import LEVELS
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Table, percent
from pipeline.reproduce.work import Trained

EPOCHS = 100
TERMS = (0, 1, 5, 10, 20, 50)
"""k, random subsets of a step (figure 10)."""
KEPT = (0.001, 0.01, 0.1, 0.2, 0.5, 1.0)
"""Probabilities with which each modality of each face is kept (figure 9)."""
ROWS, SAMPLES = 1000, 100
TRANSFORMED = [name for name in MODALITIES if name != "image"]


def celeba_weak(extent: Extent) -> list[Cell]:
    """All 18 attributes or none beside the image; a question that the paper asks of other data."""
    metrics = ("balanced/attributes_given_image", "accuracy/attributes_given_image", "majority/attributes")
    cells = []
    for level in LEVELS:
        if not extent.wants(column=percent(level)):
            continue
        changes = {"pairing.view": "split", "pairing.fraction": level}
        works = tuple(
            Trained(lasting("celeba", extent.epochs(EPOCHS), changes, seed), metrics, studies=(attribute_accuracy,))
            for seed in range(extent.seeds)
        )
        cells += [Cell(metric, percent(level), metric, None, (works,), EPOCHS) for metric in metrics]
    return [cell for cell in cells if extent.wants(cell.row)]


def k_effect(extent: Extent) -> list[Cell]:
    """Figure 10: MVAE19 with more sampled terms, with noise of each term's own and with the same for all."""
    cells = []
    for row, shared in (("own noise", False), ("shared noise", True)):
        for k in TERMS:
            changes = {"objective.k": k, "objective.shared_noise": shared}
            cells += _faces19(row, f"k = {k}", changes, ("log_p/all", "log_weight_variance/all"), extent)
    return cells


def celeba_drop(extent: Extent) -> list[Cell]:
    """Figure 9: MVAE19 where each modality of each face is kept with a probability.

    Its panels: (a) accuracy of attributes drawn given the image, (b) log p(x, y), (c) log p(x), (d) log p(x | y).
    Beside (a) stands the accuracy of the likelier answers, which the paper does not show.
    """
    metrics = ("sampled/attributes_given_image", "accuracy/attributes_given_image", "log_p/all", "log_p/image",
               "log_p/image_given_others.by_image")  # fmt: skip
    cells = []
    for kept in KEPT:
        changes = {"pairing.view": "keep", "pairing.keep": kept}
        cells += _faces19("MVAE19", f"p = {kept:g}", changes, metrics, extent)
    return cells


def _faces19(row: str, column: str, changes: dict[str, Any], metrics: tuple[str, ...], extent: Extent) -> list[Cell]:
    if not extent.wants(row, column):
        return []
    works = tuple(
        Trained(
            lasting("celeba19", extent.epochs(EPOCHS), changes, seed), metrics, samples=SAMPLES, few=ROWS,
            studies=(attribute_accuracy,),
        )
        for seed in range(extent.seeds)
    )  # fmt: skip
    return [Cell(row, column, metric, None, (works,), EPOCHS) for metric in metrics]


def celeba_transforms(extent: Extent) -> list[Cell]:
    """Section 6, which shows pictures and no number: how near ours are to the real ones."""
    asked = [f"image_given_{name}" for name in TRANSFORMED] + [f"{name}_given_image" for name in TRANSFORMED]
    metrics = tuple(f"{kind}/{one}" for kind in ("ssim", "psnr") for one in asked)
    works = tuple(
        Trained(lasting("celeba-transforms", extent.epochs(EPOCHS), {}, seed), metrics, studies=(picture_quality,))
        for seed in range(extent.seeds)
    )
    cells = [
        Cell(metric.partition("/")[2], metric.partition("/")[0], metric, None, (works,), EPOCHS) for metric in metrics
    ]
    return [cell for cell in cells if extent.wants(cell.row, cell.column)]


TABLES = [
    Table("celeba-weak", "CelebA: 18 attributes from the face", "MVAE section 5", celeba_weak, supervision),
    Table(
        "k-effect", "CelebA, 19 modalities: sampled ELBO terms", "MVAE figure 10", k_effect, subset_curves,
        f"{ROWS:,} test rows, {SAMPLES} importance samples",
    ),
    Table(
        "celeba-drop", "CelebA, 19 modalities, each kept with probability p", "MVAE figure 9", celeba_drop,
        partial(curves, across="probability", up="test"), f"{ROWS:,} test rows, {SAMPLES} importance samples",
    ),
    Table("celeba-transforms", "CelebA: transformations", "MVAE section 6", celeba_transforms, beside),
]  # fmt: skip
