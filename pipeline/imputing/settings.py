"""What is completed, and how. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.settings import Pairing, check


@dataclass(frozen=True)
class Settings:
    """Two that are equal give the same bytes, whatever the number of ranks."""

    splits: tuple[str, ...] = ("train",)
    """Splits that are completed; the others are copied as they are."""
    only: tuple[str, ...] = ()
    """Members of the model that are filled in; all where none is named."""
    pairing: Pairing = field(default_factory=Pairing)
    """View of the completed splits: what it hides is missing."""
    value: Literal["mean", "sample"] = "mean"
    """mean: what all samples of z say together. sample: what the first of them says, drawn where that has a meaning."""
    samples: int = 8
    """Samples of z for each row."""
    doubt: Mapping[str, float] = field(default_factory=dict)
    """By member: the largest spread that is still filled in; 1 for those that are not named."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        check(bool(self.splits), "no split to complete: name at least one")
        check(self.samples >= 2, f"samples is {self.samples}: choose at least 2, one tells nothing of the uncertainty")
        for name, most in self.doubt.items():
            check(0 <= most <= 1, f"the largest spread of {name} is {most:g}: choose a number from 0 to 1")
