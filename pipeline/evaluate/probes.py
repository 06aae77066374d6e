"""Linear probes: how much of the class a linear classifier finds in the latent means (MMVAE section 4.2, table 1).

Of each modality by itself, and of all together. The label is never part of what is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from modalities import Label
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.evaluate.labelled import label_of, spread
from pipeline.evaluate.latents import posteriors
from pipeline.evaluate.scored import Scored, mean_of
from pipeline.evaluate.subject import Subject, filled
from pipeline.stream import rows_for_rank

MOST = 10_000
"""Training rows that a probe is fitted on, spread evenly over all of them."""


def probes(subject: Subject) -> dict[str, Scored]:
    """Accuracies `probe/LABEL_given_NAME` on the split, of rows that have the label and what is given. Collective.

    `subject.few` limits the rows that are scored, not the training rows that a probe is fitted on. NaN where fewer than
    two classes are among the training rows that have both. Nothing where the data have no label run.examine.label, or
    the system has no posterior without it.
    """
    run, world = subject.run, subject.world
    label = label_of(run, subject.manifest)
    if label is None:
        return {}
    asked = posteriors(run, without=run.examine.label)
    if not asked:
        return {}
    fitted = _means(subject, "train", label, asked, MOST)
    scored = _means(subject, subject.split, label, asked, subject.few or None)
    right = {title: _right(fitted, scored, title) for title in asked} if world.is_main else None
    told: dict[str, np.ndarray] = world.gather(right)[0]  # type: ignore[assignment]
    return {f"probe/{run.examine.label}_given_{title}": mean_of(rows) for title, rows in told.items()}


def _right(fitted: Mapping[str, np.ndarray], scored: Mapping[str, np.ndarray], title: str) -> np.ndarray:
    """Whether a row of the second is classified rightly after a fit on the first; NaN where it cannot be."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, asked = (np.flatnonzero(np.isfinite(data[title]).all(1) & (data["truth"] >= 0)) for data in (fitted, scored))
    right = np.full(len(scored["truth"]), np.nan)
    classes = fitted["truth"][known]
    if len(np.unique(classes)) > 1 and len(asked):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(fitted[title][known], classes)
        right[asked] = probe.predict(scored[title][asked]) == scored["truth"][asked]
    return right


@torch.no_grad()
def _means(
    subject: Subject, split: str, label: Label, asked: Mapping[str, tuple[str, ...]], most: int | None = None
) -> dict[str, np.ndarray]:
    """Posterior means (N, Z) by title, NaN where a row lacks what is given, and classes (N,) as `truth`, -1 for none.

    Of at most so many rows of a split, on every rank.
    """
    run, world = subject.run, subject.world
    names = list(run.modalities)
    kinds = run.modalities | {run.examine.label: label}
    collate = Collator([subject.manifest], kinds, budget=run.train.damage)
    step = -(-run.train.batch // world.size) * world.size
    parts: list[dict[str, np.ndarray]] = []
    for refs in spread(subject.manifest, split, list(kinds), step, most):
        rows = collate(rows_for_rank(refs, world.rank, world.size)).to(world.device)
        batch = _known(rows, names)
        told = {"number": rows.row_B.cpu().numpy(), "truth": filled(rows, run.examine.label, -1)}
        for title, given in asked.items():
            there = np.asarray(batch.present_BM[:, [names.index(name) for name in given]].all(1))
            mean = subject.model.posterior(batch.only(frozenset(given))).mu.float().cpu().numpy()
            told[title] = np.where(there[:, None], mean, np.nan)
        parts.append(told)
    gathered: list[list[dict[str, np.ndarray]]] = world.gather(parts)  # type: ignore[assignment]
    every = [part for rank in gathered for part in rank]
    order = np.argsort(np.concatenate([part["number"] for part in every]))
    return {name: np.concatenate([part[name] for part in every])[order] for name in every[0]}


def _known(batch: Batch, names: list[str]) -> Batch:
    """The same rows with what the model knows only; a label that it does not know stands last."""
    return replace(
        batch,
        values={name: batch.values[name] for name in names},
        rows_of={name: batch.rows_of[name] for name in names},
        present_BM=batch.present_BM[:, : len(names)],
    )
