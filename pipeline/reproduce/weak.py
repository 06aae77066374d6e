"""Weak supervision: a label or a string from a picture, learnt from few pairs (MVAE section 5.1, tables 8-10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modalities import Image
from pipeline.augment import augmented
from pipeline.baselines import BASELINES, jmvae_on_pairs
from pipeline.baselines.supervised import network
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate.run import Study, Which
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.texts import digit_accuracy
from pipeline.reproduce.plots import curves, supervision
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Table
from pipeline.reproduce.work import Fitted, Trained, Watched, Work

LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
"""Shares of the training samples that are complete."""
MNIST = {
    "AE": (0.4143, 0.5429, 0.6448, 0.788, 0.8519, 0.9124, 0.9269, 0.9423, 0.9369),
    "NN": (0.6618, 0.6964, 0.7971, 0.8499, 0.8838, 0.9235, 0.9455, 0.9806, 0.9857),
    "LOGREG": (0.6565, 0.7014, 0.7907, 0.8391, 0.8510, 0.8713, 0.8665, 0.9217, 0.9255),
    "RBM": (0.7152, 0.7496, 0.8288, 0.8614, 0.8946, 0.917, 0.9257, 0.9365, 0.9379),
    "VAE": (0.2547, 0.284, 0.4026, 0.6369, 0.8016, 0.8717, 0.8989, 0.9183, 0.9311),
    "JMVAE": (0.2342, 0.2809, 0.3386, 0.6116, 0.7869, 0.8638, 0.9051, 0.9498, 0.9572),
    "MVAE": (0.2842, 0.6254, 0.8593, 0.8838, 0.9394, 0.9584, 0.9711, 0.9678, 0.9681),
}
"""Table 8."""
FASHION = {
    "NN": (0.6755, 0.701, 0.7654, 0.7944, 0.8102, 0.8439, 0.862, 0.8998, 0.9318),
    "LOGREG": (0.6612, 0.7005, 0.7624, 0.7627, 0.7728, 0.7802, 0.8015, 0.8377, 0.8412),
    "RBM": (0.6708, 0.7214, 0.7628, 0.7690, 0.7805, 0.7943, 0.8021, 0.8088, 0.8115),
    "VAE": (0.5316, 0.6502, 0.7221, 0.7324, 0.7576, 0.7697, 0.7765, 0.7914, 0.8311),
    "JMVAE": (0.5284, 0.5737, 0.6641, 0.6996, 0.7437, 0.7937, 0.8212, 0.8514, 0.8828),
    "MVAE": (0.4548, 0.5189, 0.7619, 0.8619, 0.9201, 0.9243, 0.9239, 0.9478, 0.947),
}
"""Table 9."""
MULTIMNIST = {
    "JMVAE": (0.0603, 0.0603, 0.0888, 0.1531, 0.1699, 0.1772, 0.4765, 0.4962, 0.4955),
    "MVAE": (0.09363, 0.1189, 0.1098, 0.2287, 0.3805, 0.4289, 0.4999, 0.5121, 0.5288),
}
"""Table 10."""


def percent(share: float) -> str:
    """0.002 -> 0.2 %"""
    return f"{100 * share:g} %"


def paper_row(published: Mapping[str, tuple[float, ...]], row: str, level: float) -> float | None:
    """What a paper's row has at a level."""
    return published[row][LEVELS.index(level)] if row in published else None


MAPPED = Image(height=28, width=28, shift=3.0, rotate=25.0, zoom=0.25, shear=0.3)
"""How far pictures are moved about in training (`pipeline/augment.py`)."""
MOVES = {f"modalities.image.{name}": getattr(MAPPED, name) for name in ("shift", "rotate", "zoom", "shear")}
PSEUDO = {
    "pairing.composition": "balanced",
    "pairing.complete_share": 0.3,
    "objective.lambda.label": 50,
    "objective.anneal": 0.0,
    "objective.cross": 1.0,
    "objective.pseudo": 1.0,
    "objective.confidence": 0.97,
    **MOVES,
}
"""What this project has beside the paper, together: chosen by validation accuracy at 0.1 % of pairs (one draw)."""
FALLING = {"optim.decay": 0.5}
PLENTY = PSEUDO | {"pairing.complete_share": 0.9, "objective.lambda.label": 500, **FALLING}
"""The same where pairs abound: chosen by validation accuracy at 10 % of pairs, of shares of 0.3, 0.7 and 0.9, weights
of 50 and 500, and a learning rate that is constant or falls in all or in the second half of training."""


@dataclass(frozen=True)
class Row:
    """A row of such a table: a way to train, or several of which validation data choose one at each level."""

    title: str
    paper: str
    """The paper's row beside it; empty where it has none."""
    settings: Mapping[str, Mapping[str, Any]]
    """Changed keys by the name of the setting."""
    checkpoint: Which = "best"
    least_seeds: int = 1
    """Runs at the two lowest levels, where the luck of the pairs shows most."""


