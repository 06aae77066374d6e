"""Members that several samples show and that are stored once: rows of the manifest, not copies of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from infra.errors import UserError

if TYPE_CHECKING:
    from pipeline.corpora.corpus import Corpus, Entry


def linked(
    corpus: Corpus, entries: Sequence[Entry], keys: list[str], first: np.ndarray, members: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`first` and the member columns, with what the entries link to as further members of their samples.

    Those of a modality lie in the order of the links, behind the sample's own. Raises UserError for a link to a sample
    that does not hold the modality.
    """
    row_of = {key: row for row, key in enumerate(keys)}
    owners, sources = [np.repeat(np.arange(len(keys)), np.diff(first))], [np.arange(first[-1])]
    for kind, name in enumerate(corpus.modalities):
        # Of samples that were left out there is no row.
        links = [
            (row_of[entry.key], row_of.get(target, -1), target)
            for entry in entries
            if entry.links and entry.key in row_of
            for target in entry.links.get(name, ())
        ]
        if not links:
            continue
        owner, target = (np.array(column) for column in list(zip(*links, strict=True))[:2])
        mine = np.flatnonzero(members["modality"] == kind)  # those of a sample lie side by side
        count = np.bincount(np.searchsorted(first, mine, side="right") - 1, minlength=len(keys))
        begin, held = np.cumsum(count) - count, np.where(target >= 0, count[target], 0)
        if not held.all():
            row, _, lost = links[int((held == 0).argmax())]
            raise UserError(f"corpus {corpus.name}: {keys[row]} shows {name} of {lost}, which holds no such member")
        within = np.arange(held.sum()) - np.repeat(np.cumsum(held) - held, held)
        owners.append(np.repeat(owner, held))
        sources.append(mine[np.repeat(begin[target], held) + within])
    owner, source = np.concatenate(owners), np.concatenate(sources)
    order = np.lexsort((np.arange(len(source)), members["modality"][source], owner))
    counts = np.bincount(owner, minlength=len(keys))
    return np.concatenate([[0], np.cumsum(counts)]), {name: column[source[order]] for name, column in members.items()}
