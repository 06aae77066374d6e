"""Which samples the completed data set has, and what of them may be seen: each row of the view once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.imputing.settings import Settings
from pipeline.manifest import Manifest
from pipeline.pairing import Pool, view
from pipeline.shards import POOL

TOGETHER = 4096
"""Rows whose keys are looked up at once."""
EVERYTHING = np.uint64(2**64 - 1)


class Shown(Sequence[Entry]):
    """An entry for each row, whose source is its number. Nothing but 16 bytes a row is kept.

    A view that shows the modalities of a sample apart makes a row of each, with the key KEY/MODALITY; what such views
    hide, and modalities that the run does not know, are not in the row. A split that is not completed is as declared.
    """

    def __init__(self, manifest: Manifest, run: Run, settings: Settings) -> None:
        self.manifest, self.names = manifest, list(run.modalities)
        self.splits: dict[str, range] = {}
        """Rows of each split."""
        self.whole = {
            split for split in manifest.splits if split not in settings.splits or settings.pairing.view == "declared"
        }
        """Splits of which all is seen that is there."""
        samples, bits, first = [], [], 0
        for split, rows in manifest.splits.items():
            if split in self.whole:
                sample, shown = np.arange(rows.start, rows.stop), np.full(len(rows), EVERYTHING)
            else:
                pools = view(manifest, split, self.names, settings.pairing, run.seed, 1, partly=True).pools
                sample, shown = _of_pools(pools)
            samples.append(sample)
            bits.append(shown)
            self.splits[split] = range(first, first + len(sample))
            first += len(sample)
        self.sample, self._bits = np.concatenate(samples), np.concatenate(bits)
        self._ends = np.array([rows.stop for rows in self.splits.values()])

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, row: int) -> Entry:  # type: ignore[override]  # nobody asks for slices
        return self.entries(np.array([row]))[0]

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), TOGETHER):
            yield from self.entries(np.arange(start, min(start + TOGETHER, len(self))))

    def entries(self, rows: np.ndarray) -> list[Entry]:
        """Those of these rows."""
        sample, splits = self.sample[rows], list(self.splits)
        before, after = self.sample[np.maximum(rows - 1, 0)], self.sample[np.minimum(rows + 1, len(self) - 1)]
        apart = ((before == sample) & (rows > 0)) | ((after == sample) & (rows < len(self) - 1))
        keys = self.manifest.keys(sample)
        for place in np.flatnonzero(apart).tolist():
            keys[place] += f"/{self.names[int(self.shown(rows[place : place + 1])[0].argmax())]}"
        which = np.searchsorted(self._ends, rows, side="right").tolist()
        return [Entry(key, splits[split], row) for key, split, row in zip(keys, which, rows.tolist(), strict=True)]

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), M): which modalities of the run may be seen."""
        columns = np.arange(len(self.names), dtype=np.uint64)
        return ((self._bits[rows][:, None] >> columns) & np.uint64(1)).astype(bool)


def _of_pools(pools: Sequence[Pool]) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a view's rows, in storage order, and what each shows as bits."""
    samples, bits, number = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for index, pool in enumerate(pools):
        sample = pool.samples[np.arange(len(pool))]
        shown = np.broadcast_to(pool.shown, (len(sample), len(pool.shown))) if pool.kept is None else pool.kept(sample)
        powers = np.uint64(1) << np.arange(shown.shape[1], dtype=np.uint64)
        samples.append(sample)
        bits.append((shown * powers).sum(1, dtype=np.uint64))
        number.append(np.full(len(sample), index))
    sample = np.concatenate(samples)
    order = np.lexsort((np.concatenate(number), sample))
    return sample[order], np.concatenate(bits)[order]


def shared(manifest: Manifest) -> bool:
    """Whether several samples show one stored member, or some are stored for others only."""
    place = manifest.shard.astype(np.uint64) << np.uint64(32) | manifest.block
    return POOL in manifest.splits or len(np.unique(place)) < len(place)
