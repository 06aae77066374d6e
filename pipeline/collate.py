"""Rows of the stream read, verified, decoded and put together as batches, ahead of training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from infra.errors import UserError
from modalities import Modality
from pipeline.batch import Batch
from pipeline.manifest import Manifest
from pipeline.shards import Corrupt, Reader, quarantine
from pipeline.stream import PADDING, Refs

T = TypeVar("T")


class Collator:
    """Reads and decodes rows into batches. Damaged rows weigh 0 and go into the quarantine file. Threads may share it.

    `budget` is the share of all rows that may be damaged. With `pin` batches lie in page-locked memory, from which they
    are copied to a CUDA device while it works.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        modalities: Mapping[str, Modality],
        quarantine_file: Path | None = None,
        budget: float = 0.0,
        pin: bool = False,
    ) -> None:
        self.reader = Reader(manifests)
        self.modalities, self.quarantine_file, self.budget, self.pin = modalities, quarantine_file, budget, pin
        self.rows_read = self.rows_damaged = 0
        self._seen: set[int] = set()
        self._first = self._place = ""  # the first damage, and the data directory that it is in
        held = [modality.member(name) for name, modality in modalities.items()]
        self._shared = len(set(held)) < len(held)
        self._lock = Lock()  # for the counts and the quarantine file

    def __call__(self, refs: Refs) -> Batch:
        """A batch from the rows' bytes. Raises UserError once more than `budget` of all rows were damaged."""
        members = refs.member_BM.copy()
        rows_of = {name: np.flatnonzero(members[:, column] >= 0) for column, name in enumerate(self.modalities)}
        wanted = np.concatenate([members[rows, c] for c, rows in enumerate(rows_of.values())])
        buffers = self._read(wanted)
        values: dict[str, np.ndarray] = {}
        damaged: set[int] = set()
        start = 0
        for column, (name, modality) in enumerate(self.modalities.items()):
            rows = rows_of[name]
            values[name], damage = _decoded(modality, rows, buffers[start : start + len(rows)])
            start += len(rows)
            if damage:
                self._report(refs, members[:, column], damage)
                damaged |= damage.keys()
        self._count(int((refs.sample_B != PADDING).sum()), damaged)
        if damaged:  # the row weighs nothing: what else it holds is taken out as well
            for name, rows in rows_of.items():
                keep = ~np.isin(rows, list(damaged))
                values[name], rows_of[name] = values[name][keep], rows[keep]
            members[list(damaged)] = -1
        present = members >= 0
        for name, modality in self.modalities.items():
            if not len(rows_of[name]):
                values[name] = np.zeros((1, *modality.shape), modality.dtype)
        batch = Batch(
            values={name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()},
            rows_of=rows_of,
            present_BM=present,
            weight_B=torch.from_numpy(present.any(1).astype(np.float32)),
            row_B=torch.from_numpy(refs.row_B.copy()),
            keys=self.reader.keys(refs.sample_B),
        )
        return batch.pinned() if self.pin else batch

    def _read(self, members: np.ndarray) -> list[bytes | Corrupt]:
        """Their bytes; a member in which several modalities lie is read once."""
        if not self._shared:
            return self.reader.read(members)
        once, place = np.unique(members, return_inverse=True)
        buffers = self.reader.read(once)
        return [buffers[index] for index in place.tolist()]

    def _report(self, refs: Refs, members: np.ndarray, damage: dict[int, str]) -> None:
        with self._lock:
            entries = []
            for row, reason in damage.items():
                member = int(members[row])
                if member not in self._seen:  # once per member, however often an epoch comes by
                    self._seen.add(member)
                    entry = self.reader.locate(int(refs.sample_B[row]), member) | {"reason": reason}
                    entries.append(entry)
                    if not self._first:
                        self._place = self.reader.directory(member)
                        self._first = "{shard}: {modality} of {key} at byte {offset:,}: {reason}".format_map(entry)
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
            f"{self._place}: {self.rows_damaged} damaged rows among the first {self.rows_read:,}, more than "
            f"train.damage = {self.budget:g} allows{listed}; the first: {self._first}; "
            f"run `pairstream inspect {self._place} --verify`"
        )


def _decoded(modality: Modality, rows: np.ndarray, buffers: list[bytes | Corrupt]) -> tuple[np.ndarray, dict[int, str]]:
    """The values of these rows (zeros for damaged ones), and why which rows are damaged."""
    if Corrupt not in set(map(type, buffers)):
        try:
            return modality.decode(buffers), {}  # type: ignore[arg-type]
        except ValueError:
            pass  # one of them does not fit: find out which
    damage = {int(row): str(one) for row, one in zip(rows, buffers, strict=True) if isinstance(one, Corrupt)}
    decoded = np.zeros((len(rows), *modality.shape), modality.dtype)
    for index, (row, buffer) in enumerate(zip(rows, buffers, strict=True)):
        if not isinstance(buffer, Corrupt):
            try:
                decoded[index] = modality.decode([buffer])[0]
            except ValueError as error:
                damage[int(row)] = str(error)
    return decoded, damage


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


class Waiting(Iterator[T]):
    """An iterator that knows how long its user waited for it."""

    def __init__(self, inner: Iterator[T]) -> None:
        self._inner, self._began = inner, time.perf_counter()
        self._waited = self._told = 0.0  # seconds in all, and up to the last call of `share`
        self._since = self._began

    def __next__(self) -> T:
        started = time.perf_counter()
        try:
            return next(self._inner)
        finally:
            self._waited += time.perf_counter() - started

    def share(self) -> float:
        """Share of the time since the last call (or the beginning) that was spent waiting."""
        now = time.perf_counter()
        share = (self._waited - self._told) / (now - self._since)
        self._told, self._since = self._waited, now
        return share

    @property
    def waited(self) -> float:
        """Seconds so far."""
        return self._waited

    @property
    def total(self) -> float:
        """Share of all the time so far that was spent waiting."""
        return self._waited / (time.perf_counter() - self._began)
