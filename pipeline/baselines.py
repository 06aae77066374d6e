"""What a model has to beat, on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.manifest import Manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.stream import Refs


def read(manifest: Manifest, run: Run, samples: np.ndarray) -> dict[str, np.ndarray]:
    """The values of these samples, all of which have all of the run's modalities."""
    zeros = np.zeros(len(samples), np.uint64)
    members = manifest.members(samples, manifest.column(list(run.modalities)), zeros, zeros)
    collate = Collator([manifest], run.modalities, budget=run.train.damage)
    batch = collate(Refs(samples, members, np.arange(len(samples))))
    return {name: value.numpy() for name, value in batch.values.items()}


def complete_samples(manifest: Manifest, run: Run, split: str, pairing: Pairing | None = None) -> np.ndarray:
    """Samples of a split that have every modality; with `pairing` only those that its view shows whole."""
    rows = manifest.split(split)
    samples = np.arange(rows.start, rows.stop)
    if pairing:
        pools = view(manifest, split, list(run.modalities), pairing, run.seed, 1).pools
        whole = [pool.samples[np.arange(len(pool))] for pool in pools if pool.shown.all()]
        samples = np.concatenate(whole) if whole else samples[:0]
        for pool in pools:
            if pool.kept:
                samples = samples[pool.kept(samples).all(1)]
    everything = sum(1 << column for column in set(manifest.column(list(run.modalities))))
    bits = manifest.patterns(range(len(manifest)))[samples]
    chosen: np.ndarray = samples[(bits & np.uint64(everything)) == np.uint64(everything)]
    return chosen


def logistic_regression(manifest: Manifest, run: Run, label: str, given: Sequence[str], split: str = "test") -> float:
    """Accuracy on a split of scikit-learn's logistic regression, fitted on the very pairs that the run is shown.

    NaN where the pairs hold fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    train = read(manifest, run, complete_samples(manifest, run, "train", run.pairing))
    test = read(manifest, run, complete_samples(manifest, run, split))
    if len(np.unique(train[label])) < 2:
        return float("nan")
    inputs = [np.concatenate([data[n].reshape(len(data[n]), -1) for n in given], 1) for data in (train, test)]
    model = LogisticRegression(max_iter=2000).fit(inputs[0], train[label])
    return float(model.score(inputs[1], test[label]))
