"""A manifest for WebDataset tars that somebody else made; their bytes stay where they are.

A damaged shard never gives unpaired samples: what lies behind the damage is left out, and so is the sample that was
open there. Where keys come back as well (as in a tar sorted by extension), any sample may have lost members: then only
samples that have every modality are kept. Tar guards its headers by sums, but not the extra blocks for names over 100
letters: a byte that flips there goes unseen and gives another key.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from infra.errors import UserError
from pipeline.manifest import BLOCK, NAME, Manifest, Shard, open_manifest
from pipeline.rules import Rules
from pipeline.scanning import Member, Run, Scan, scan
from pipeline.shards import INDEXED, KEY, ROW, SPLITS
from pipeline.writing.manifest import write_manifest

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""What compressed files begin with."""
Entry = dict[str, str | int]


@dataclass
class Findings:
    """What was met on the way; each entry says shard, key and offset."""

    unnamed: Counter[str] = field(default_factory=Counter)
    """Members that no rule names, by extension."""
    interleaved: list[Entry] = field(default_factory=list)
    """Keys that came back behind other keys; their members were joined into one sample."""
    duplicates: list[Entry] = field(default_factory=list)
    """Members that a sample had already; the first was kept."""
    refused: list[Entry] = field(default_factory=list)
    """Keys and members that no manifest can hold; these samples were left out."""
    damaged: list[Entry] = field(default_factory=list)
    """Where a shard is no tar, with the key of the sample that was left out."""
    incomplete: int = 0
    """Samples left out because members may have been lost: keys come back, and a shard is damaged."""


@dataclass(frozen=True)
class Indexed:
    """The manifest that was written."""

    fingerprint: str
    samples: int
    members: dict[str, int]
    """By modality; 0 where no member fits its rules."""
    shards: int
    findings: Findings


