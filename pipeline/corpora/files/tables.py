"""Rows of a user's tables by their numbers, a batch of them in memory at a time: CSV, Parquet, Arrow streams.

A table has marks: rows at which reading can begin. Rows are asked for in rising order, but for the leaps between the
splits, so a cursor that goes on from where it stands reads a table about once for each split and process.
"""

from __future__ import annotations

import atexit
import csv
from abc import ABC, abstractmethod
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import UserError

ROWS = 64
"""Rows of a batch: pictures may be in them."""
MARKED = 1024
"""Rows of a CSV file between two marks."""
CELL = 2**24
"""Letters of the longest cell of a CSV file: a quote that nothing closes takes in the rest of the file."""
DAMAGE = (OSError, pa.ArrowException)


class Record(NamedTuple):
    """One row of a table, or the files of one key."""

    place: str
    """As in train.csv, line 7."""
    cells: Mapping[str, Any]
    """By column: None, a text (where it is no UTF-8, with surrogates), a file's bytes, a number, a list, …"""
    broken: str = ""
    """Why all of it cannot be used."""
    files: Mapping[str, str] = {}
    """In a folder, the file of each modality."""

    def at(self, columns: tuple[str, ...], modality: str) -> str:
        """Where a modality's value is."""
        if columns[0] in self.files:
            return self.files[columns[0]]
        return f"{self.place}, column {columns[0]}" if len(columns) == 1 else f"{self.place}, {modality}"


@dataclass(frozen=True)
class Table(ABC):
    """A file of rows. Equal ones are the same file."""

    path: Path
    name: str
    """For places: the path below the directory."""
    prefix: str
    """What the keys of its rows begin with where they have none."""
    first: int
    """The number of its first row in such keys."""
    columns: tuple[str, ...] = field(compare=False)
    rows: int = field(compare=False)
    marks: tuple[int, ...] = field(compare=False)
    """Numbers of the rows at which reading can begin."""

    @abstractmethod
    def records(self, mark: int, columns: tuple[str, ...]) -> Iterator[Record]:
        """The rows from a mark on, with these cells. Raises UserError where the file cannot be read."""

    def classes(self, column: str) -> tuple[str, ...]:
        """The names of the classes of a column where the file knows them."""
        return ()


@dataclass(frozen=True)
class Csv(Table):
    delimiter: str = field(compare=False)
    offsets: tuple[tuple[int, int], ...] = field(compare=False)
    """Byte and number of the line at which each mark lies."""

    @staticmethod
    def open(path: Path, name: str, prefix: str, delimiter: str) -> Csv:
        """Raises UserError where the file has no first line with names, or its quotes are wrong."""
        marks, offsets, rows = [], [], -1
        columns: list[str] = []
        for rows, (offset, line, cells) in enumerate(_csv(path, delimiter, 0, 1), start=-1):
            if rows < 0:
                columns = [cell.strip() for cell in cells]
            elif rows % MARKED == 0:
                marks.append(rows)
                offsets.append((offset, line))
        if not columns:
            raise UserError(f"{path} is empty: its first line has to name the columns")
        return Csv(path, name, prefix, 0, tuple(columns), rows + 1, tuple(marks), delimiter, tuple(offsets))

    def records(self, mark: int, columns: tuple[str, ...]) -> Iterator[Record]:
        for _, line, cells in _csv(self.path, self.delimiter, *self.offsets[mark]):
            place = f"{self.name}, line {line:,}"
            if cells and len(cells) != len(self.columns):
                yield Record(place, {}, f"{len(cells)} cells, and the first line names {len(self.columns)} columns")
            else:  # an empty line is a row of empty cells
                named = dict(zip(self.columns, cells or [""] * len(self.columns), strict=True))
                yield Record(place, {column: named[column] for column in columns})


def _csv(path: Path, delimiter: str, offset: int, line: int) -> Iterator[tuple[int, int, list[str]]]:
    """Byte, line and cells of each row from a byte on, which is where that line begins. Raises UserError."""
    csv.field_size_limit(CELL)
    with path.open("rb") as file:
        file.seek(offset)
        taken: list[bytes] = []

        def lines() -> Iterator[str]:
            for data in file:
                first = offset == 0 and not taken
                taken.append(data)
                yield (data.removeprefix(BOM_UTF8) if first else data).decode("utf-8", "surrogateescape")

        try:
            for cells in csv.reader(lines(), delimiter=delimiter, strict=True):
                yield offset, line, cells
                offset, line = offset + sum(map(len, taken)), line + len(taken)
                taken.clear()
        except csv.Error as error:
            raise UserError(f"{path}, line {line:,}: where this row ends is not clear ({error}): mend it") from None


