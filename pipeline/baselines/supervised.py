"""NN: a supervised network of the run's own architectures, the stochastic layer removed (MVAE section 5.1 (1)).

"NN uses the image encoder and label/string decoder as in MVAE, thereby being a fair comparison" (appendix H). Its epoch
is chosen by accuracy on validation data, as the checkpoint of a run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modalities import Attributes, Label
from pipeline.augment import augmented
from pipeline.baselines.fitting import Fitting, build, fit, in_parts
from pipeline.baselines.pairs import UNKNOWN, Question, question, too_few
from pipeline.config import Run
from pipeline.evaluate.scored import Scored, mean_of
from pipeline.manifest import Manifest
from pipeline.order import seed_of


def network(
    manifest: Manifest,
    runs: Sequence[Run],
    label: str,
    given: str,
    split: str,
    fitting: Fitting,
) -> list[Scored]:
    """Accuracy on a split of one network a run, trained on its pairs; see `Baseline.scores`.

    Of attributes it is the mean of theirs.

    An epoch is as many rows as the training split has, however few pairs there are: a network of 50 pairs takes as many
    steps as a run does that is shown as many rows.

    Where the runs move training pictures about (`Image.shift` and others), so does it, anew in every step.
    """
    asked = question(manifest, runs, label, given, (Label, Attributes))
    parts = {part: asked.rows(part) for part in ("val", split)}
    rows = fitting.epochs * len(manifest.split("train"))
    return [_accuracy(asked, run, parts, split, fitting, rows) for run in runs]


def _accuracy(
    asked: Question,
    run: Run,
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    split: str,
    fitting: Fitting,
    rows: int,
) -> Scored:
    pairs = asked.pairs(run.pairing)
    if too_few(pairs[1]):
        return UNKNOWN
    net = build(run, asked.picture, asked.classes, "NN")
    device = next(net.parameters()).device
    pictures, labels = (torch.from_numpy(values).to(device) for values in pairs)

    def loss(chosen: Tensor, step: int) -> Tensor:
        seen = pictures[chosen]
        if asked.picture.augmented:
            seed, rows_B = seed_of(run.seed, "augment", step) % 2**63, torch.arange(len(seen), device=device)
            seen = augmented(seen, asked.picture, seed, asked.given, rows_B)
        return -asked.classes.log_likelihood(net(seen)[0], labels[chosen]).mean()

    def right(part: str) -> np.ndarray:
        seen, truth = parts[part]
        told = in_parts(lambda some: asked.classes.mean(net(some)[0]), torch.from_numpy(seen).to(device)).cpu().numpy()
        said = told > 0.5 if isinstance(asked.classes, Attributes) else told
        share: np.ndarray = (said == truth).reshape(len(truth), -1).mean(1)
        return share

    title = f"NN on {len(labels):,} pairs"
    lasting = replace(fitting, epochs=max(1, round(rows / len(labels))))
    fit(net, loss, len(labels), run, lasting, title, lambda: float(right("val").mean()))
    return mean_of(right(split))
