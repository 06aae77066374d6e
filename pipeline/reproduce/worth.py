"""What completed data are worth: a classifier trained on them, beside one that is given the pairs alone. No paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from infra import distributed
from pipeline import config
from pipeline.baselines.fitting import Fitting, Show
from pipeline.baselines.supervised import network
from pipeline.config import Run, override
from pipeline.data import check_data
from pipeline.evaluate.attributes import attribute_accuracy
from pipeline.evaluate.classification import metric_name
from pipeline.evaluate.run import Study, checkpoint_of
from pipeline.evaluate.scored import Scored
from pipeline.imputing.job import prepared
from pipeline.imputing.run import impute
from pipeline.imputing.settings import Settings
from pipeline.manifest import open_manifest
from pipeline.reproduce.bars import LABEL
from pipeline.reproduce.plots import beside
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Table, percent
from pipeline.reproduce.weak import DIGIT_MOVES, PSEUDO
from pipeline.reproduce.work import FIT, Fitted, Result, Trained, Work
from pipeline.settings import Pairing, Precision

GIVEN = "image"
LEVEL = 0.01
"""Share of the training samples that are pairs."""
SEEDS = 3
FACES = {
    "pairing.composition": "balanced", "pairing.complete_share": 0.9, "objective.anneal": 0.0, "objective.cross": 1.0,
    "objective.lambda.attributes": 2000.0,
}  # fmt: skip
"""Chosen on validation data of the excerpt, seed 0: 0.840 of the attributes are right. With a share of 0.3 it is 0.830
and 0.835 (λ = 500 and 2,000), with λ = 50 and a share of 0.9 it is 0.824. By `pairstream train celeba --pairing.view
split --pairing.fraction 0.01`, these settings as options, `--steps 360 --engine.precision bf16
--train.validate-every 36 --train.checkpoint-every 36`, and `pairstream evaluate RUN --split val`."""


@dataclass(frozen=True)
class Completed(Work):
    """A model, the data that it completes, and a supervised network trained on these."""

    trained: Trained
    label: str
    epochs: float
    """Of the network: as many steps as that of the pairs takes."""

    @property
    def run(self) -> Run:
        return self.trained.run

    @property
    def key(self) -> str:
        told = f"{config.identity(self.run)} {self.label} {self.epochs}"
        return f"{self.run.recipe}-completed-{xxhash.xxh3_64_hexdigest(told.encode())}"

    def in_precision(self, precision: Precision) -> Completed:
        return replace(self, trained=self.trained.in_precision(precision))

    def share(self, root: Path) -> float:
        return 1.0 if self.done(root) else 0.9 * self.trained.share(root)

    def done(self, root: Path) -> Result | None:
        return self._kept(root / self.key, 0, self.epochs)

    def _do(self, root: Path, show: Show) -> None:
        if self.trained.share(root) < 1:  # MLflow may have its numbers, which are no model
            self.trained.do(root, show)
        directory, run = self.trained.directory(root), self.run
        world = distributed.start(run.engine.device, run.engine.threads)
        settings = Settings(only=(run.modalities[self.label].member(self.label),), pairing=run.pairing)
        data = root / self.key / "data"
        impute(prepared(run, directory, checkpoint_of(directory, "best"), run.data, settings), data, world)
        completed = on_completed(run, data)
        manifest = open_manifest(data)
        # rows that show one modality each are two for a sample: fewer epochs of more rows
        epochs = self.epochs * len(open_manifest(run.data).split("train")) / len(manifest.split("train"))
        fitting = self._fitting(root, epochs, manifest.fingerprint, show)
        found = network(manifest, [completed], self.label, GIVEN, "test", fitting)
        scores = [{metric_name(self.label, (GIVEN,)): score} for score in found]
        self._keep(root / self.key, scores, root / self.key / FIT, data)


def on_completed(run: Run, data: Path) -> Run:
    """What the network is trained by: all completed rows, pictures as they are, as the networks beside it see them."""
    still = {f"modalities.{GIVEN}.{name}": 0.0 for name in ("shift", "rotate", "zoom", "shear")}
    return override(replace(run, data=str(data), pairing=Pairing()), still)


def worth(extent: Extent) -> list[Cell]:
    """On MNIST the digit, on CelebA 18 attributes, at 1 % of pairs; all labels is the most that there is to gain."""
    return [
        *_cells("MNIST", "mnist", "label", 500, PSEUDO | DIGIT_MOVES | {"train.best": f"val/{LABEL}"}, (), extent),
        *_cells("CelebA", "celeba", "attributes", 100, FACES, (attribute_accuracy,), extent),
    ]


def _cells(
    title: str,
    name: str,
    label: str,
    paper_epochs: float,
    settings: Mapping[str, Any],
    studies: tuple[Study, ...],
    extent: Extent,
) -> list[Cell]:
    metric, epochs = metric_name(label, (GIVEN,)), extent.epochs(paper_epochs)
    column, seeds = f"{title}, {percent(LEVEL)}", range(max(SEEDS, extent.seeds))
    cells = []

    def cell(row: str, *works: Work) -> None:
        if extent.wants(row, column):
            cells.append(Cell(row, column, metric, None, (works,), paper_epochs))

    def pairs(level: float, seed: int) -> Work:
        run = lasting(name, epochs, {"pairing.view": "split", "pairing.fraction": level}, seed)
        return Fitted("network", partial(_network, label), (run,), 0, epochs)

    def model(seed: int) -> Trained:
        changes = {"pairing.view": "split", "pairing.fraction": LEVEL, **settings}
        return Trained(lasting(name, epochs, changes, seed), (metric,), studies=studies)

    if extent.wants(column=column):
        cell("network on the pairs alone", *(pairs(LEVEL, seed) for seed in seeds))
        cell("network on the completed data", *(Completed(model(seed), label, epochs) for seed in seeds))
        cell("the model itself", *(model(seed) for seed in seeds))
        cell("network on all true labels", *(pairs(1.0, seed) for seed in seeds))
    return cells


def _network(label: str, runs: Sequence[Run], fitting: Fitting) -> list[dict[str, Scored]]:
    manifest, metric = check_data(runs[0]), metric_name(label, (GIVEN,))
    return [{metric: score} for score in network(manifest, runs, label, GIVEN, "test", fitting)]


TABLES = [
    Table("worth", "Accuracy from the image of a network trained on completed data", "no paper's", worth, beside),
]
