"""Write one shard and the manifest's rows of it: what each process that writes shards does."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from infra.errors import Unusable, UserError
from modalities import Modality
from pipeline.manifest import BLOCK, MEMBER, SCHEMA
from pipeline.shards import NAME_BYTES
from pipeline.writing.tar import TarWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.corpora.corpus import Entry, Values

BUFFER = 2**20
"""Bytes that are given to the system at once: members are small, and each call lets other threads in."""
REPORT = 64
"""After how many samples a shard's writer says how far it is, and hears whether to stop."""
Members = dict[str, tuple[int, bytes]]
"""Of one sample, by MODALITY[.N].EXT: the modality's number and the bytes; sorted by modality, then instance."""


@dataclass(frozen=True)
class Work:
    """What all shards of a corpus have in common."""

    partial: Path
    corpus: str
    modalities: dict[str, Modality]
    load: Callable[[Entry], Values]


def encode(corpus: str, modalities: Mapping[str, Modality], entry: Entry, values: Values) -> Members:
    """The members of one sample. Raises UserError where a value does not fit its modality."""
    unknown = [name for name in values if name not in modalities]
    if unknown:
        raise UserError(f"corpus {corpus}: {entry.key} has {unknown[0]!r}, no modality of {', '.join(modalities)}")
    members: Members = {}
    for number, (name, modality) in enumerate(modalities.items()):
        if name not in values:
            continue
        value = values[name]
        several = isinstance(value, list)
        for instance, one in enumerate(value if several else [value]):
            try:
                data = one if isinstance(one, bytes) else modality.encode(one)
            except ValueError as error:
                raise UserError(f"corpus {corpus}: {entry.key}, modality {name}: {error}") from None
            member = f"{name}.{instance}.{modality.extension}" if several else f"{name}.{modality.extension}"
            if len(entry.key) + 1 + len(member) > NAME_BYTES:
                raise UserError(
                    f"corpus {corpus}: {entry.key}.{member} is a longer name than tar's {NAME_BYTES} letters"
                )
            members[member] = (number, data)
    return members


def stored(data: bytes) -> int:
    """Bytes that a member takes in a tar: a header, and its own bytes in whole blocks."""
    return BLOCK + -(-len(data) // BLOCK) * BLOCK


def write_shard(work: Work, number: int, name: str, entries: Iterable[Entry], report: Callable[[int], None]) -> None:
    """Write shard `number` and its rows; each appears by rename, the shard last.

    What the rows say of themselves: the shard's size in bytes, and [key, reason] of each sample that was left out.
    """
    columns = {"modality": array("H"), "block": array("I"), "size": array("I"), "checksum": array("Q")}
    keys: list[str] = []
    skipped: list[tuple[str, str]] = []
    first = array("i", [0])
    with _appearing(work.partial / "data" / f"{name}.tar", work.partial) as file:
        tar = TarWriter(file)
        for entry in entries:
            try:
                members = encode(work.corpus, work.modalities, entry, work.load(entry))
            except Unusable as error:
                skipped.append((entry.key, str(error)))
                continue
            blocks = {}
            for member in sorted(members):  # the order in which webdataset writes them
                blocks[member] = tar.written // BLOCK + 1
                tar.write(f"{entry.key}.{member}", members[member][1])
            for member, (modality, data) in members.items():
                columns["modality"].append(modality)
                columns["block"].append(blocks[member])
                columns["size"].append(len(data))
                columns["checksum"].append(xxhash.xxh3_64_intdigest(data))
            keys.append(entry.key)
            first.append(len(columns["size"]))
            if len(keys) % REPORT == 0:
                report(len(keys))
        tar.close()
        file.flush()
        columns["shard"] = array("I", [number]) * len(columns["size"])
        meta = {"bytes": str(file.tell()), "skipped": json.dumps(skipped)}
        _write_rows(work.partial, name, meta, keys, first, columns)
    report(len(keys) + len(skipped))


def _write_rows(
    partial: Path,
    name: str,
    meta: dict[str, str],
    keys: list[str],
    first: array[int],
    columns: Mapping[str, array[int]],
) -> None:
    struct = pa.StructArray.from_arrays(
        [pa.array(np.frombuffer(columns[f.name], str(f.type))) for f in MEMBER], fields=list(MEMBER)
    )
    lists = pa.ListArray.from_arrays(pa.array(np.frombuffer(first, np.int32)), struct)
    schema = SCHEMA.with_metadata(meta)
    with _appearing(partial / "rows" / f"{name}.arrow", partial) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(keys, pa.string()), lists], schema=schema))


@contextmanager
def _appearing(path: Path, partial: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole, on the disk, or not at all."""
    temporary = partial / f"{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb", BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# In a process of its own


class Stopped(Exception):
    """The others have met an error, or were interrupted."""


_mine: tuple[Work, Any, Any]


def begin(work: Work, samples: Any, stop: Any) -> None:
    """Called first in each process that `write_in_worker` runs in."""
    import signal
    from multiprocessing import parent_process
    from threading import Thread

    global _mine
    _mine = work, samples, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent stops us

    def follow() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # it was killed: nobody would take our work, and the next prepare must find nobody here

    Thread(target=follow, daemon=True).start()


def write_in_worker(number: int, name: str, entries: list[Entry]) -> None:
    """`write_shard` in a process that `begin` has prepared."""
    work, samples, stop = _mine

    def report(count: int) -> None:
        samples[number] = count
        if stop.value:
            raise Stopped

    write_shard(work, number, name, entries, report)
