"""Pictures of a run: curves from its journal, and what the model makes of what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from infra.checkpoint import Checkpoints
from infra.distributed import World
from pipeline.config import Run
from pipeline.evaluate.latents import per_dimension
from pipeline.evaluate.run import checkpoint_of
from pipeline.evaluate.subject import Subject
from pipeline.manifest import Manifest
from pipeline.pictures import conditional, curves, generations, prior, texts, transformations, traversals
from pipeline.pictures.page import Page
from pipeline.train import build, load_weights

ALONE = World(0, 1, 0, torch.device("cpu"))
"""Pictures are drawn by one process, without the others of its group."""
SHEETS: dict[str, Callable[[Subject], Page | None]] = {
    "cross_generations.png": generations.cross_generations,
    "cross_samples.png": generations.cross_samples,
    "prior.png": prior.sheet,
    "conditional.png": conditional.sheet,
    "transformations.png": transformations.sheet,
}
"""By the names of their files; None where a run's modalities or system do not allow for it."""
TEXTS: dict[str, Callable[[Subject], list[str]]] = {
    "translations.md": texts.translations,
    "captions.md": texts.captions,
}


def illustrate(run: Run, directory: Path, manifest: Manifest) -> list[Path]:
    """Draw a run's curves, and its best checkpoint's album on validation data; returns the files. For one process."""
    if Checkpoints(directory / "checkpoints").best() is None:
        return []
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    return [curves.draw(directory, folder / "curves.png"), *album(run, directory, manifest)]


def album(
    run: Run,
    directory: Path,
    manifest: Manifest,
    split: str = "val",
    divergences: Mapping[str, np.ndarray] | None = None,
) -> list[Path]:
    """Draw every sheet that applies to a run, of its best checkpoint; returns the files. For one process.

    They lie in pictures/, those of another split than val in pictures/SPLIT/. Latent dimensions are traversed where
    their `divergences` are given (`traversals.sheet`). Raises UserError where there is no checkpoint or no such split.
    """
    subject = _subject(run, directory, manifest, split)
    pages = {name: sheet(subject) for name, sheet in SHEETS.items()}
    if divergences:  # none, where no modality has a posterior by itself
        pages["traversals.png"] = traversals.sheet(subject, divergences)
    folder, files = directory / "pictures" / ("" if split == "val" else split), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        if page:
            page.save(folder / name)
            files.append(folder / name)
    for name, text in TEXTS.items():
        if lines := text(subject):
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            files.append(folder / name)
    return files


def divergences(run: Run, directory: Path, manifest: Manifest, split: str = "val") -> dict[str, np.ndarray]:
    """What latent dimensions carry, as `album` takes it: of each modality, and between two. For one process."""
    found = per_dimension(_subject(run, directory, manifest, split))
    kinds = {name: name.partition("/")[0] for name in found}
    return {
        name.partition("/")[2]: values
        for name, values in found.items()
        if kinds[name] in ("kl", "symmetric_kl") and name != "kl/all"
    }


def _subject(run: Run, directory: Path, manifest: Manifest, split: str) -> Subject:
    """A run's best checkpoint on a split, on the CPU of this process alone."""
    model = build(run)
    load_weights(model, checkpoint_of(directory))
    return Subject(model.eval(), run, manifest.reading(run.modalities), split, ALONE)
