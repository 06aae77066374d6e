"""What a data set is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from modalities import Modality

Values = Mapping[str, np.ndarray | bytes | list[np.ndarray] | list[bytes]]
"""Values by modality; one that is not named is declared missing, a list holds several instances (10 captions). Bytes
are a value as it is stored already."""


class Entry(NamedTuple):
    """One sample before it is loaded: light enough to list them all, and to send to another process."""

    key: str
    split: str
    source: Any = None
    """Where its values come from: a number, a path, ...; only the corpus's `load` knows."""
    links: Mapping[str, Sequence[str]] | None = None
    """Members of other samples that this one shows too, stored once: by modality the keys of the samples that hold
    them; several are instances (20 partners of a digit)."""


@dataclass(frozen=True)
class Corpus:
    """A data set by name: its modalities, the list of its samples, and how one of them is loaded."""

    name: str
    about: str
    """One line for lists."""
    modalities: Mapping[str, Modality]
    entries: Callable[[Path | None], Sequence[Entry]]
    """All samples of the official files in a directory (None where it `needs` none), in the order in which they are
    stored; the same list in every call. Raises UserError where those files are not what they should be."""
    load: Callable[[Entry], Values]
    """A function of a module, or another callable that can be pickled (other processes call it); it may keep its raw
    files open or in a cache. Raises UserError, or Unusable for a sample that is to be left out."""
    needs: str = ""
    """Which official files `prepare --source` has to find, in words; empty where the corpus needs none."""
    notes: Callable[[Path | None], Sequence[str]] = lambda source: ()
    """Sentences about these files that whoever prepares them should read: which split, what was left out."""
    opened: Callable[[Path], Corpus] | None = None
    """Where what a corpus holds depends on its files: the same corpus as these say, with what it needs to load them."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files that are stored beside the shards, by name: en.model."""


class Listed(Protocol):
    """What the official files of a corpus hold, found in one reading."""

    @property
    def entries(self) -> Sequence[Entry]: ...

    @property
    def notes(self) -> Sequence[str]: ...


class Listing(NamedTuple):
    """That, and nothing more."""

    entries: list[Entry]
    notes: list[str]


def of_listing(
    listing: Callable[[Path], Listed],
) -> tuple[Callable[[Path | None], Sequence[Entry]], Callable[[Path | None], Sequence[str]]]:
    """`Corpus.entries` and `Corpus.notes` of one that needs files, and finds both in one (cached) reading of them."""

    def read(source: Path | None) -> Listed:
        assert source is not None, "prepare gives it"
        return listing(source)

    return lambda source: read(source).entries, lambda source: read(source).notes


def by_hash(keys: Iterable[str], seed: int) -> list[str]:
    """Keys in the order of their hashes (xxh3, 64 bits): an order without a meaning, and the same for ever."""
    return sorted(keys, key=lambda key: xxhash.xxh3_64_intdigest(key.encode(), seed=seed))
