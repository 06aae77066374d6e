"""What only the data can say of a modality: its classes, its tokens, how long its vectors are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from infra.errors import Unusable, UserError
from modalities import AnyModality
from pipeline.corpora.files.cells import (
    Cells,
    Reader,
    ReadFlags,
    ReadLabel,
    ReadNames,
    ReadNumbers,
    ReadPicture,
    ReadWords,
    names_in,
    text,
)
from pipeline.corpora.files.settings import Asked, Classes, Flags, Numbers, Pictures, Words
from pipeline.description import model_file, named


class Found(NamedTuple):
    """A modality as the data have it."""

    modality: AnyModality
    reader: Reader
    note: str
    files: Mapping[str, bytes] = MappingProxyType({})
    """To be stored beside the shards."""


Rows = Callable[[bool], Iterator[Cells]]
"""The cells of all rows that have some of a modality; of the training rows only where asked for."""


def find(name: str, asked: Asked, folder: Path, rows: Rows, classes: Sequence[str]) -> Found:
    """A modality's settings and reader; `classes` are those that the data name themselves.

    Raises UserError where the data do not say enough.
    """
    own = asked.own
    if isinstance(own, Pictures):
        kept = "the middle is kept" if own.fit == "crop" else "stretched"
        colours = "colours" if own.channels == 3 else "grey"
        reader = ReadPicture(folder, *own.size, own.channels, own.fit)
        return Found(
            asked.modality(), reader, f"pictures are brought to {own.size[0]} x {own.size[1]} in {colours}, {kept}"
        )
    if isinstance(own, Classes):
        names = [str(one) for one in own.classes] or list(classes) or _all(rows, lambda cells: [text(cells[0]).strip()])
        return _named(name, asked, names, "classes", ReadLabel(_numbered(names)))
    if isinstance(own, Flags) and own.columns:
        return _named(name, asked, list(own.columns), "count", ReadFlags())
    if isinstance(own, Flags):
        names = list(own.names) or _all(rows, lambda cells: names_in(cells[0], own.separator))
        return _named(name, asked, names, "count", ReadNames(_numbered(names), own.separator))
    if isinstance(own, Words):
        return _tokenized(name, asked, own, rows)
    return _vectors(asked, own, folder, rows)


def _usable(rows: Iterable[Cells], reader: Callable[[Cells], Any]) -> Iterator[Any]:
    """What a reader makes of those rows of which it can make something."""
    for cells in rows:
        try:
            value = reader(cells)
        except Unusable:
            continue  # `load` counts it
        yield value


def _all(rows: Rows, names: Callable[[Cells], list[str]]) -> list[str]:
    """All names in the data, numbers by size, others by the alphabet."""
    found = set(chain.from_iterable(_usable(rows(False), names)))
    return sorted(sorted(found), key=int if all(name.isdecimal() for name in found) else str)


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _named(name: str, asked: Asked, names: list[str], setting: str, reader: Reader) -> Found:
    """Of a label or attributes: the names are stored, since the shards hold numbers."""
    if not names:
        raise UserError(f"{asked.where}: no value of it can be read in the data")
    note = f"{len(names):,} {'classes' if setting == 'classes' else 'attributes'}: {', '.join(names)}"
    return Found(asked.modality(**{setting: len(names)}), reader, note, named(name, names))


def _tokenized(name: str, asked: Asked, own: Words, rows: Rows) -> Found:
    from pipeline.tokenizers import Tokenizer, train

    def texts(training: bool) -> Iterator[str]:
        return _usable(rows(training), lambda cells: text(cells[0]))

    try:
        model = train(texts(True), own.vocabulary, own.tokenizer)
    except UserError as error:
        raise UserError(f"{asked.where}: {error}") from None
    tokenizer = Tokenizer(model)
    cut = sum(int(tokenizer.encode([one], own.length)[1][0] > 0) for one in texts(False))
    note = (
        f"{tokenizer.size:,} tokens learnt from the training texts; {cut:,} texts of more than {own.length - 1} are cut"
    )
    modality = asked.modality(vocabulary=tokenizer.size)
    return Found(modality, ReadWords(tokenizer, own.length), note, {model_file(name): model})


def _vectors(asked: Asked, own: Numbers, folder: Path, rows: Rows) -> Found:
    count = own.count or len(own.columns)
    if not count:
        first = next(_usable(rows(False), ReadNumbers(folder, 0)), None)
        if first is None:
            raise UserError(f"{asked.where}: no value of it can be read in the data")
        count = len(first)
    return Found(asked.modality(count=count), ReadNumbers(folder, count), f"vectors of {count:,} numbers")
