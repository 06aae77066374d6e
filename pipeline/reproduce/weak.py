"""Weak supervision: a label or a string from a picture, learnt from few pairs (MVAE section 5.1, tables 8-10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.evaluate.run import Study, Which
from pipeline.evaluate.texts import digit_accuracy
from pipeline.reproduce.bars import FALLING, LABEL, VIEW, baseline_cells, jmvae_cells
from pipeline.reproduce.plots import curves, supervision
from pipeline.reproduce.published import FASHION, LEVELS, MNIST, MULTIMNIST, paper_row
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Table, percent
from pipeline.reproduce.work import Trained, Watched, Work


def moves(**far: float) -> dict[str, float]:
    """How far pictures are moved about in training, by an `Image`'s own names (`pipeline/augment.py`)."""
    return {f"modalities.image.{name}": value for name, value in far.items()}


DIGIT_MOVES = moves(shift=3.0, rotate=25.0, zoom=0.25, shear=0.3)
CLOTHES_MOVES = moves(shift=2.0, rotate=10.0, zoom=0.1, shear=0.1)
"""How far ours moves training pictures: clothes less than digits, for they all lie straight and fill their pictures."""
PSEUDO: dict[str, Any] = {
    "pairing.composition": "balanced",
    "pairing.complete_share": 0.3,
    "objective.lambda.label": 50,
    "objective.anneal": 0.0,
    "objective.cross": 1.0,
    "objective.pseudo": 1.0,
    "objective.confidence": 0.97,
}
"""What this project has beside the paper, but for the moves of pictures: chosen, with `DIGIT_MOVES`, by MNIST's
validation accuracy at 0.1 % of pairs (one draw)."""
PLENTY = PSEUDO | {"pairing.complete_share": 0.9, "objective.lambda.label": 500, **FALLING}
"""The same where pairs abound: chosen by MNIST's validation accuracy at 10 % of pairs, of shares of 0.3, 0.7 and 0.9,
weights of 50 and 500, and a learning rate that is constant or falls in all or in the second half of training."""


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
IN_EVERY_STEP = {"pairing.composition": "balanced", "objective.lambda.label": 1, "objective.anneal": 0.4}
"""Of the same family, what MNIST's validation data chose at every level."""


def ours(moved: dict[str, float]) -> list[Row]:
    """What this project has beside the paper, with pictures moved about so far, and without each part of it."""
    whole = PSEUDO | moved
    return [
        Row("ours: cross term, augmentation, pseudo-labels", "MVAE", {"": whole}, least_seeds=5),
        Row("ours, for many pairs: λ 500, 90 % complete rows, falling learning rate", "MVAE", {"": PLENTY | moved}),
        Row("ours without pseudo-labels", "", {"": whole | {"objective.pseudo": 0.0}}),
        Row("ours without augmentation", "", {"": PSEUDO}),
        Row("ours without the cross term", "", {"": whole | {"objective.cross": 0.0}}),
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
    rows = [*PRINTED, *FAMILY, *ours(DIGIT_MOVES)]
    return [
        *weak_cells("mnist", LABEL, MNIST, rows, 500, extent),
        *baseline_cells("mnist", MNIST, DIGIT_MOVES, 500, extent),
        *jmvae_cells("mnist", MNIST, 500, extent),
    ]


def fashion_weak(extent: Extent) -> list[Cell]:
    """Table 9. What is ours is as MNIST's validation data chose it; only pictures are moved about less."""
    name = "fashion-mnist"
    rows = [*PRINTED, Row("MVAE, pairs in every step, as chosen on MNIST", "MVAE", {"": IN_EVERY_STEP})]
    return [
        *weak_cells(name, LABEL, FASHION, [*rows, *ours(CLOTHES_MOVES)], 100, extent),
        *baseline_cells(name, FASHION, CLOTHES_MOVES, 100, extent),
        *jmvae_cells(name, FASHION, 100, extent),
    ]


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
