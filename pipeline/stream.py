"""The stream: a global order that nothing can disturb, cut into the rows of each rank; nothing is read here.

The rows of global batch k are a pure function of (seed, manifest, view, k): world size, workers, a crash and a
resume do not change them. Shape legend: B rows, M modalities.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np

from infra.errors import UserError
from pipeline.manifest import Manifest
from pipeline.order import mix, permute, seed_of, shuffle
from pipeline.pairing import Pool, View

PADDING = -1


@dataclass(frozen=True)
class Refs:
    """Rows that are named but not yet read."""

    sample_B: np.ndarray
    """Number in the manifest, or PADDING for a row that only fills up a batch."""
    member_BM: np.ndarray
    """Member to read per modality, -1 where it is absent or not shown."""
    row_B: np.ndarray
    """Number of the row in the whole run."""

    def __getitem__(self, rows: slice) -> Refs:
        return Refs(self.sample_B[rows], self.member_BM[rows], self.row_B[rows])


class Stream:
    """The infinite sequence of global batches of a view, or of several that are mixed."""

    def __init__(self, views: Sequence[View], modalities: Collection[str], seed: int) -> None:
        for view in views:
            if not view.pools:
                raise UserError(f"{view.manifest.directory}: the view shows no row of {', '.join(modalities)}")
            if view.starved:
                raise UserError(
                    f"train.batch = {view.rows} is too small for pairing.composition = balanced: "
                    f"a step would hold no row of {', '.join(view.starved)}"
                )
        self.manifests = [view.manifest for view in views]
        self.views, self.modalities, self.seed = views, modalities, seed
        self.batch = sum(view.rows for view in views)
        self._lanes: list[_Lane] = []
        sample = member = 0
        for view in views:
            pools = [view.pools] if view.counts is None else [[pool] for pool in view.pools]
            counts = [view.rows] if view.counts is None else view.counts
            for number, (some, count) in enumerate(zip(pools, counts, strict=True)):
                self._lanes.append(_Lane(view.manifest, some, count, number, seed, list(modalities), sample, member))
            sample, member = sample + len(view.manifest), member + len(view.manifest.size)
        counts = [lane.count for lane in self._lanes]
        self._lane_of_place = np.repeat(np.arange(len(counts)), counts)
        self._first_place, self._count = np.cumsum(counts) - counts, np.array(counts)

    def global_batch(self, step: int) -> Refs:
        """The rows of one step, in O(batch) wherever it lies."""
        return self.rows(np.arange(step * self.batch, (step + 1) * self.batch))

    def describe(self) -> dict[str, int]:
        """Rows of each kind that there are, of what is mixed in under its directory."""
        first, *rest = self.views
        mixed = {f"{v.manifest.directory}: {name}": rows for v in rest for name, rows in v.describe().items()}
        return first.describe() | mixed

    def rows(self, number: np.ndarray) -> Refs:
        """Rows by their number in the whole run (step * batch + slot); each is a function of its number alone."""
        lane, position = np.zeros(len(number), np.int64), number
        if len(self._lanes) > 1:  # the lanes' rows are mixed, so that ranks get the like of each
            step, slot = np.divmod(number, self.batch)
            steps, which = np.unique(step, return_inverse=True)
            keys = np.array([seed_of(self.seed, "slots", int(one)) for one in steps], np.uint64)
            place = permute(slot, self.batch, keys[which])
            lane = self._lane_of_place[place]
            position = step * self._count[lane] + place - self._first_place[lane]
        sample = np.empty(len(number), np.int64)
        member = np.empty((len(number), len(self.modalities)), np.int64)
        for index, one in enumerate(self._lanes):
            mine = lane == index
            if mine.any():
                sample[mine], member[mine] = one.rows(position[mine])
        return Refs(sample, member, number)


class _Lane:
    """An endless order over one or several pools, of which every step takes `count` rows."""

    def __init__(
        self, manifest: Manifest, pools: list[Pool], count: int, number: int, seed: int, names: list[str],
        first_sample: int, first_member: int,
    ) -> None:  # fmt: skip
        self.manifest, self.pools, self.count = manifest, pools, count
        self.first_sample, self.first_member = first_sample, first_member
        self.columns = manifest.column(names, partly=True)
        self.ends = np.cumsum([len(pool) for pool in pools])
        self.order = np.uint64(seed_of(seed, "order", manifest.fingerprint, number))
        self.instance = np.uint64(seed_of(seed, "instance"))

    def rows(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples and members, numbered through all manifests, at these positions of the order."""
        size = int(self.ends[-1])
        passes, within = np.divmod(position, size)
        with np.errstate(over="ignore"):
            row = shuffle(within, size, mix(self.order + passes.astype(np.uint64)))
        pool = np.searchsorted(self.ends, row, side="right")
        sample, shown = np.empty(len(row), np.int64), np.empty((len(row), len(self.columns)), bool)
        for number, one in enumerate(self.pools):
            mine = np.flatnonzero(pool == number)
            if len(mine):
                sample[mine] = one.samples[row[mine] - (self.ends[number] - len(one))]
                shown[mine] = one.shown if one.kept is None else one.kept(sample[mine])
        # Which instance of a modality is shown: a pure function of (seed, pass, sample).
        member = self.manifest.members(sample, self.columns, mix(self.instance ^ sample.astype(np.uint64)), passes)
        return sample + self.first_sample, np.where(shown & (member >= 0), member + self.first_member, -1)


class Share:
    """One rank's rows of a stream, by step. Safe to share among threads.

    Many steps are worked out together: numpy's calls cost as much for a hundred rows as for thousands.
    """

    ROWS = 4096

    def __init__(self, stream: Stream, rank: int = 0, world: int = 1) -> None:
        """The world size must divide the stream's batch."""
        self._stream, self._size = stream, stream.batch // world
        self._first, self._steps = rank * self._size, max(1, self.ROWS // self._size)
        self._lock, self._block = Lock(), lru_cache(4)(self._work_out)

    def __call__(self, step: int) -> Refs:
        """This rank's contiguous part of a global batch."""
        with self._lock:
            refs = self._block(step // self._steps)
        start = step % self._steps * self._size
        return refs[start : start + self._size]

    def _work_out(self, block: int) -> Refs:
        steps = np.arange(block * self._steps, (block + 1) * self._steps)
        return self._stream.rows((steps[:, None] * self._stream.batch + self._first + np.arange(self._size)).ravel())


def rows_for_rank(refs: Refs, rank: int, world: int) -> Refs:
    """A rank's contiguous share of a global batch, whose size the world size must divide."""
    share = len(refs.sample_B) // world
    return refs[rank * share : (rank + 1) * share]


def in_order(manifest: Manifest, split: str, modalities: list[str], batch: int, few: int = 0) -> Iterator[Refs]:
    """A split once, in storage order, as batches of equal size; the last one is filled up with PADDING rows.

    With `few` only so many samples, evenly spaced: the first ones of MNIST's test data are easier than the rest.
    """
    rows, columns = manifest.split(split), manifest.column(modalities)
    count = min(few, len(rows)) or len(rows)

    def batch_at(start: int) -> Refs:
        sample = rows.start + np.arange(start, min(start + batch, count)) * len(rows) // count
        zeros, missing = np.zeros(len(sample), np.uint64), batch - len(sample)
        members = manifest.members(sample, columns, zeros, zeros)
        sample = np.concatenate([sample, np.full(missing, PADDING)])
        members = np.concatenate([members, np.full((missing, len(modalities)), -1)])
        return Refs(sample, members, np.arange(start, start + batch))

    return map(batch_at, range(0, count, batch))
