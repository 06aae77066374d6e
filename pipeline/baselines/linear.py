"""Logistic regression: on raw values, or on codes that something else made of them (MVAE section 5.1 (2) to (5))."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.baselines.pairs import complete_samples, read, too_few
from pipeline.config import Run
from pipeline.evaluate.scored import Scored, mean_of
from pipeline.manifest import Manifest


def regression(inputs: np.ndarray, labels: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> Scored:
    """Accuracy on `asked` (R, H) with labels `truth` (R,) of scikit-learn's logistic regression of the others.

    Its penalty is scikit-learn's own (C = 1): the paper says nothing of it.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=2000).fit(inputs, labels)
    return mean_of(model.predict(asked) == truth)


def flat(values: np.ndarray) -> np.ndarray:
    """(R, …) -> (R, H)."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def logistic_regression(manifest: Manifest, run: Run, label: str, given: Sequence[str], split: str = "test") -> float:
    """Accuracy on a split of logistic regression on raw values, fitted on the very pairs that the run is shown.

    NaN where the pairs hold fewer than two classes.
    """
    names = [*given, label]
    pairs = read(manifest, run, complete_samples(manifest, run, "train", run.pairing, names), names)
    asked = read(manifest, run, complete_samples(manifest, run, split, names=names), names)
    if too_few(pairs[label]):
        return math.nan
    inputs = [np.concatenate([flat(values[name]) for name in given], 1) for values in (pairs, asked)]
    return regression(inputs[0], pairs[label], inputs[1], asked[label]).value
