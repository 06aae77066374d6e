"""Runs on the digits whose baselines are asked for, and damage to what they must not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.baselines import BASELINES, Fitting, pairs
from pipeline.config import Run, override
from pipeline.data import check_data
from pipeline.evaluate.scored import Scored
from pipeline.manifest import Manifest
from pipeline.recipes import recipe
from pipeline.shards import BLOCK

EPOCHS = {"network": 40, "logistic-regression": 1, "autoencoder": 15, "vae": 25, "rbm": 200}


def a_run(data: str | Path, fraction: float = 1.0, **changes: Any) -> Run:
    base = {
        "data": str(data),
        "engine.device": "cpu",
        "engine.threads": 1,
        "objective.anneal": 0.4,
        "objective.beta": 0.3,
    }
    return override(recipe("digits"), {**base, "pairing.fraction": fraction, **changes})


def scores(name: str, runs: list[Run], split: str = "test", epochs: int = 0) -> list[Scored]:
    """Of the label from the bottom halves."""
    return BASELINES[name].scores(check_data(runs[0]), runs, "label", "bottom", split, Fitting(epochs or EPOCHS[name]))


def asked(run: Run) -> pairs.Question:
    return pairs.question(check_data(run), [run], "label", "bottom")


def flip(manifest: Manifest, samples: np.ndarray, modality: str) -> None:
    """Damage what these samples have of a modality: to read it is an error."""
    zeros = np.zeros(len(samples), np.uint64)
    for member in manifest.members(samples, manifest.column([modality]), zeros, zeros)[:, 0].tolist():
        path = Path(manifest.directory) / manifest.shards[int(manifest.shard[member])].name
        with path.open("r+b") as file:
            file.seek(int(manifest.block[member]) * BLOCK)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
