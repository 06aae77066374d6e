"""Complete a data set: what of it each rank writes, and how the whole of it appears."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from infra.distributed import World
from infra.errors import UserError
from pipeline.corpora.corpus import Corpus, Entry
from pipeline.imputing.filling import Filler, values_of
from pipeline.imputing.job import Job
from pipeline.imputing.marks import NAME as MARKS
from pipeline.imputing.marks import about, together
from pipeline.imputing.rows import Shown
from pipeline.manifest import BLOCK, NAME, open_manifest
from pipeline.shards import INDEXED
from pipeline.train import build, load_weights
from pipeline.writing import Progress, Todo, Written, write
from pipeline.writing.plan import Part, Plan
from pipeline.writing.shard import Work, write_shard

SHARD_BYTES = 16 * 2**20
"""Less than for other data: what a kill undoes took longer to make."""


@dataclass(frozen=True)
class Imputed:
    """What there is when `impute` has returned; of members how many, by name."""

    written: Written
    imputed: dict[str, int]
    """The model made them."""
    doubtful: dict[str, int]
    """Left missing: their spread was above the threshold."""
    unanswerable: dict[str, int]
    """Left missing: the model makes none of what is there."""


def impute(
    job: Job, out: Path, world: World, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> Imputed | None:
    """Write the completed data into `out`, which appears whole or not at all; rank 0 has the result. Collective.

    A directory `out` in which that was done already is left as it is. Raises UserError, on every rank, also where
    `out` holds anything else.
    """
    shown = Shown(job.manifest, job.run, job.settings)
    if not len(shown):
        raise UserError(f"{job.manifest.directory}: the view shows no row of {', '.join(job.run.modalities)}")
    parts = _parts(job, shown, shard_bytes)
    ranks = _Ranks(job, shown, parts, world)
    if not world.is_main:
        ranks.follow()
        return None
    try:
        written = _done(job, out) or write(
            out, _corpus(job, shown), shard_bytes, 1, progress,
            planning=lambda *_: (_plan(job, shard_bytes), parts, 0.0), writer=ranks.lead,
            late=lambda partial: {MARKS: together(partial, [part.name for part in parts], job.identity)},
        )  # fmt: skip
    except UserError as error:
        ranks.settle(str(error))
        raise
    ranks.settle(None)
    told = about(open_manifest(out))
    assert told is not None
    return Imputed(written, told["imputed"], told["doubtful"], told["unanswerable"])


def _done(job: Job, out: Path) -> Written | None:
    """What there is to say where the very same was done before."""
    if not (out / NAME).is_file():
        return None
    manifest = open_manifest(out)
    told = about(manifest) or {}
    if any(told.get(name) != value for name, value in job.identity.items()) or manifest.damaged_shards:
        return None
    return Written(manifest.fingerprint, 0, len(manifest.shards))


def _corpus(job: Job, shown: Shown) -> Corpus:
    name = "imputed" if job.manifest.corpus == INDEXED else job.manifest.corpus
    return Corpus(name, "completed by a model", job.stored, lambda _: shown, values_of, files=job.files)


def _plan(job: Job, shard_bytes: int) -> Plan:
    named = {name: [m.extension, None if m.shape is None else list(m.shape)] for name, m in job.stored.items()}
    values = xxhash.xxh3_128_hexdigest(json.dumps(job.identity, sort_keys=True).encode())
    return Plan(job.manifest.corpus, named, shard_bytes, job.manifest.fingerprint, values)


def _parts(job: Job, shown: Shown, shard_bytes: int) -> list[Part]:
    """Shards of about so many bytes, as far as can be told before anything is made."""
    manifest, parts = job.manifest, []
    room = {member: float(math.prod(job.stored[member].shape)) for member in job.asked}
    for number, name in enumerate(manifest.modalities):
        if name in room and (manifest.modality == number).any():
            room[name] = float(manifest.size[manifest.modality == number].mean())
    for split, rows in shown.splits.items():
        if not rows:
            continue
        span = manifest.split(split)
        there = manifest.size[manifest.first[span.start] : manifest.first[span.stop]]
        each = (len(there) * BLOCK + there.sum(dtype=np.int64)) / len(rows)
        if split in job.settings.splits:
            each += sum(BLOCK + size for size in room.values())
        count = max(1, int(shard_bytes / max(1, each)))
        starts = range(rows.start, rows.stop, count)
        parts += [
            Part(f"{split}-{i:06d}", np.arange(start, min(start + count, rows.stop))) for i, start in enumerate(starts)
        ]
    return parts


class _Ranks:
    """The shards that are to do, divided among the ranks: rank 0 leads, the others follow."""

    def __init__(self, job: Job, shown: Shown, parts: list[Part], world: World) -> None:
        self.job, self.shown, self.parts, self.world, self.begun = job, shown, parts, world, False

    @cached_property
    def filler(self) -> Filler:
        job = self.job
        model = build(job.run)
        load_weights(model, job.checkpoint)
        model.to(self.world.device).eval()
        return Filler(model, self.shown, job.stored, job.settings, job.asked, job.maker, self.world.device)

    def lead(
        self, work: Work, entries: Sequence[Entry], todo: Todo, workers: int, report: Callable[[int], None]
    ) -> None:
        """What `write` calls on rank 0."""
        self.begun = True
        self.world.gather((work, [number for number, _ in todo]))
        self._write(work, todo, report)

    def follow(self) -> None:
        """Write this rank's part of what rank 0 finds to be done."""
        told = self.world.gather(None)[0]
        if isinstance(told, tuple):
            work, todo = told
            self._write(work, [(number, self.parts[number]) for number in todo], lambda count: None)
        elif told is not None:
            error = UserError(str(told))
            error.shared = True
            raise error

    def settle(self, failure: str | None) -> None:
        """On rank 0: tell those who still wait that there is nothing to be done, or why nothing can be."""
        if not self.begun:
            self.world.gather(failure)

    def _write(self, work: Work, todo: Todo, report: Callable[[int], None]) -> None:
        """This rank's share of the shards. Raises UserError on every rank where one of them cannot write its own."""
        rank, size = self.world.rank, self.world.size
        mine = todo[rank::size]
        others = [part for place, (_, part) in enumerate(todo) if place % size != rank]
        done, failure = 0, None
        try:
            with closing(self.filler.shards([part for _, part in mine], work.partial)) as shards:
                for (number, part), entries in zip(mine, shards, strict=True):
                    beside = sum(len(p.rows) for p in others if (work.partial / "rows" / f"{p.name}.arrow").exists())
                    write_shard(work, number, part.name, entries, lambda n, before=done + beside: report(before + n))  # type: ignore[misc]
                    done += len(part.rows)
        except UserError as error:
            failure = str(error)
        except OSError as error:
            failure = f"{error.filename or work.partial}: {error.strerror or error}"
        self.world.raise_together(failure)