@dataclass(frozen=True)
class Parquet(Table):
    @staticmethod
    def open(path: Path, name: str, prefix: str) -> Parquet:
        """Raises UserError where the file is no whole Parquet file."""
        try:
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                return Parquet(path, name, prefix, 0, tuple(file.schema_arrow.names), sum(sizes), _starts(sizes))
        except DAMAGE as error:
            raise UserError(f"{path} is no whole Parquet file ({error})") from None

    def records(self, mark: int, columns: tuple[str, ...]) -> Iterator[Record]:
        row = self.marks[mark]
        groups = range(mark, len(self.marks))
        try:
            # Page by page: otherwise all of a row group, which may be all of the file, would be in memory.
            with pq.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False) as file:
                for batch in file.iter_batches(ROWS, groups, columns=list(columns), use_threads=False):
                    yield from _records(batch, self.name, row, {})
                    row += len(batch)
        except DAMAGE as error:
            raise UserError(f"{self.path} cannot be read after row {row:,} ({error}): is the file damaged?") from None


@dataclass(frozen=True)
class Arrow(Table):
    named: tuple[tuple[str, tuple[str, ...]], ...] = field(compare=False)
    """The classes of columns that hold their numbers."""

    @staticmethod
    def open(path: Path, name: str, prefix: str, first: int, named: Mapping[str, tuple[str, ...]]) -> Arrow:
        """Raises UserError where the file is no whole Arrow stream."""
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
                columns = tuple(stream.schema.names)
                sizes = [len(batch) for batch in stream]
        except DAMAGE as error:
            raise UserError(f"{path} is no whole Arrow stream ({error}): save the data set again") from None
        return Arrow(path, name, prefix, first, columns, sum(sizes), _starts(sizes), tuple(named.items()))

    def records(self, mark: int, columns: tuple[str, ...]) -> Iterator[Record]:
        row = self.marks[mark]
        with pa.memory_map(str(self.path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            for number, batch in enumerate(stream):
                for start in range(0, len(batch), ROWS) if number >= mark else ():
                    part = batch.slice(start, ROWS)
                    yield from _records(part.select(list(columns)), self.name, row, dict(self.named))
                    row += len(part)

    def classes(self, column: str) -> tuple[str, ...]:
        return dict(self.named).get(column, ())


def _starts(sizes: list[int]) -> tuple[int, ...]:
    return tuple(accumulate(sizes[:-1], initial=0)) if sizes else ()


def _records(batch: pa.RecordBatch, name: str, row: int, named: Mapping[str, tuple[str, ...]]) -> list[Record]:
    columns = {}
    for column, array in zip(batch.schema.names, batch.columns, strict=True):
        cells = _cells(array)
        if classes := named.get(column):
            cells = [_class(cell, classes) for cell in cells]
        columns[column] = cells
    return [
        Record(f"{name}, row {row + index:,}", {column: cells[index] for column, cells in columns.items()})
        for index in range(len(batch))
    ]


def _cells(array: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        raw = array.cast(pa.large_binary()).to_pylist()  # one text that is no UTF-8 would take the others with it
        return [data if data is None else data.decode("utf-8", "surrogateescape") for data in raw]
    return [_python(cell) for cell in array]


def _python(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return b"\xff"  # a text within a list: no UTF-8 either


def _class(cell: Any, classes: tuple[str, ...]) -> Any:
    """The name of a class; None for a negative number, which stands for none in `datasets`."""
    if not isinstance(cell, int) or cell >= len(classes):
        return cell
    return classes[cell] if cell >= 0 else None


class _Cursor:
    """One row of a table after the other."""

    def __init__(self, table: Table, columns: tuple[str, ...]) -> None:
        self._table, self._columns = table, columns
        self._begin(0)

    def _begin(self, mark: int) -> None:
        self._last, self._rest = self._table.marks[mark] - 1, self._table.records(mark, self._columns)

    def record(self, row: int) -> Record:
        mark = bisect_right(self._table.marks, row) - 1
        if row < self._last or self._table.marks[mark] > self._last + 1:
            self._begin(mark)
        while self._last < row:
            self._last, self._record = self._last + 1, next(self._rest)
        return self._record


@lru_cache(maxsize=4)
def cursor(table: Table, columns: tuple[str, ...]) -> _Cursor:
    """The process's own place in a table."""
    return _Cursor(table, columns)


atexit.register(cursor.cache_clear)  # what reads must not be closed among modules that are gone
