"""What a model has to beat, on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import Pairing, Run
from pipeline.manifest import Manifest
from pipeline.pairing import view
from pipeline.stream import Collator, Refs


def read(manifest: Manifest, run: Run, samples: np.ndarray) -> dict[str, np.ndarray]:
    """The values of these samples, all of which have all of the run's modalities."""
    members = manifest.members(samples, manifest.column(list(run.modalities)), np.zeros(len(samples), np.uint64))
    batch = Collator(manifest, run.modalities, budget=run.train.damage)(Refs(samples, members, np.arange(len(samples))))
    return {name: value.numpy() for name, value in batch.values.items()}


def complete_samples(manifest: Manifest, run: Run, split: str, pairing: Pairing | None = None) -> np.ndarray:
    """Samples of a split that have every modality; with `pairing` only those that its view shows whole."""
    if pairing and pairing.view != "declared":
        pools = view(manifest, split, list(run.modalities), pairing, run.seed, 1).pools
        samples = next((pool.samples for pool in pools if pool.name == "complete"), np.empty(0, np.int64))
    else:
        samples = np.arange(manifest.split(split).start, manifest.split(split).stop)
    everything = sum(1 << column for column in manifest.column(list(run.modalities)))
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
