"""What is examined: a trained model, and the split of the data that it is examined on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from infra.distributed import World
from modalities import Image, Modality
from pipeline.batch import Batch, empty_batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.manifest import Manifest
from pipeline.model import MultimodalVAE
from pipeline.stream import PADDING, Refs, in_order, rows_for_rank

Look = Callable[[Batch, Batch], Mapping[str, np.ndarray]]
"""(what the model knows, what stands beside it) of some rows -> arrays with one entry a row."""


def filled(batch: Batch, name: str, nothing: float) -> np.ndarray:
    """A modality's values of all rows, (B, …): `nothing` where a row has none."""
    values = batch.values[name].cpu().numpy()
    whole = np.full((len(batch), *values.shape[1:]), nothing, values.dtype)
    rows = batch.rows_of[name]
    whole[rows] = values[: len(rows)]
    return whole


@dataclass(frozen=True)
class Subject:
    """A trained model and its data. The same numbers come out on any number of ranks."""

    model: MultimodalVAE
    run: Run
    manifest: Manifest
    split: str
    world: World
    few: int = 0
    """Evenly spaced rows of the split to look at; 0 is all."""

    @property
    def images(self) -> list[str]:
        """The names of the run's image modalities."""
        return [name for name, modality in self.run.modalities.items() if isinstance(modality, Image)]

    def batches(
        self, split: str | None = None, beside: Mapping[str, Modality] | None = None
    ) -> Iterator[tuple[Batch, Batch]]:
        """This rank's rows of a split, in equal steps on all ranks; rows that fill up the last step weigh 0.

        Each step is the batch of the run's modalities, and the batch of the same rows with those `beside` (a label that
        the model does not know). Raises UserError where the data have no such modality.
        """
        for batch, other, _ in self._steps(split or self.split, beside or {}):
            yield batch, other

    def collect(
        self, look: Look, split: str | None = None, beside: Mapping[str, Modality] | None = None
    ) -> dict[str, np.ndarray]:
        """What `look` says of every row of a split, in the order of the split, on every rank. Collective.

        Rows that only fill up a step are left out, and so are rows that were damaged.
        """
        parts: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []
        for batch, other, refs in self._steps(split or self.split, beside or {}):
            told = look(batch, other)
            counted = (batch.weight_B > 0).cpu().numpy() & (refs.sample_B != PADDING)
            parts.append((refs.sample_B[counted], {name: np.asarray(one)[counted] for name, one in told.items()}))
        gathered: list[list[tuple[np.ndarray, Mapping[str, np.ndarray]]]] = self.world.gather(parts)  # type: ignore[assignment]
        every = [part for rank in gathered for part in rank]
        order = np.argsort(np.concatenate([samples for samples, _ in every]), kind="stable")
        return {name: np.concatenate([told[name] for _, told in every])[order] for name in every[0][1]}

    def _steps(self, split: str, beside: Mapping[str, Modality]) -> Iterator[tuple[Batch, Batch, Refs]]:
        known = self.run.modalities
        collate, collate_beside = (
            Collator([self.manifest], modalities, budget=self.run.train.damage) for modalities in (known, beside)
        )
        columns = self.manifest.column(list(beside))
        size = -(-self.run.train.batch // self.world.size) * self.world.size
        for step in in_order(self.manifest, split, list(known), size, self.few if split == self.split else 0):
            refs = rows_for_rank(step, self.world.rank, self.world.size)
            other = collate_beside(self._beside(refs, columns)) if beside else empty_batch({}, self.world.device)
            yield collate(refs).to(self.world.device), other, refs

    def _beside(self, refs: Refs, columns: list[int]) -> Refs:
        member = np.full((len(refs.sample_B), len(columns)), -1)
        there = refs.sample_B != PADDING
        zeros = np.zeros(int(there.sum()), np.uint64)
        member[there] = self.manifest.members(refs.sample_B[there], columns, zeros, zeros)
        return Refs(refs.sample_B, member, refs.row_B)
