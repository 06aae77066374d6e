"""The pairs of a run: which training samples its view shows whole, what they hold, and a run that sees no others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from infra.errors import UserError
from modalities import Image, Label, Modality
from pipeline.collate import Collator
from pipeline.config import Run, override
from pipeline.evaluate.scored import Scored
from pipeline.manifest import Manifest
from pipeline.pairing import view
from pipeline.settings import Pairing, check
from pipeline.stream import Refs

UNKNOWN = Scored(math.nan, math.nan, 0)
"""The accuracy of what could not be learnt."""


def read(
    manifest: Manifest, run: Run, samples: np.ndarray, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The values of these samples, (R, …) of each modality: of all of the run's, or of `names`, which all of them have.

    Nothing else of them is read, and damaged samples are left out.
    """
    modalities = {name: run.modalities[name] for name in names or run.modalities}
    zeros = np.zeros(len(samples), np.uint64)
    members = manifest.members(samples, manifest.column(list(modalities)), zeros, zeros)
    collate = Collator([manifest], modalities, budget=run.train.damage)
    batch = collate(Refs(samples, members, np.arange(len(samples))))
    return {name: value[: len(batch.rows_of[name])].numpy() for name, value in batch.values.items()}


def complete_samples(
    manifest: Manifest, run: Run, split: str, pairing: Pairing | None = None, names: Sequence[str] | None = None
) -> np.ndarray:
    """Samples of a split that have all of the run's modalities, or all of `names`.

    With `pairing` only those of which its view shows all of them together.
    """
    known = list(run.modalities)
    names = list(names or known)
    wanted = [known.index(name) for name in names]
    rows = manifest.split(split)
    samples = np.arange(rows.start, rows.stop)
    if pairing:
        pools = view(manifest, split, known, pairing, run.seed, 1).pools
        whole = [pool.samples[np.arange(len(pool))] for pool in pools if pool.shown[wanted].all()]
        samples = np.concatenate(whole) if whole else samples[:0]
        for pool in pools:
            if pool.kept:
                samples = samples[pool.kept(samples)[:, wanted].all(1)]
    everything = sum(1 << column for column in set(manifest.column(names)))
    bits = manifest.patterns(range(len(manifest)))[samples]
    chosen: np.ndarray = samples[(bits & np.uint64(everything)) == np.uint64(everything)]
    return chosen


def too_few(labels: np.ndarray) -> bool:
    """Whether there are fewer than two classes, of which nothing can be learnt."""
    return len(np.unique(labels)) < 2


@dataclass(frozen=True)
class Question:
    """A class, or attributes, asked for, given a picture, by runs that differ in their pairing only."""

    manifest: Manifest
    run: Run
    label: str
    given: str
    kinds: tuple[type[Modality], ...] = (Label,)
    """What may be asked for."""

    @property
    def picture(self) -> Image:
        """The modality that is given."""
        kind = self.run.modalities.get(self.given)
        if not isinstance(kind, Image):
            raise UserError(
                f"baselines predict from a picture, and {self.given!r} is no image of recipe {self.run.recipe}: "
                f"{self._choose(Image)}"
            )
        return kind

    @property
    def classes(self) -> Modality:
        """The modality that is asked for."""
        kind = self.run.modalities.get(self.label)
        if not isinstance(kind, self.kinds):
            raise UserError(
                f"baselines predict a class, and {self.label!r} is no label of recipe {self.run.recipe}: "
                f"{self._choose(*self.kinds)}"
            )
        return kind

    def pictures(self) -> np.ndarray:
        """Every picture of the training split, (R, *shape): whether or not a view shows it, or it has a label."""
        samples = complete_samples(self.manifest, self.run, "train", names=[self.given])
        return read(self.manifest, self.run, samples, [self.given])[self.given]

    def pairs(self, pairing: Pairing) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (R, *shape) and labels (R,) of the training samples of which a view shows both."""
        return self._read(complete_samples(self.manifest, self.run, "train", pairing, [self.given, self.label]))

    def rows(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (R, *shape) and labels (R,) of a split's samples that have both. Raises UserError where none has."""
        samples = complete_samples(self.manifest, self.run, split, names=[self.given, self.label])
        if not len(samples):
            raise UserError(
                f"{self.manifest.directory}: no sample of split {split} has both {self.given} and {self.label}, so no "
                "baseline can be judged on it; choose another split"
            )
        return self._read(samples)

    def _read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = read(self.manifest, self.run, samples, [self.given, self.label])
        return values[self.given], values[self.label]

    def _choose(self, *kinds: type) -> str:
        known = [name for name, modality in self.run.modalities.items() if isinstance(modality, kinds)]
        return f"choose {' or '.join(known)}" if known else "it has none, so they do not apply to it"


def question(
    manifest: Manifest, runs: Sequence[Run], label: str, given: str, kinds: tuple[type[Modality], ...] = (Label,)
) -> Question:
    """What is asked of these runs. Raises UserError where it cannot be asked, or they differ in more than pairing."""
    first = runs[0]
    check(
        all(replace(run, pairing=first.pairing) == first for run in runs),
        "runs that share a baseline may differ in their pairing only: ask for those of other seeds by themselves",
    )
    asked = Question(manifest, first, label, given, kinds)
    _ = asked.picture, asked.classes
    return asked


def jmvae_on_pairs(run: Run) -> Run:
    """JMVAE with α = 0.01, trained on a run's pairs only (MVAE section 5.1 (6)); all else as the run has it.

    Raises UserError for view keep, which knows no pairs.
    """
    check(
        run.pairing.view != "keep",
        "pairing.view = keep drops modalities one by one and knows no pairs to train JMVAE on: choose split",
    )
    return override(
        run,
        {
            "model.system": "jmvae",
            "objective.alpha": 0.01,
            "pairing.view": "split",
            "pairing.fraction": 1.0 if run.pairing.view == "declared" else run.pairing.fraction,
            "pairing.composition": "balanced",
            "pairing.complete_share": 1.0,
        },
    )
