"""What a data set is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from modalities import Modality
from pipeline.shards import Sample


@dataclass(frozen=True)
class Corpus:
    """A data set by name: its modalities, and a function that yields its samples."""

    name: str
    about: str
    """One line for lists."""
    modalities: Mapping[str, Modality]
    samples: Callable[[], Iterable[Sample]]
