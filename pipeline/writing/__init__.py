"""Write a corpus as shards and their manifest: in parallel, taken up again where it was cut off, whole or not at all.

Beside the directory OUT that is to appear, OUT.partial holds

    lock, plan.json    one writer at a time, and what it writes: only the same is taken up again
    rows/NAME.arrow    the manifest's rows of a finished shard
    data/NAME.tar      a finished shard; at the end also the manifest, and then data/ is renamed to OUT
    *.tmp              what is being written just now

Which samples a shard holds follows from the corpus and the shards' size alone, and so do its bytes: neither the number
of processes nor an interruption shows in the result.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from infra.disk import sync_to_disk, write_whole
from infra.errors import UserError
from pipeline.manifest import DAMAGE
from pipeline.writing.merging import merge, rows_of, skipped_of
from pipeline.writing.plan import Part, Plan, planned
from pipeline.writing.shard import Work, begin, write_in_worker, write_shard

if TYPE_CHECKING:
    from pipeline.corpora.corpus import Corpus, Entry

SHARD_BYTES = 64 * 2**20
"""A few seconds of writing, so that processes can share the work; large enough for reads in long stretches."""
WORTH = 32 * 2**20
"""Bytes that are worth a process more: it takes a second or two to start."""

Progress = Callable[[int, int], None]
"""Called now and then with the samples that are written and all samples."""
Todo = list[tuple[int, Part]]
Writer = Callable[[Work, Sequence["Entry"], Todo, int, Callable[[int], None]], None]
"""Writes the shards that are to do, by `write_shard`: of what, the entries, which, by how many processes; and is to
report how many samples that makes so far."""


@dataclass(frozen=True)
class Written:
    """What a call of `write` did."""

    fingerprint: str
    samples: int
    """Samples that this call wrote."""
    kept: int
    """Shards that were there already."""
    skipped: int = 0
    """Samples that could not be used; they stand in SKIPPED."""
    notes: tuple[str, ...] = ()
    """What the corpus says of its files."""


def write(
    out: Path,
    corpus: Corpus,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 0,
    progress: Progress | None = None,
    source: Path | None = None,
    planning: Callable[[Corpus, Sequence[Entry], int], tuple[Plan, list[Part], float]] = planned,
    writer: Writer | None = None,
    late: Callable[[Path], Mapping[str, bytes]] = lambda partial: {},
) -> Written:
    """Write a corpus as shards of about `shard_bytes` and their manifest into `out`, by `workers` processes (0: one
    per core, where there is enough for them to do), from its official files in `source`, where it needs any.

    Who knows more about the samples than the corpus tells can plan the shards and write them otherwise; `late` makes
    small files beside the shards that are known only when these are written, from what lies in OUT.partial.

    `out` appears whole or not at all. What an interrupted call or an error left finished is taken up by the next call.
    Raises UserError for a duplicate or unusable key, a value that does not fit its modality, a place that cannot be
    written, or one at which something else is being written.
    """
    out = out.resolve()
    partial = out.with_name(out.name + ".partial")
    try:
        _check_free(out, partial)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        with FileLock(partial / "lock", timeout=0):
            try:
                _check_free(out, partial)  # another process may have finished in between
                entries = corpus.entries(source)
                plan = planning(corpus, entries, shard_bytes)
                return _write_into(partial, out, corpus, entries, plan, workers, progress, writer, late)
            finally:
                if not any((partial / "data").glob("*.tar")):
                    shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise UserError(f"{out} is being written by another process: wait for it, or choose another --out") from None
    except OSError as error:
        raise UserError(_cannot(out, error)) from None


def _cannot(out: Path, error: OSError) -> str:
    return f"cannot prepare {out}: {error.filename or 'writing'}: {error.strerror or error}"


def _check_free(out: Path, partial: Path) -> None:
    """Raise UserError where something stands that this module has not written."""
    if out == Path.cwd():
        raise UserError(f"{out} is the working directory: choose a directory below it for --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: choose another --out, or remove it first")
    if partial.is_dir() and not (partial / "plan.json").exists():
        strange = [path.name for path in partial.iterdir() if path.name != "lock" and path.suffix != ".tmp"]
        if strange:
            raise UserError(f"{partial} holds {strange[0]!r}, left by no prepare that can go on: remove it first")


def _write_into(
    partial: Path,
    out: Path,
    corpus: Corpus,
    entries: Sequence[Entry],
    decided: tuple[Plan, list[Part], float],
    workers: int,
    progress: Progress | None,
    writer: Writer | None,
    late: Callable[[Path], Mapping[str, bytes]],
) -> Written:
    plan, parts, size = decided
    _take_up(partial, plan)
    numbered = list(enumerate(parts))
    todo = [(number, part) for number, part in numbered if not _finished(partial, part)]
    kept = len(entries) - sum(len(part.rows) for _, part in todo)

    def report(samples: int) -> None:
        if progress:
            progress(kept + samples, len(entries))

    report(0)
    work = Work(partial, corpus.name, dict(corpus.modalities), corpus.load)
    workers = min(workers or min(len(os.sched_getaffinity(0)), 1 + int(size // WORTH)), len(todo))
    write_parts = writer or (_in_this_process if workers <= 1 else _in_processes)
    try:
        write_parts(work, entries, todo, workers, report)
        fingerprint, skipped = merge(partial, corpus, entries, parts, {**corpus.files, **late(partial)})
        mine = sum(skipped[number] for number, _ in todo)
        os.replace(partial / "data", out)  # an empty directory gives way, any other refuses
        sync_to_disk(out.parent)
    except (Exception, KeyboardInterrupt) as error:
        done = sum((partial / "data" / f"{part.name}.tar").exists() for part in parts)
        hint = (
            f"{done} of {len(parts)} shards are finished in {partial}: the same command goes on from there "
            "(if what you mend changes their values, remove that directory first)"
        )
        if not done:
            raise
        if not isinstance(error, UserError | OSError):
            error.add_note(hint)
            raise
        raise UserError(f"{_cannot(out, error) if isinstance(error, OSError) else error}; {hint}") from None
    return Written(fingerprint, len(entries) - kept - mine, len(parts) - len(todo), sum(skipped))


def _take_up(partial: Path, plan: Plan) -> None:
    """Make the directory ready for this plan. Raises UserError where shards of another one are finished in it."""
    path, ours = partial / "plan.json", asdict(plan)
    if path.exists() and any((partial / "data").glob("*.tar")):
        theirs = json.loads(path.read_text())
        differ = [name for name in ours if theirs.get(name) != ours[name]]
        if differ:
            raise UserError(
                f"{partial} holds finished shards of something else (other {', '.join(differ)}; corpus "
                f"{theirs.get('corpus')!r}): remove it to begin anew, or choose another --out"
            )
    for leftover in partial.glob("*.tmp"):
        leftover.unlink()
    for name in ("data", "rows"):
        (partial / name).mkdir(exist_ok=True)
    write_whole(path, json.dumps(ours))


# Writing


def _finished(partial: Path, part: Part) -> bool:
    tar, rows = partial / "data" / f"{part.name}.tar", partial / "rows" / f"{part.name}.arrow"
    if not (tar.is_file() and rows.is_file()):
        return False
    try:
        table = rows_of(rows)
        whole = len(table) + len(skipped_of(table)) == len(part.rows)
        return whole and int(table.schema.metadata[b"bytes"]) == tar.stat().st_size
    except DAMAGE:
        return False


def _in_this_process(
    work: Work, entries: Sequence[Entry], todo: Todo, workers: int, report: Callable[[int], None]
) -> None:
    before = 0
    for number, part in todo:
        mine = (entries[int(row)] for row in part.rows)
        write_shard(work, number, part.name, mine, lambda count, before=before: report(before + count))  # type: ignore[misc]
        before += len(part.rows)


def _in_processes(
    work: Work, entries: Sequence[Entry], todo: Todo, workers: int, report: Callable[[int], None]
) -> None:
    context = get_context("spawn")
    samples = context.RawArray("Q", max(number for number, _ in todo) + 1)  # by shard: each has one writer, no locks
    stop = context.RawValue("b", 0)
    queue, running = iter(todo), set[Future[None]]()
    with ProcessPoolExecutor(workers, context, begin, (work, samples, stop)) as pool:
        try:
            while True:
                for number, part in itertools.islice(queue, workers + 1 - len(running)):
                    mine = [entries[int(row)] for row in part.rows]
                    running.add(pool.submit(write_in_worker, number, part.name, mine))
                if not running:
                    return
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                report(int(np.frombuffer(samples, np.uint64).sum()))
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process that writes shards was killed: is there too little memory? try --workers 1"
            ) from None
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)
