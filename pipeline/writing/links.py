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
    row_of, kinds = {key: row for row, key in enumerate(keys)}, list(corpus.modalities)
    owners, sources = [np.repeat(np.arange(len(keys)), np.diff(first))], [np.arange(first[-1])]
    for entry in entries:
        if not entry.links or entry.key not in row_of:  # the sample was left out
            continue
        for name, targets in entry.links.items():
            kind = kinds.index(name)
            for target in targets:
                row = row_of.get(target)
                held = np.arange(first[row], first[row + 1]) if row is not None else np.empty(0, np.int64)
                held = held[members["modality"][held] == kind]
                if not len(held):
                    raise UserError(
                        f"corpus {corpus.name}: {entry.key} shows {name} of {target}, which holds no such member"
                    )
                owners.append(np.full(len(held), row_of[entry.key]))
                sources.append(held)
    owner, source = np.concatenate(owners), np.concatenate(sources)
    order = np.lexsort((np.arange(len(source)), members["modality"][source], owner))
    counts = np.bincount(owner, minlength=len(keys))
    return np.concatenate([[0], np.cumsum(counts)]), {name: column[source[order]] for name, column in members.items()}
