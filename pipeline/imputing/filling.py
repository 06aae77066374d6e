"""The samples of one shard, completed: what is there as the bytes that it is, what is missing as a model makes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.errors import Unusable
from modalities import Modality
from pipeline.collate import prefetch
from pipeline.completing import batch_of
from pipeline.corpora.corpus import Entry, Values
from pipeline.imputing.marks import Maker, Marks
from pipeline.imputing.rows import Shown
from pipeline.imputing.settings import Settings
from pipeline.imputing.values import Made, made, storable
from pipeline.model import MultimodalVAE
from pipeline.posteriors import generates
from pipeline.shards import Corrupt, Reader

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
    lacks: list[str] = field(default_factory=list)
    """Members that are missing and asked for."""
    unusable: Unusable | None = None


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

    @cached_property
    def _answers(self) -> dict[frozenset[str], frozenset[str]]:
        return {}

    def answers(self, given: frozenset[str]) -> frozenset[str]:
        """The modalities that the model makes of these; of nothing it makes none."""
        if given not in self._answers:
            names = list(self.model.modalities)
            able = [n for n in names if n not in given and generates(self.model.family, names, n, given)]
            self._answers[given] = frozenset(able)
        return self._answers[given]

    def entries(self, rows: np.ndarray, partial: Path, shard: str) -> Iterator[Entry]:
        """The rows of a shard, whose values come along as the source of their entries; a source that is an Unusable is
        for `values_of` to raise. Leaves the shard's marks behind, once all rows were asked for."""
        marks, count = Marks(), max(1, TOGETHER // self.settings.samples)

        def complete(number: int) -> list[_Row]:
            return self._completed(rows[number * count : (number + 1) * count], marks)

        # in a thread of their own, in which one follows the other: the next are made while these are written
        for some in prefetch(complete, 0, -(-len(rows) // count), workers=1, depth=1):
            for row in some:
                values = {name: data if len(data) > 1 else data[0] for name, data in row.members.items()}
                yield row.entry._replace(source=row.unusable or values)
        marks.write(partial, shard, self.maker)

    def _completed(self, numbers: np.ndarray, marks: Marks) -> list[_Row]:
        rows = self._read(numbers)
        able = [row for row in rows if row.lacks and not row.unusable and self.answers(frozenset(row.given))]
        values, variance = self._made(able)
        place = {row.entry.source: index for index, row in enumerate(able)}
        for row in rows:
            if row.unusable:
                continue
            for member in row.lacks:
                parts = {
                    name: values.get(name, {}).get(place.get(row.entry.source, -1)) for name in self.parts_of[member]
                }
                self._fill(
                    row, member, parts, marks, variance[place[row.entry.source]] if row.entry.source in place else 0.0
                )
        return rows

    def _read(self, numbers: np.ndarray) -> list[_Row]:
        """The rows with what is there of them."""
        manifest, sample, shown = self.shown.manifest, self.shown.sample[numbers], self.shown.shown(numbers)
        first, last = manifest.first[sample], manifest.first[sample + 1]
        members = [range(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        wanted = np.unique(np.concatenate([*members, np.empty(0)]).astype(np.int64))
        held = dict(zip(wanted.tolist(), self.reader.read(wanted), strict=True))
        kind = dict(zip(wanted.tolist(), manifest.modality[wanted].tolist(), strict=True))
        names = list(manifest.modalities)
        rows = []
        for entry, mine, seen in zip(self.shown.entries(numbers), members, shown.tolist(), strict=True):
            row = _Row(entry)
            visible = {name for name, yes in zip(self.model.modalities, seen, strict=True) if yes}
            whole = entry.split in self.shown.whole
            for member in mine:
                data, name = held[member], names[kind[member]]
                if not (visible.intersection(self.parts_of[name]) if name in self.parts_of else whole):
                    continue
                if isinstance(data, Corrupt):
                    row.unusable = Unusable(f"{name}: {data}")
                else:
                    row.there.setdefault(name, []).append(data)
            row.members = {
                name: data_of for name, data_of in row.there.items() if visible.issuperset(self.parts_of.get(name, ()))
            }
            if entry.split in self.settings.splits and not row.unusable:
                row.lacks = [name for name in self.asked if name not in row.members]
                row.given = dict.fromkeys(
                    name for member in row.there for name in self.parts_of.get(member, ()) if name in visible
                )
            rows.append(row)
        self._decode([row for row in rows if row.lacks])
        return rows

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

    def _made(self, rows: list[_Row]) -> tuple[dict[str, dict[int, Made]], np.ndarray]:
        """By modality and place among these rows: what the model makes of it; and the rows' log-weight variance."""
        if not rows:
            return {}, np.empty(0)
        columns = {name: [row.given.get(name) for row in rows] for name in self.model.modalities}
        batch = batch_of(self.model.modalities, columns)
        batch = replace(batch, row_B=torch.tensor([row.entry.source for row in rows])).to(self.device)
        needs: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            parts = {name for member in row.lacks for name in self.parts_of[member]}
            for name in parts & self.answers(frozenset(row.given)):
                needs.setdefault(name, []).append(index)
        found, variance = made(self.model, batch, {n: np.array(needs[n]) for n in columns if n in needs}, self.settings)
        return {
            name: {index: Made(one.values[i], one.spread[i]) for i, index in enumerate(needs[name])}
            for name, one in found.items()
        }, variance

    def _fill(self, row: _Row, member: str, parts: Mapping[str, Made | None], marks: Marks, variance: float) -> None:
        """Write a member of a row where the model made what is missing of it, and is sure enough."""
        if any(one is None and name not in row.given for name, one in parts.items()):
            marks.counts.unanswerable[member] += 1
            return
        spread = float(np.mean([one.spread for one in parts.values() if one is not None]))
        if not spread <= self.settings.doubt.get(member, 1.0):  # nor where it is no number
            marks.counts.doubtful[member] += 1
            return
        values = [row.given[name] if one is None else one.values for name, one in parts.items()]
        value = values[0] if len(values) == 1 else np.concatenate(values)
        modality = self.stored[member]
        row.members[member] = [modality.encode(storable(modality, value))]
        marks.add(row.entry.key, member, spread, float(variance))


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
