"""The stream as plain dictionaries of bytes, in place of a WebDataset of one's own."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from infra.errors import UserError
from infra.storage import absolute
from pipeline.manifest import open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing, check
from pipeline.shards import Corrupt, Reader
from pipeline.stream import Refs, Share, Stream

DECLARED = Pairing()
WORKERS = 1024
"""Worker processes of a DataLoader that count damaged rows apart."""
SAID = 20
"""Damaged members that one iterator warns of; all are counted."""
HOPELESS = 1000
"""Damaged rows without a single whole one after which an iterator gives up."""
Sample = dict[str, Any]


class Samples(IterableDataset[Sample]):
    """The rows of a supervision view as WebDataset's dictionaries, in the order in which training reads them.

    A row is {"__key__": its key, "__url__": its shard, "__row__": its number in the run, "image.npy": bytes, ...} with
    the modalities that it shows, undecoded and verified, each under MODALITY.EXTENSION. A modality of several instances
    shows one of them, another in each pass, under the same name: of caption.0.txt and caption.1.txt one is
    "caption.txt". Where the shards are somebody else's, names are those of the manifest ("image.jpg", not "jpg").

        loader = DataLoader(wds.DataPipeline(Samples("data/digits"), wds.decode()), batch_size=100, num_workers=3)

    The batches are the same with any number of workers where batch_size is `share`: workers take whole steps in turn,
    and need no wds.split_by_worker. Each rank gets `share` = batch / world rows of every step, one behind the other.
    Every iteration begins at step `start`, which may be set anew: otherwise a second one repeats the first. With
    `epochs` it ends after the whole steps in epochs * (samples of the split) rows, otherwise never.

    A row of which a member is damaged is left out whole, warned of and counted: see `damaged`. The rows behind it move
    up, so that from there on batches depend on the number of workers.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        split: str = "train",
        modalities: Sequence[str] | None = None,
        pairing: Pairing = DECLARED,
        seed: int = 0,
        batch: int = 100,
        start: int = 0,
        epochs: float | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        """`directory` is a path or a URL; all its `modalities` where none are named. `batch` is the global batch, in
        rows. `rank` and `world` are torch.distributed's where it is initialised by now, otherwise 0 and 1.

        Raises UserError where the data do not hold that, for a world that does not divide the batch, and for epochs
        without a whole step. Iterating raises it where the storage does not answer, or the first 1,000 rows (or all)
        are damaged.
        """
        super().__init__()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        check(batch >= 1, f"batch {batch}: choose at least one row")
        check(start >= 0, f"start {start}: steps count from 0")
        check(0 <= self.rank < self.world, f"rank {self.rank} of {self.world}: ranks count from 0")
        check(batch % self.world == 0, f"batch {batch}: {self.world} ranks cannot share it equally")
        # Workers open the manifest for themselves, in another working directory perhaps.
        self.directory = absolute(directory)
        self.split, self.modalities, self.pairing, self.seed = split, modalities, pairing, seed
        self.batch, self.start, self.share = batch, start, batch // self.world
        keys = self._stream.views[0].keys
        self._stop = None if epochs is None else int(epochs * keys) // batch
        check(self._stop != 0, f"{epochs} epochs of {keys:,} samples are not one step of {batch} rows")
        self._damaged = torch.zeros(WORKERS, dtype=torch.int64).share_memory_()  # one for each worker: no locks

    @property
    def damaged(self) -> int:
        """Rows that were left out so far, by this process's iterators and those of its DataLoaders' workers."""
        return int(self._damaged.sum())

    def __len__(self) -> int:
        """Rows from `start` on, of this rank. Raises TypeError where the stream is endless."""
        if self._stop is None:
            raise TypeError("an endless stream has no length: give epochs")
        return max(0, self._stop - self.start) * self.share

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        share = Share(self._stream, self.rank, self.world)
        reader = Reader(self._stream.manifests)  # opened by who reads: files and connections do not survive a fork
        whole = lost = 0
        for step in itertools.count(self.start + number, workers):
            over = self._stop is not None and step >= self._stop
            if lost and not whole and (over or lost >= HOPELESS):
                raise UserError(
                    f"{self.directory}: all of {lost} rows are damaged; run `pairstream inspect {self.directory}`"
                )
            if over:
                return
            for sample in self._read(reader, share(step), lost):
                if sample is None:
                    lost += 1
                    self._damaged[number % WORKERS] += 1
                else:
                    whole += 1
                    yield sample

    def _read(self, reader: Reader, refs: Refs, lost: int) -> list[Sample | None]:
        """One dictionary a row, None where a member of it is damaged; warns of these unless many were `lost` before."""
        manifest, keys = reader.manifests[0], reader.keys(refs.sample_B)
        rows, columns = np.nonzero(refs.member_BM >= 0)  # by row; each shows something
        members = refs.member_BM[rows, columns]
        first = np.searchsorted(rows, np.arange(len(keys)))
        shards = [manifest.shards[number].name for number in manifest.shard[members[first]].tolist()]
        samples: list[Sample | None] = [
            {"__key__": key, "__url__": os.path.join(self.directory, shard), "__row__": row}
            for key, shard, row in zip(keys, shards, refs.row_B.tolist(), strict=True)
        ]
        names = [f"{name}.{manifest.modalities[name].extension}" for name in self._stream.modalities]
        buffers = reader.read(members)
        for row, column, member, data in zip(rows.tolist(), columns.tolist(), members.tolist(), buffers, strict=True):
            sample = samples[row]
            if isinstance(data, Corrupt):
                samples[row] = None
                if lost + samples.count(None) <= SAID:
                    at = reader.locate(int(refs.sample_B[row]), member)
                    where = f"{at['shard']} at byte {at['offset']}: {at['key']} {at['modality']}"
                    warnings.warn(f"{self.directory}: {where}: {data}; the row is left out", stacklevel=3)
            elif sample is not None:
                sample[names[column]] = data
        return samples

    @cached_property
    def _stream(self) -> Stream:
        manifest = open_manifest(self.directory)
        names = list(dict.fromkeys(manifest.modalities if self.modalities is None else self.modalities))
        shown = view(manifest, self.split, names, self.pairing, self.seed, self.batch)
        return Stream([shown], names, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is not forked opens the manifest anew: it would be copied otherwise."""
        return {name: value for name, value in self.__dict__.items() if name != "_stream"}