def weak_cells(
    name: str,
    metric: str,
    published: Mapping[str, tuple[float, ...]],
    rows: Sequence[Row],
    paper_epochs: float,
    extent: Extent,
    levels: Sequence[float] = LEVELS,
    best: str = "",
    studies: tuple[Study, ...] = (),
) -> list[Cell]:
    """Every row at every level, of a recipe that is shown pairs for a share of its samples only.

    Checkpoints are chosen by the validation metric `best`, by `metric` itself where none is named.
    """

    def work(row: Row, setting: str, level: float, seed: int) -> Work:
        changes = {"pairing.view": "split", "pairing.fraction": level, "train.best": f"val/{best or metric}"}
        run = lasting(name, extent.epochs(paper_epochs), changes | dict(row.settings[setting]), seed)
        return Trained(run, (metric,), row.checkpoint, studies=studies)

    cells = []
    for row in rows:
        for level in levels:
            if not extent.wants(row.title, percent(level)):
                continue
            seeds = range(max(extent.seeds, row.least_seeds if level in LEVELS[:2] else 1))
            candidates = tuple(tuple(work(row, setting, level, seed) for seed in seeds) for setting in row.settings)
            paper = paper_row(published, row.paper, level)
            cells.append(Cell(row.title, percent(level), metric, paper, candidates, paper_epochs, tuple(row.settings)))
    return cells


LABEL = "accuracy/label_given_image"
VIEW = {"pairing.view": "split"}
AUGMENTED = {"network-augmented": {}, "network-augmented-falling": FALLING}
"""The supervised network with the augmentation of ours, and with its learning rate too: the fair bar."""


def baseline_cells(
    name: str, published: Mapping[str, tuple[float, ...]], paper_epochs: float, extent: Extent
) -> list[Cell]:
    """The paper's baselines (appendix H), each given the pairs of every level: what needs none is trained once."""
    epochs = extent.epochs(paper_epochs)
    cells = []
    augmented = ("NN, augmented as ours", "NN, augmented as ours, falling learning rate")
    titles = {key: one.title for key, one in BASELINES.items()} | dict(zip(AUGMENTED, augmented, strict=True))
    for key, title in titles.items():
        if not extent.wants(title):
            continue
        fit = partial(_scores, key, max(1, round(epochs)))
        runs = [
            tuple(
                lasting(name, epochs, VIEW | {"pairing.fraction": level} | AUGMENTED.get(key, {}), seed)
                for level in LEVELS
            )
            for seed in range(extent.seeds)
        ]
        for place, level in enumerate(LEVELS):
            if extent.wants(column=percent(level)):
                works = tuple(Fitted(key, fit, of_seed, place, epochs) for of_seed in runs)
                paper = paper_row(published, title, level)
                cells.append(Cell(title, percent(level), LABEL, paper, (works,), paper_epochs))
    return cells


def _scores(key: str, epochs: int, runs: Sequence[Run]) -> list[dict[str, Scored]]:
    manifest = check_data(runs[0])
    if key in AUGMENTED:
        found = network(manifest, runs, "label", "image", "test", epochs, _mapped)
    else:
        found = BASELINES[key].scores(manifest, runs, "label", "image", "test", epochs)
    return [{LABEL: score} for score in found]


def _mapped(pictures: Tensor, seed: int) -> Tensor:
    """Grey pictures (B, 28, 28) moved about as ours are."""
    return augmented(pictures, MAPPED, seed, "image", torch.arange(len(pictures), device=pictures.device))


def jmvae_cells(
    name: str,
    published: Mapping[str, tuple[float, ...]],
    paper_epochs: float,
    extent: Extent,
    metric: str = LABEL,
    best: str = LABEL,
    studies: tuple[Study, ...] = (),
) -> list[Cell]:
    """JMVAE, trained on the pairs only."""
    cells = []
    for level in LEVELS:
        if extent.wants("JMVAE", percent(level)):
            changes = VIEW | {"pairing.fraction": level, "train.best": f"val/{best}"}
            runs = (
                jmvae_on_pairs(lasting(name, extent.epochs(paper_epochs), changes, seed))
                for seed in range(extent.seeds)
            )
            works = tuple(Trained(run, (metric,), studies=studies) for run in runs)
            paper = paper_row(published, "JMVAE", level)
            cells.append(Cell("JMVAE", percent(level), metric, paper, (works,), paper_epochs))
    return cells


