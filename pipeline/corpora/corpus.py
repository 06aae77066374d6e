"""What a data set is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from modalities import Modality

Values = Mapping[str, np.ndarray | list[np.ndarray]]
"""Values by modality; one that is not named is declared missing, a list holds several instances (10 captions)."""


class Entry(NamedTuple):
    """One sample before it is loaded: light enough to list them all, and to send to another process."""

    key: str
    split: str
    source: Any = None
    """Where its values come from: a number, a path, ...; only the corpus's `load` knows."""


@dataclass(frozen=True)
class Corpus:
    """A data set by name: its modalities, the list of its samples, and how one of them is loaded."""

    name: str
    about: str
    """One line for lists."""
    modalities: Mapping[str, Modality]
    entries: Callable[[], Sequence[Entry]]
    """All samples, in the order in which they are stored; the same list in every call."""
    load: Callable[[Entry], Values]
    """A function of a module (other processes call it), which may keep its raw files open or in a cache."""
