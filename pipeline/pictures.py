"""Pictures of a run: curves from its journal, and what the model makes of what it is given."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.checkpoint import Checkpoints
from infra.journal import points
from modalities import Image, Label
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.manifest import Manifest
from pipeline.model import MultimodalVAE
from pipeline.posteriors import generates
from pipeline.stream import in_order
from pipeline.train import build, load_weights

COLUMNS = 12


def illustrate(run: Run, directory: Path, manifest: Manifest) -> list[Path]:
    """Draw pictures/ of a run's best checkpoint on validation data; returns the files. For one process."""
    import matplotlib

    matplotlib.use("Agg")
    best = Checkpoints(directory / "checkpoints").best()
    if best is None:
        return []
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    drawn = [curves(directory, folder / "curves.png")]
    model = build(run)
    load_weights(model, best)
    if any(isinstance(modality, Image) for modality in run.modalities.values()):
        drawn.append(cross_generations(model.eval(), run, manifest, folder / "cross_generations.png"))
    return drawn


def curves(directory: Path, file: Path) -> Path:
    """One panel per quantity, training and validation together, over steps."""
    from matplotlib import pyplot as plt

    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, values in points(directory):
        for name, value in values.items():
            kind, _, quantity = name.partition("/")
            if kind in ("train", "val"):
                panel = "accuracy" if quantity.startswith("accuracy/") else quantity
                label = quantity.removeprefix("accuracy/") if panel == "accuracy" else kind
                series.setdefault(panel, {}).setdefault(label, []).append((step, value))
    across = 3
    figure, axes = plt.subplots(-(-len(series) // across), across, figsize=(12, 2.6 * -(-len(series) // across)))
    for axis in np.ravel(axes):
        axis.set_visible(False)
    for axis, (panel, lines) in zip(np.ravel(axes), sorted(series.items()), strict=False):
        axis.set_visible(True)
        for label, line in lines.items():
            axis.plot(*zip(*line, strict=True), label=label, marker="." if len(line) < 20 else None, linewidth=1)
        nats = panel not in ("accuracy", "beta") and not panel.startswith("tokens.")
        axis.set_title(panel + (" (nats)" if nats else ""), fontsize=9)
        axis.legend(fontsize=7)
        axis.tick_params(labelsize=7)
    note = "training rows may lack modalities, so their ELBO and KL are of what is there"
    figure.suptitle(f"{directory.name}: means over rows, by step ({note})", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


@torch.no_grad()
def cross_generations(model: MultimodalVAE, run: Run, manifest: Manifest, file: Path) -> Path:
    """A row of the data, then a row per subset of modalities: everything decoded from that subset alone.

    Images above each other as they are listed, labels as text below; a label that differs from the data's is red. What
    a system does not generate from a subset shows the data where it is given, and is blank where it is not.
    """
    from matplotlib import pyplot as plt

    names = list(run.modalities)
    refs = next(in_order(manifest, "val", names, min(COLUMNS, len(manifest.split("val")))))
    batch = Collator([manifest], run.modalities, budget=run.train.damage)(refs)
    sizes = [*range(1, len(names) + 1)] if len(names) <= 3 else [1, len(names)]
    subsets = [subset for size in sizes for subset in combinations(names, size)]
    whole = _whole(batch, run)
    given = {subset: "given " + ("all" if len(subset) > 3 else "+".join(subset)) for subset in subsets}
    drawn = [(given[subset], _decoded(model, run, batch, subset, whole)) for subset in subsets]
    rows = [("data", whole), *((title, made) for title, made in drawn if made)]
    figure, axes = plt.subplots(len(rows), len(batch), figsize=(len(batch) * 0.8, len(rows) * 1.05), squeeze=False)
    for line, (title, values) in zip(axes, rows, strict=True):
        for column, axis in enumerate(line):
            _cell(axis, run, {name: value[column] for name, value in values.items()}, rows[0][1], column)
        line[0].set_ylabel(title, fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle("validation data, and everything decoded from a subset of it", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _decoded(
    model: MultimodalVAE, run: Run, batch: Batch, subset: tuple[str, ...], whole: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What is made of a subset of the modalities; nothing where the system generates nothing from it."""
    shown, names = batch.only(frozenset(subset)), list(run.modalities)
    made = [n for n in whole if generates(model.family, names, n, frozenset(subset))]
    if not made:
        return {}
    z = model.posterior(shown).mu
    blank = {n: whole[n] if n in subset else np.full_like(whole[n], _blank(run.modalities[n])) for n in whole}
    return blank | {n: run.modalities[n].mean(model.decode(n, z, shown)).numpy() for n in made}


def _blank(modality: object) -> int:
    return -1 if isinstance(modality, Label) else 0


def _drawable(modality: object) -> bool:
    return isinstance(modality, Image | Label)


def _whole(batch: Batch, run: Run) -> dict[str, np.ndarray]:
    """The data of all rows; zeros (images) or -1 (labels) where a row has none."""
    whole = {}
    for name, modality in run.modalities.items():
        if _drawable(modality):
            whole[name] = np.full((len(batch), *modality.shape), _blank(modality), modality.dtype)
            whole[name][batch.rows_of[name]] = batch.values[name][: len(batch.rows_of[name])].numpy()
    return whole


def _coloured(image: np.ndarray) -> np.ndarray:
    """(Y, X, 3) in [0, 1] from a grey (Y, X) or a coloured (3, Y, X) image."""
    return np.stack([image] * 3, axis=2) if image.ndim == 2 else np.moveaxis(image, 0, 2)


def _cell(axis: Any, run: Run, values: dict[str, np.ndarray], data: dict[str, np.ndarray], column: int) -> None:
    images = [_coloured(values[name]) for name, modality in run.modalities.items() if isinstance(modality, Image)]
    width = max(image.shape[1] for image in images)
    stacked = np.concatenate([np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0))) for image in images])
    axis.imshow(stacked)
    axis.set_xticks([])
    axis.set_yticks([])
    labels = [name for name, modality in run.modalities.items() if isinstance(modality, Label)]
    if labels:
        right = all(values[name] == data[name][column] for name in labels)
        text = " ".join(str(int(values[name])) if values[name] >= 0 else "" for name in labels)
        axis.set_xlabel(text, fontsize=8, color="black" if right else "red", labelpad=1)