PRINTED = [
    Row("MVAE, λ 50, as printed", "MVAE", {"": {"objective.lambda.label": 50}}),
    Row("MVAE, λ 50, at the end of training", "MVAE", {"": {"objective.lambda.label": 50}}, "last"),
    Row("MVAE, λ 10", "MVAE", {"": {"objective.lambda.label": 10}}),
    Row("MVAE, λ 1, the paper's earlier version", "MVAE", {"": {"objective.lambda.label": 1}}),
]
FAMILY = [
    Row(
        "MVAE, best of λ, annealing, composition", "MVAE",
        {
            f"balanced, λ {weight}, {'no annealing' if anneal == 0 else 'annealing'}": {
                "pairing.composition": "balanced", "objective.lambda.label": weight, "objective.anneal": anneal,
            }
            for weight in (1, 5) for anneal in (0.0, 0.4)
        },
    ),
]  # fmt: skip
"""The same family: the paper's model and objective, with pairs in a fixed share of every step (SVAE, algorithm 1)."""
OURS = [
    Row("ours: cross term, augmentation, pseudo-labels", "MVAE", {"": PSEUDO}, least_seeds=5),
    Row("ours, for many pairs: λ 500, 90 % complete rows, falling learning rate", "MVAE", {"": PLENTY}),
    Row("ours without pseudo-labels", "", {"": PSEUDO | {"objective.pseudo": 0.0}}),
    Row("ours without augmentation", "", {"": PSEUDO | dict.fromkeys(MOVES, 0.0)}),
    Row("ours without the cross term", "", {"": PSEUDO | {"objective.cross": 0.0}}),
]


COURSE = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of a training after which its validation metrics are looked at."""


def label_weight(extent: Extent) -> list[Cell]:
    """Why λ = 50 ends at chance: whose precision decides the joint posterior, and what a picture alone still tells."""
    metrics = (
        LABEL, "precision.label", "precision.image", "latents/decided.label", "latents/decided.image",
        "latents/active.label", "latents/active.image", "latents/active.all",
    )  # fmt: skip
    cells = []
    for level in (0.01, 1.0):
        for weight in (1, 10, 50):
            row = f"λ {weight}, {percent(level)} of pairs"
            if not extent.wants(row):
                continue
            changes = VIEW | {"pairing.fraction": level, "objective.lambda.label": weight, "train.best": f"val/{LABEL}"}
            asked = tuple(f"val/{metric}@{share:g}" for metric in metrics for share in COURSE)
            works = tuple(
                Watched(lasting("mnist", extent.epochs(500), changes, seed), asked) for seed in range(extent.seeds)
            )
            cells += [
                Cell(row, f"after {percent(share)}", f"val/{metric}@{share:g}", None, (works,), 500)
                for metric in metrics
                for share in COURSE
                if extent.wants(column=f"after {percent(share)}")
            ]
    return cells


def mnist_weak(extent: Extent) -> list[Cell]:
    """Table 8."""
    ours = weak_cells("mnist", LABEL, MNIST, [*PRINTED, *FAMILY, *OURS], 500, extent)
    return ours + baseline_cells("mnist", MNIST, 500, extent) + jmvae_cells("mnist", MNIST, 500, extent)


def fashion_weak(extent: Extent) -> list[Cell]:
    """Table 9."""
    name = "fashion-mnist"
    ours = weak_cells(name, LABEL, FASHION, PRINTED, 100, extent)
    return ours + baseline_cells(name, FASHION, 100, extent) + jmvae_cells(name, FASHION, 100, extent)


def multimnist_weak(extent: Extent) -> list[Cell]:
    """Table 10."""
    rows = [Row("MVAE, λ 1", "MVAE", {"": {}}), Row("MVAE, λ 50", "MVAE", {"": {"objective.lambda.string": 50}})]
    asked: dict[str, Any] = {"metric": "digits/string_given_image", "best": "elbo", "studies": (digit_accuracy,)}
    return [
        *weak_cells("multimnist", published=MULTIMNIST, rows=rows, paper_epochs=100, extent=extent, **asked),
        *jmvae_cells("multimnist", MULTIMNIST, 100, extent, **asked),
    ]


def digits_weak(extent: Extent) -> list[Cell]:
    """No paper's: the same question on the digits that come with scikit-learn, for a machine without data."""
    metric = "accuracy/label_given_top_bottom"
    rows = [Row("MVAE, k = 0", "", {"": {"objective.k": 0}}), Row("MVAE, k = 1", "", {"": {}})]
    return weak_cells("digits", metric, {}, rows, 120, extent, (0.05, 0.2, 1.0))


TABLES = [
    Table(
        "digits-weak",
        "scikit-learn's digits: accuracy of the digit from both halves",
        "no paper's",
        digits_weak,
        supervision,
    ),
    Table("mnist-weak", "MNIST: accuracy of the digit from the image", "MVAE table 8", mnist_weak, supervision),
    Table(
        "label-weight",
        "MNIST, MVAE: accuracy from the image, and whose precision decides, on validation data during training",
        "MVAE section 5.1, λ = 50",
        label_weight,
        partial(curves, across="of the training", up="validation", logarithmic=False),
        "precision.X: share of the joint posterior's precision that X's expert has, mean over dimensions; "
        "latents/decided.X: dimensions of which it has most; latents/active.X: dimensions that X's posterior uses",
    ),
    Table(
        "fashion-weak", "FashionMNIST: accuracy of the class from the image", "MVAE table 9", fashion_weak, supervision
    ),
    Table(
        "multimnist-weak",
        "MultiMNIST: accuracy of each digit from the image",
        "MVAE table 10",
        multimnist_weak,
        supervision,
    ),
]