def index(
    shards: Sequence[Path],
    out: Path,
    rules: Rules,
    split: str = "train",
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Indexed:
    """Write the manifest of these shards into `out`; `progress` is told the bytes of each shard that is done.

    A shard whose name begins with train, val or test is of that split, any other of `split`. The result does not
    depend on `workers` (processes; 0: one a core). Raises UserError.
    """
    try:
        table = _Table(rules)
        paths = sorted(tars(shards), key=lambda path: SPLITS.index(_split(path, split)))
        listed = [Shard(_name(path, out), path.stat().st_size) for path in paths]
        existing = open_manifest(out) if (out / NAME).exists() else None
        if existing and (existing.corpus, existing.shards) != (INDEXED, listed):
            raise _occupied(out, existing)
        for path, shard, found in zip(paths, listed, _scan(paths, rules, workers), strict=True):
            table.add(_split(path, split), shard.name, found)
            progress(shard.bytes)
        return _write(table, out, listed, existing)
    except OSError as error:
        raise UserError(f"cannot index into {out}: {error.filename or 'reading'}: {error.strerror or error}") from None


def tars(shards: Sequence[Path]) -> list[Path]:
    """The tar files that are meant: those given, and all *.tar of the directories given. Raises UserError."""
    paths: list[Path] = []
    for given in shards:
        inside = sorted(given.glob("*.tar")) if given.is_dir() else [given]
        if not inside:
            raise UserError(f"{given}: no *.tar in this directory")
        paths += inside
    for path in paths:
        if not path.is_file():
            remote = " (only local tars can be indexed)" if ":/" in str(path) else ""
            raise UserError(f"{path}: no such file{remote}")
        with path.open("rb") as file:
            head = file.read(6)
        for magic, name in COMPRESSED.items():
            if head.startswith(magic):
                raise UserError(f"{path} is compressed ({name}): members cannot be read by offset; decompress it first")
    for same, count in Counter(os.path.realpath(path) for path in paths).items():
        if count > 1:
            raise UserError(f"{same} is given {count} times")
    if not paths:
        raise UserError("no shards: give tars, or directories that hold some")
    return paths


def _split(path: Path, default: str) -> str:
    return next((split for split in SPLITS if path.name.startswith(split)), default)


def _name(path: Path, out: Path) -> str:
    """Relative to the manifest where the shard lies beside or below it, else absolute."""
    here, there = Path(os.path.abspath(path)), Path(os.path.abspath(out))
    return here.relative_to(there).as_posix() if here.is_relative_to(there) else str(here)


def _scan(paths: list[Path], rules: Rules, workers: int) -> Iterator[Scan]:
    """What each shard holds, in the order of the paths."""
    processes = min(workers or len(os.sched_getaffinity(0)), len(paths))
    if processes == 1:
        yield from map(scan, paths, repeat(rules))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(scan, paths, repeat(rules))
        finally:
            pool.shutdown(cancel_futures=True)


class _Table:
    """Samples as they come in; of two members with one key, modality and instance the first is kept."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.names = list(rules.modalities)
        self.row: dict[str, int] = {}
        self.splits: dict[str, range] = {}
        self.held: list[frozenset[tuple[int, str]]] = []
        """Per sample, which (modality, instance) it has; the sets are shared among samples."""
        self.owner: list[np.ndarray] = []
        self.members: list[np.ndarray] = []
        self.shards = 0
        self.spoiled: set[str] = set()
        self.scattered = False
        self.findings = Findings()
        self._sets: dict[frozenset[tuple[int, str]], frozenset[tuple[int, str]]] = {}

    def add(self, split: str, shard: str, found: Scan) -> None:
        """Take over what one shard holds; shards of a split follow one another."""
        findings, start = self.findings, self.splits.get(split, range(len(self.row), 0)).start
        owner: list[int] = []
        members: list[tuple[int, int, int, int, int]] = []
        for run in found.runs:
            if not KEY.fullmatch(run.key):
                if run.members:
                    reason = "a key with more than letters, digits, '_' and '-'"
                    findings.refused.append(_at(shard, run.key, run.offset, reason=reason))
                continue
            row = self.row.setdefault(run.key, len(self.row))
            if row < len(self.held):
                findings.interleaved.append(_at(shard, run.key, run.offset))
                self.scattered = True
            else:
                self.held.append(frozenset())
            for member in self._new(run, row, shard, foreign=row < start):
                owner.append(row)
                members.append((member.modality, self.shards, member.offset // BLOCK, member.size, member.checksum))
        self.splits[split] = range(start, len(self.row))
        self.owner.append(np.array(owner, np.int64))
        self.members.append(np.array(members, ROW))
        self.shards += 1
        findings.unnamed += found.unnamed
        for key, offset, reason in found.refused:
            findings.refused.append(_at(shard, key, offset, reason=reason))
            self.spoiled.add(key)
        if found.damage:
            key, offset, reason = found.damage
            findings.damaged.append(_at(shard, key, offset, reason=reason))
            self.spoiled.add(key)

    def _new(self, run: Run, row: int, shard: str, foreign: bool) -> list[Member]:
        """The members that the sample does not have yet; the others, and those of another split's key, are noted."""
        have, new = set(self.held[row]), []
        for member in run.members:
            slot = (member.modality, member.instance)
            if foreign or slot in have:
                reason = "its key belongs to another split" if foreign else "the sample has it already"
                where = _at(shard, run.key, member.offset, modality=self.names[member.modality], reason=reason)
                self.findings.duplicates.append(where)
                continue
            have.add(slot)
            new.append(member)
        frozen = frozenset(have)
        self.held[row] = self._sets.setdefault(frozen, frozen)
        return new

    def kept(self) -> np.ndarray:
        """Which samples the manifest gets: no doubt is left whether they lack members."""
        keep = np.array([bool(held) for held in self.held], bool)
        for key in self.spoiled:
            if key in self.row:
                keep[self.row[key]] = False
        if self.scattered and self.findings.damaged:
            kinds = {held: {modality for modality, _ in held} for held in self._sets}
            everything = set().union(*kinds.values())
            complete = np.array([kinds[held] == everything for held in self.held], bool)
            self.findings.incomplete = int((keep & ~complete).sum())
            keep &= complete
        return keep


def _at(shard: str, key: str, offset: int, **more: str) -> Entry:
    return {"shard": shard, "key": key, "offset": offset, **more}


def _write(table: _Table, out: Path, shards: list[Shard], existing: Manifest | None) -> Indexed:
    keep, findings = table.kept(), table.findings
    if not keep.any():
        seen = ", ".join(f".{ext} ({count:,})" for ext, count in findings.unnamed.most_common(8)) or "none"
        raise UserError(
            f"no usable sample in {len(shards)} shards: extensions that no rule names: {seen}; damaged shards: "
            f"{len(findings.damaged)}; keys or members that no manifest can hold: {len(findings.refused)}"
            + "".join(f"; {e['shard']} at byte {e['offset']}: {e['reason']}" for e in findings.damaged[:1])
        )
    owner, members = np.concatenate(table.owner), np.concatenate(table.members)
    owner, members = owner[keep[owner]], members[keep[owner]]
    order = np.lexsort((members["modality"], owner))  # stable: instances stay in the order of the shards
    owner, members = owner[order], members[order]
    used, members["modality"] = np.unique(members["modality"], return_inverse=True)
    described = {table.names[number]: table.rules.modalities[table.names[number]] for number in used}
    before = np.concatenate([[0], np.cumsum(keep)])  # how many are kept in front of a row
    splits = {name: range(int(before[rows.start]), int(before[rows.stop])) for name, rows in table.splits.items()}
    splits = {name: rows for name, rows in splits.items() if rows}
    keys = [key for key, row in table.row.items() if keep[row]]
    counts = np.bincount(owner, minlength=len(keep))[keep]
    first = np.concatenate([[0], np.cumsum(counts)])
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".index-") as scratch:
        fingerprint = write_manifest(Path(scratch), INDEXED, described, shards, splits, keys, first, members)
        if existing and existing.fingerprint != fingerprint:
            raise _occupied(out, existing)
        if not existing:
            os.replace(Path(scratch) / NAME, out / NAME)
    held = np.bincount(members["modality"], minlength=len(used))
    number = {name: int(count) for name, count in zip(described, held, strict=True)}
    return Indexed(fingerprint, len(keys), {n: number.get(n, 0) for n in table.names}, len(shards), findings)


def _occupied(out: Path, existing: Manifest) -> UserError:
    return UserError(
        f"{out} holds another manifest ({existing.corpus}, fingerprint {existing.fingerprint}): "
        f"choose another --out, or remove {out / NAME} first"
    )
