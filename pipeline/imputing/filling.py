"""The samples of one shard, completed: what is there as the bytes that it is, what is missing as a model makes it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.errors import Unusable
from modalities import Modality
from pipeline.batch import Batch
from pipeline.collate import prefetch
from pipeline.completing import batch_of
from pipeline.corpora.corpus import Entry, Values
from pipeline.imputing.marks import Maker, Marks
from pipeline.imputing.rows import Shown
from pipeline.imputing.settings import Settings
from pipeline.imputing.values import made, storable
from pipeline.model import MultimodalVAE
from pipeline.posteriors import generates
from pipeline.shards import Corrupt, Reader
from pipeline.writing.plan import Part

TOGETHER = 1024
"""Rows times samples of z that go through a decoder at once."""


@dataclass
class _Row:
    """A sample that is being completed."""

    entry: Entry
    """Its source is its number."""
    there: dict[str, list[bytes]] = field(default_factory=dict)
    """What may be seen of it, by member."""
    members: dict[str, list[bytes]] = field(default_factory=dict)
    """What is written, by member."""
    given: dict[str, Any] = field(default_factory=dict)
    """What the model sees, by modality."""
    lacks: Sequence[str] = ()
    """Members that are missing and asked for."""
    place: int = -1
    """Its row of the batch, where the model makes something of it."""
    unusable: Unusable | None = None


@dataclass
class _Chunk:
    """Rows that go through the networks together."""

    rows: list[_Row]
    batch: Batch | None = None
    """Those of which the model makes something."""
    needs: dict[str, np.ndarray] = field(default_factory=dict)
    """By modality: the rows of the batch of which it is made."""
    made: dict[str, dict[int, tuple[np.ndarray, float]]] = field(default_factory=dict)
    """By modality and row of the batch: value and spread."""
    variance: list[float] = field(default_factory=list)
    """Of the log weights, for each row of the batch."""


@dataclass(frozen=True)
class Filler:
    """What completes rows with a model; one a process."""

    model: MultimodalVAE
    shown: Shown
    stored: Mapping[str, Modality]
    """The members of the new data set, by name, in their order: how what is made is stored."""
    settings: Settings
    asked: Sequence[str]
    """Members that are filled in where they are missing."""
    maker: Maker
    device: torch.device

    @cached_property
    def reader(self) -> Reader:
        return Reader([self.shown.manifest])

    @cached_property
    def parts_of(self) -> dict[str, list[str]]:
        """By member: the model's modalities that lie in it."""
        return parts_of(self.model.modalities)

    # Few kinds of rows make up a data set, so what follows from the kind is worked out once.

    @cached_property
    def made_of(self) -> Callable[[frozenset[str], tuple[str, ...]], frozenset[str]]:
        """Of the modalities that are given and the members that are lacking: what the model makes for them."""

        @cache
        def made_of(given: frozenset[str], lacks: tuple[str, ...]) -> frozenset[str]:
            names = list(self.model.modalities)
            wanted = {name for member in lacks for name in self.parts_of[member]} - given
            return frozenset(name for name in wanted if generates(self.model.family, names, name, given))

        return made_of

    @cached_property
    def kind_of(self) -> Callable[[tuple[bool, ...], bool], tuple[set[str], set[str], set[str]]]:
        """Of what a row shows: its modalities, the members that are looked at, and those that are copied."""

        @cache
        def kind_of(shown: tuple[bool, ...], whole: bool) -> tuple[set[str], set[str], set[str]]:
            visible = {name for name, yes in zip(self.model.modalities, shown, strict=True) if yes}
            strangers = self.stored.keys() - self.parts_of.keys() if whole else set()
            looked_at = {member for member, parts in self.parts_of.items() if visible.intersection(parts)}
            copied = {member for member in looked_at if visible.issuperset(self.parts_of[member])}
            return visible, looked_at | strangers, copied | strangers

        return kind_of

    def shards(self, parts: Sequence[Part], partial: Path) -> Generator[Iterator[Entry]]:
        """The rows of each shard, whose values come along as the source of their entries; a source that is an Unusable
        is for `values_of` to raise. Leaves a shard's marks behind, once all its rows were asked for."""
        count = max(1, TOGETHER // self.settings.samples)
        some = [
            (number, part.rows[start : start + count])
            for number, part in enumerate(parts)
            for start in range(0, len(part.rows), count)
        ]
        # While rows are written, a thread has the model make the next ones, and another reads those behind them.
        read = prefetch(lambda place: self._read(some[place][1]), 0, len(some), workers=1, depth=1)
        made = prefetch(lambda place: (some[place][0], self._made(next(read))), 0, len(some), workers=1, depth=1)
        for number, chunks in groupby(made, itemgetter(0)):
            yield self._entries((chunk for _, chunk in chunks), partial, parts[number].name)

    def _entries(self, chunks: Iterator[_Chunk], partial: Path, shard: str) -> Iterator[Entry]:
        marks = Marks()
        for chunk in chunks:
            self._fill(chunk, marks)
            for row in chunk.rows:
                values = {name: data if len(data) > 1 else data[0] for name, data in row.members.items()}
                yield row.entry._replace(source=row.unusable or values)
        marks.write(partial, shard, self.maker)

    def _read(self, numbers: np.ndarray) -> _Chunk:
        manifest, sample = self.shown.manifest, self.shown.sample[numbers]
        once, place = np.unique(sample, return_inverse=True)  # a view may show a sample in several rows
        first = manifest.first[once].astype(np.int64)
        count = manifest.first[once + 1].astype(np.int64) - first
        start = np.cumsum(count) - count
        members = np.arange(count.sum()) + np.repeat(first - start, count)
        held, names = self.reader.read(members), list(manifest.modalities)
        kinds = [names[kind] for kind in manifest.modality[members].tolist()]
        begin, end = start[place].tolist(), (start + count)[place].tolist()
        rows = []
        for entry, a, b, shown in zip(
            self.shown.entries(numbers), begin, end, map(tuple, self.shown.shown(numbers).tolist()), strict=True
        ):
            row = _Row(entry)
            visible, looked_at, copied = self.kind_of(shown, entry.split in self.shown.whole)
            for name, data in zip(kinds[a:b], held[a:b], strict=True):
                if name not in looked_at:
                    continue
                if isinstance(data, Corrupt):
                    row.unusable = Unusable(f"{name}: {data}")
                else:
                    row.there.setdefault(name, []).append(data)
            row.members = {name: data_of for name, data_of in row.there.items() if name in copied}
            if entry.split in self.settings.splits and not row.unusable:
                row.lacks = tuple(name for name in self.asked if name not in row.members)
                row.given = dict.fromkeys(
                    name for member in row.there for name in self.parts_of.get(member, ()) if name in visible
                )
            rows.append(row)
        self._decode([row for row in rows if row.lacks])
        return self._batched(rows)

    def _decode(self, rows: Sequence[_Row]) -> None:
        """What the model sees of these rows; of several instances the first."""
        for name, modality in self.model.modalities.items():
            mine = [row for row in rows if name in row.given]
            members = [row.there[modality.member(name)][0] for row in mine]
            try:
                values = list(modality.decode(members))
            except ValueError:  # one of them does not fit: find out which
                values = [_alone(row, modality, name, data) for row, data in zip(mine, members, strict=True)]
            for row, value in zip(mine, values, strict=True):
                row.given[name] = value

    def _batched(self, rows: list[_Row]) -> _Chunk:
        able: list[_Row] = []
        needs: dict[str, list[int]] = {name: [] for name in self.model.modalities}
        for row in rows:
            wanted = () if row.unusable else self.made_of(frozenset(row.given), tuple(row.lacks))
            if wanted:
                row.place = len(able)
                able.append(row)
            for name in wanted:
                needs[name].append(row.place)
        if not able:
            return _Chunk(rows)
        columns = {name: [row.given.get(name) for row in able] for name in self.model.modalities}
        batch = batch_of(self.model.modalities, columns)
        batch = replace(batch, row_B=torch.tensor([row.entry.source for row in able]))
        return _Chunk(rows, batch, {name: np.array(places) for name, places in needs.items() if places})

    def _made(self, chunk: _Chunk) -> _Chunk:
        """With what the model makes."""
        torch.set_num_threads(torch.get_num_threads())  # in a new thread the first product would take every core
        if chunk.batch is not None:
            found, variance = made(self.model, chunk.batch.to(self.device), chunk.needs, self.settings)
            for name, places in chunk.needs.items():
                ones = zip(found[name].values, found[name].spread.tolist(), strict=True)
                chunk.made[name] = dict(zip(places.tolist(), ones, strict=True))
            chunk.variance = variance.tolist()
        return chunk

    def _fill(self, chunk: _Chunk, marks: Marks) -> None:
        """Write the members of rows where the model made what is missing of them, and is sure enough."""
        sure: dict[str, list[tuple[_Row, np.ndarray]]] = {}
        for row in chunk.rows:
            for member in row.lacks if not row.unusable else ():
                parts = {name: chunk.made.get(name, {}).get(row.place) for name in self.parts_of[member]}
                if any(one is None and name not in row.given for name, one in parts.items()):
                    marks.counts.unanswerable[member] += 1
                    continue
                spreads = [one[1] for one in parts.values() if one is not None]
                spread = sum(spreads) / len(spreads)
                if not spread <= self.settings.doubt.get(member, 1.0):  # nor where it is no number
                    marks.counts.doubtful[member] += 1
                    continue
                values = [row.given[name] if one is None else one[0] for name, one in parts.items()]
                value = values[0] if len(values) == 1 else np.concatenate(values)
                sure.setdefault(member, []).append((row, value))
                marks.add(row.entry.key, member, spread, chunk.variance[row.place])
        for member, some in sure.items():
            modality = self.stored[member]
            stored = storable(modality, np.stack([value for _, value in some]))
            for (row, _), value in zip(some, stored, strict=True):
                row.members[member] = [modality.encode(value)]


def _alone(row: _Row, modality: Modality, name: str, data: bytes) -> np.ndarray:
    """A row's value; zeros where it is none, and the row cannot be used."""
    try:
        value: np.ndarray = modality.decode([data])[0]
    except ValueError as error:
        row.unusable = Unusable(f"{name}: {error}")
        return np.zeros(modality.shape, modality.dtype)
    return value


def parts_of(modalities: Mapping[str, Modality]) -> dict[str, list[str]]:
    """By member: the modalities that lie in it, in the order in which they lie there."""
    parts: dict[str, list[str]] = {}
    for name, modality in sorted(modalities.items(), key=lambda item: getattr(item[1], "first", 0)):
        parts.setdefault(modality.member(name), []).append(name)
    return parts


def values_of(entry: Entry) -> Values:
    """The values that an entry brings along."""
    if isinstance(entry.source, Unusable):
        raise entry.source
    values: Values = entry.source
    return values
