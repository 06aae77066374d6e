"""The stream: a global order that nothing can disturb, cut into the rows of each rank, read ahead.

The rows of global batch k are a pure function of (seed, manifest, view, k): world size, workers, a crash and a
resume do not change them. Shape legend: B rows, M modalities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from infra.errors import UserError
from modalities import Modality
from pipeline.batch import Batch
from pipeline.manifest import Manifest
from pipeline.order import mix, permute, seed_of, shuffle
from pipeline.pairing import View
from pipeline.shards import Corrupt, Reader, quarantine

T = TypeVar("T")
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


@dataclass(frozen=True)
class Stream:
    """The infinite sequence of global batches of a view."""

    manifest: Manifest
    view: View
    modalities: Mapping[str, Modality]
    seed: int
    batch: int

    def __post_init__(self) -> None:
        if not self.view.pools:
            raise UserError(f"{self.manifest.directory}: the view shows no row of {', '.join(self.modalities)}")
        if self.view.starved:
            raise UserError(
                f"train.batch = {self.batch} is too small for pairing.composition = balanced: "
                f"a step would hold no row of {', '.join(self.view.starved)}"
            )

    def global_batch(self, step: int) -> Refs:
        """The rows of one step, in O(batch) wherever it lies. Every rank calls this and takes its part."""
        slots = np.arange(self.batch)
        if self.view.counts is None:
            pool, position = np.zeros(self.batch, np.int64), step * self.batch + slots
            sizes = [sum(len(p) for p in self.view.pools)]
        else:
            counts = np.array(self.view.counts)
            pool = np.repeat(np.arange(len(counts)), counts)
            offset = slots - np.repeat(np.cumsum(counts) - counts, counts)
            position = step * counts[pool] + offset
            sizes = [len(p) for p in self.view.pools]
        size = np.array(sizes)[pool]
        passes, within = position // size, position % size
        row = np.empty(self.batch, np.int64)
        for number, length in enumerate(sizes):
            mine = pool == number
            if mine.any():
                base = np.uint64(seed_of(self.seed, "order", self.manifest.fingerprint, number))
                key = mix(base + passes[mine].astype(np.uint64))
                row[mine] = shuffle(within[mine], length, key)
        if self.view.counts is None:  # one order over all pools: find the pool that a row lies in
            ends = np.cumsum([len(p) for p in self.view.pools])
            pool = np.searchsorted(ends, row, side="right")
            row = row - (ends - [len(p) for p in self.view.pools])[pool]
        else:  # the pools' rows are mixed, so that ranks get the like of each
            place = permute(slots, self.batch, seed_of(self.seed, "slots", step))
            pool, row, passes = pool[place], row[place], passes[place]
        sample, shown = np.empty(self.batch, np.int64), np.empty((self.batch, len(self.modalities)), bool)
        for number, one in enumerate(self.view.pools):
            mine = pool == number
            sample[mine], shown[mine] = one.samples[row[mine]], one.shown
        # Which instance of a modality is shown: a pure function of (seed, pass, sample).
        choice = mix(np.uint64(seed_of(self.seed, "instance")) + passes.astype(np.uint64)) ^ sample.astype(np.uint64)
        members = self.manifest.members(sample, self.manifest.column(list(self.modalities)), mix(choice))
        return Refs(sample, np.where(shown, members, -1), step * self.batch + slots)


def rows_for_rank(refs: Refs, rank: int, world: int) -> Refs:
    """A rank's contiguous share of a global batch, whose size the world size must divide."""
    share = len(refs.sample_B) // world
    return refs[rank * share : (rank + 1) * share]


def in_order(manifest: Manifest, split: str, modalities: list[str], batch: int) -> list[Refs]:
    """A split once, in storage order, as batches of equal size; the last one is filled up with PADDING rows."""
    rows = manifest.split(split)
    sample = np.arange(rows.start, rows.stop)
    members = manifest.members(sample, manifest.column(modalities), np.zeros(len(sample), np.uint64))
    missing = -len(sample) % batch
    sample = np.concatenate([sample, np.full(missing, PADDING)])
    members = np.concatenate([members, np.full((missing, len(modalities)), -1)])
    refs = Refs(sample, members, np.arange(len(sample)))
    return [refs[start : start + batch] for start in range(0, len(sample), batch)]


