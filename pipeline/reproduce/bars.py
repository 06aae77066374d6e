"""The papers' baselines as rows of a table of weak supervision (MVAE section 5.1, appendix H, tables 8-10)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.baselines import BASELINES, Fitting, jmvae_on_pairs
from pipeline.config import Run
from pipeline.data import check_data
from pipeline.evaluate.run import Study
from pipeline.evaluate.scored import Scored
from pipeline.reproduce.published import LEVELS, paper_row
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, percent
from pipeline.reproduce.work import Fitted, Trained

LABEL = "accuracy/label_given_image"
VIEW = {"pairing.view": "split"}
FALLING = {"optim.decay": 0.5}
"""A learning rate that falls to 0 in the second half of training."""


def baseline_cells(
    name: str,
    published: Mapping[str, tuple[float, ...]],
    moves: Mapping[str, float],
    paper_epochs: float,
    extent: Extent,
) -> list[Cell]:
    """The paper's baselines, each given the pairs of every level: what needs none is trained once for all of them.

    Beside them stands the fair bar of ours: the supervised network with the same augmentation, and with its falling
    learning rate too.
    """
    rows: list[tuple[str, str, dict[str, Any]]] = [(one.title, key, {}) for key, one in BASELINES.items()]
    rows += [
        ("NN, augmented as ours", "network", dict(moves)),
        ("NN, augmented as ours, falling learning rate", "network", {**moves, **FALLING}),
    ]
    cells = []
    for title, key, changes in rows:
        levels = [level for level in LEVELS if extent.wants(title, percent(level))]
        if not levels:
            continue
        baseline, fit = BASELINES[key], partial(_scores, key)
        epochs, of_paper = (extent.epochs(paper_epochs), paper_epochs) if baseline.lasts else (0.0, math.nan)
        works: dict[float, list[Fitted]] = {level: [] for level in levels}
        for seed in range(extent.seeds):
            runs = [lasting(name, epochs or 1, VIEW | changes | {"pairing.fraction": level}, seed) for level in LEVELS]
            for level in levels:
                place = LEVELS.index(level)
                together = (tuple(runs), place) if baseline.shared else ((runs[place],), 0)
                works[level].append(Fitted(key, fit, *together, epochs))
        cells += [
            Cell(title, percent(level), LABEL, paper_row(published, title, level), (tuple(of_level),), of_paper)
            for level, of_level in works.items()
        ]
    return cells


def _scores(key: str, runs: Sequence[Run], fitting: Fitting) -> list[dict[str, Scored]]:
    found = BASELINES[key].scores(check_data(runs[0]), runs, "label", "image", "test", fitting)
    return [{LABEL: score} for score in found]


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
