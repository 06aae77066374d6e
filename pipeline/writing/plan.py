"""What each shard holds: a pure function of the corpus and the shards' size, so that any call comes to the same."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from infra.errors import Unusable, UserError
from pipeline.shards import KEY, MODALITIES, NAME, SPLITS
from pipeline.writing.shard import encode, stored

if TYPE_CHECKING:
    from pipeline.corpora.corpus import Corpus, Entry

PROBES = 32
"""How many samples of a split tell how many fit into a shard."""


@dataclass(frozen=True)
class Part:
    """One shard to be written: its name without extension, and its entries' numbers in the corpus."""

    name: str
    rows: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What is written. Two plans that are equal give the same bytes."""

    corpus: str
    modalities: dict[str, list[Any]]
    shard_bytes: int
    keys: str
    """Hash of all keys and splits in their order."""
    values: str
    """Hash of the members of some samples."""


def planned(corpus: Corpus, entries: Sequence[Entry], shard_bytes: int) -> tuple[Plan, list[Part], float]:
    """The plan, its shards, and about how many bytes they will have."""
    _check_modalities(corpus)
    keys, split_of = _checked(corpus.name, entries)
    values, parts, total = xxhash.xxh3_128(), [], 0.0
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(split_of == number)
        probes = rows[np.unique(np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int))]
        taken = 0
        used = 0
        for row in probes:
            entry = entries[int(row)]
            try:
                members = encode(corpus.name, corpus.modalities, entry, corpus.load(entry))
            except Unusable:
                continue
            used += 1
            taken += sum(stored(data) for _, data in members.values())
            for name, (_, data) in members.items():
                values.update(f"{entry.key}.{name} {len(data)} ".encode() + data)
        each = taken / max(1, used)
        count = max(1, int(shard_bytes / each)) if each else max(1, len(rows))
        starts = range(0, len(rows), count)
        parts += [Part(f"{split}-{i:06d}", rows[start : start + count]) for i, start in enumerate(starts)]
        total += each * len(rows)
    for name, data in corpus.files.items():
        values.update(name.encode() + data)
    named = {name: [m.extension, list(m.shape)] for name, m in corpus.modalities.items()}
    return Plan(corpus.name, named, shard_bytes, keys, values.hexdigest()), parts, total


def _checked(corpus: str, entries: Sequence[Entry]) -> tuple[str, np.ndarray]:
    """A hash of keys and splits, and each entry's split as a number. Raises UserError, also for a key that is twice."""
    hashes, splits = array("Q"), array("B")
    for entry in entries:
        if not KEY.fullmatch(entry.key):
            raise UserError(
                f"corpus {corpus}: key {entry.key!r}: use letters, digits, '_' and '-', '/' between, no '__' first"
            )
        if entry.split not in SPLITS:
            raise UserError(f"corpus {corpus}: {entry.key} is in split {entry.split!r}, not one of {SPLITS}")
        hashes.append(xxhash.xxh3_64_intdigest(entry.key.encode()))
        splits.append(SPLITS.index(entry.split))
    if not hashes:
        raise UserError(f"corpus {corpus}: no samples, nothing written")
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[str] = set()
    for entry, value in zip(entries, hashes, strict=True) if suspects else ():
        if value in suspects and entry.key in seen:
            raise UserError(f"corpus {corpus}: two samples have the key {entry.key!r}")
        if value in suspects:
            seen.add(entry.key)
    return xxhash.xxh3_128_hexdigest(bytes(hashes) + bytes(splits)), np.frombuffer(splits, np.uint8)


def _check_modalities(corpus: Corpus) -> None:
    if len(corpus.modalities) > MODALITIES:
        raise UserError(
            f"corpus {corpus.name}: {len(corpus.modalities)} modalities, a data set holds at most {MODALITIES}"
        )
    for name in corpus.modalities:
        if not NAME.fullmatch(name):
            raise UserError(
                f"corpus {corpus.name}: modality {name!r}: use small letters, digits, '_' and '-' only, no '_' first"
            )