@dataclass
class Collator:
    """Reads and decodes the rows of one rank. Damaged rows weigh 0 and go into the quarantine file."""

    manifest: Manifest
    modalities: Mapping[str, Modality]
    quarantine_file: Path | None = None
    budget: float = 0.0
    rows_read: int = 0
    rows_damaged: int = 0
    _seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._reader = Reader(self.manifest)
        self._lock = Lock()  # threads of `prefetch` share the counts and the quarantine file

    def __call__(self, refs: Refs) -> Batch:
        """A batch from the rows' bytes. Raises UserError once more than `budget` of all rows were damaged."""
        members = refs.member_BM.copy()
        values: dict[str, np.ndarray] = {}
        damaged: set[int] = set()
        for column, (name, modality) in enumerate(self.modalities.items()):
            values[name], bad = self._column(refs, members[:, column], name, modality)
            damaged |= bad
        self._count(int((refs.sample_B != PADDING).sum()), damaged)
        if damaged:  # the row weighs nothing: what else it holds is taken out as well
            bad_rows = np.array(sorted(damaged))
            for column, name in enumerate(self.modalities):
                keep = ~np.isin(np.flatnonzero(members[:, column] >= 0), bad_rows)
                values[name] = values[name][keep] if len(keep) else values[name]
            members[bad_rows] = -1
        present = members >= 0
        weight = (present.any(1)).astype(np.float32)
        rows_of = {name: np.flatnonzero(present[:, column]) for column, name in enumerate(self.modalities)}
        for name, modality in self.modalities.items():
            if not len(rows_of[name]):
                values[name] = np.zeros((1, *modality.shape), modality.dtype)
        return Batch(
            values={name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()},
            rows_of=rows_of,
            present_BM=present,
            weight_B=torch.from_numpy(weight),
            row_B=torch.from_numpy(refs.row_B.copy()),
            keys=[self.manifest.key(sample) if sample >= 0 else "" for sample in refs.sample_B],
        )

    def _column(self, refs: Refs, members: np.ndarray, name: str, modality: Modality) -> tuple[np.ndarray, set[int]]:
        """Decoded values of the rows that have this modality (zeros for damaged ones), and the damaged rows."""
        rows = np.flatnonzero(members >= 0)
        buffers: list[bytes | None] = []
        damage: dict[int, str] = {}
        for row in rows:
            try:
                buffers.append(self._reader.read(int(members[row])))
            except Corrupt as error:
                buffers.append(None)
                damage[int(row)] = str(error)
        if not damage:
            try:
                return modality.decode([b for b in buffers if b is not None]), set()
            except ValueError:
                pass  # one of them does not fit: find out which
        decoded = np.zeros((len(rows), *modality.shape), modality.dtype)
        for index, (row, buffer) in enumerate(zip(rows, buffers, strict=True)):
            if buffer is not None:
                try:
                    decoded[index] = modality.decode([buffer])[0]
                except ValueError as error:
                    damage[int(row)] = str(error)
        self._report(refs, members, damage)
        return decoded, set(damage)

    def _report(self, refs: Refs, members: np.ndarray, damage: dict[int, str]) -> None:
        with self._lock:
            entries = []
            for row, reason in damage.items():
                member = int(members[row])
                if member not in self._seen:  # once per member, however often an epoch comes by
                    self._seen.add(member)
                    entries.append(self._reader.locate(int(refs.sample_B[row]), member) | {"reason": reason})
            if entries and self.quarantine_file is not None:
                quarantine(self.quarantine_file, entries)

    def _count(self, rows: int, damaged: set[int]) -> None:
        with self._lock:
            self.rows_read += rows
            self.rows_damaged += len(damaged)
            if not damaged or self.rows_damaged <= self.budget * max(self.rows_read, 1000):
                return
        listed = f"; they are listed in {self.quarantine_file}" if self.quarantine_file else ""
        raise UserError(
            f"{self.manifest.directory}: {self.rows_damaged} damaged rows among the first {self.rows_read:,}, more "
            f"than train.damage = {self.budget:g} allows{listed}; "
            f"run `pairstream inspect {self.manifest.directory} --verify`"
        )


def prefetch(fetch: Callable[[int], T], start: int, stop: int, workers: int, depth: int = 4) -> Iterator[T]:
    """fetch(start), …, fetch(stop - 1) in this order, up to `depth` of them ahead in `workers` threads.

    An error in a thread is raised here, at its turn. With 0 workers everything happens in the caller's thread.
    """
    if workers == 0:
        yield from map(fetch, range(start, stop))
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="stream") as pool:
        try:
            for index in range(start, stop):
                waiting.append(pool.submit(fetch, index))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
