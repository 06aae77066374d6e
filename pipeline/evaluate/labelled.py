"""The label by which a model is judged, whether or not it knows it, and some rows of the data to fit a judge on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from modalities import Label
from pipeline.config import Run
from pipeline.description import described
from pipeline.manifest import Manifest
from pipeline.stream import PADDING, Refs


def label_of(run: Run, manifest: Manifest) -> Label | None:
    """The data's label of the name run.examine.label; None where they have none. Raises UserError where the model does
    not know it and nothing beside the shards describes it."""
    name = run.examine.label
    label = run.modalities.get(name)
    if label is None and name in manifest.modalities:
        label = described(manifest).get(name)
    return label if isinstance(label, Label) else None


def spread(manifest: Manifest, split: str, names: Sequence[str], step: int, most: int | None = None) -> Iterator[Refs]:
    """At most so many rows of a split, evenly spread over it (shards may be sorted by class), or all of them.

    In batches of `step` rows; the last one is filled up with PADDING rows.
    """
    rows, columns = manifest.split(split), manifest.column(list(names))
    count = len(rows) if most is None else min(most, len(rows))
    sample = rows.start + np.arange(count) * len(rows) // max(count, 1)
    for start in range(0, count, step):
        part = sample[start : start + step]
        zeros, missing = np.zeros(len(part), np.uint64), step - len(part)
        members = manifest.members(part, columns, zeros, zeros)
        yield Refs(
            np.concatenate([part, np.full(missing, PADDING)]),
            np.concatenate([members, np.full((missing, len(columns)), -1)]),
            np.arange(start, start + step),
        )
