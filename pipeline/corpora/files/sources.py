"""Where a user's samples lie: in rows of tables, in a data set of Hugging Face's, or in the files of a folder."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from infra.errors import Unusable, UserError, nearest
from pipeline.corpora.files.cells import missing, text
from pipeline.corpora.files.settings import FILE, Asked, Data, Settings
from pipeline.corpora.files.tables import Arrow, Csv, Parquet, Record, Table, cursor

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test",
}  # fmt: skip
"""What the data may call them."""


class Row(NamedTuple):
    """A row of one of several tables."""

    file: int
    number: int


class Files(NamedTuple):
    """The files of one key, by modality; None where there is none."""

    key: str
    names: tuple[str | None, ...]


class Listed(NamedTuple):
    """A sample before it is read."""

    where: Row | Files | str
    """Or why it cannot be used."""
    key: str
    split: str = ""
    """Empty where the data do not say."""


@dataclass(frozen=True)
class Tables:
    """Rows of one file or several."""

    folder: Path
    """Where paths in cells begin."""
    tables: tuple[Table, ...]
    splits: tuple[str, ...] = ()
    """Of each table, where the data set has some."""

    def listed(self, data: Data) -> Iterator[Listed]:
        """All rows in their order."""
        columns = tuple(dict.fromkeys(filter(None, (data.key, data.split))))
        for file, table in enumerate(self.tables):
            for number in range(table.rows):
                where, key = Row(file, number), f"{table.prefix}/{table.first + number:06d}"
                split = self.splits[file] if self.splits else ""
                record = self.record(where, columns) if columns else None
                try:
                    if record and not record.broken:  # a broken one is left out when it is read
                        key = _cell(record, data.key) if data.key else key
                        split = _split(record, data.split) if data.split else split
                    yield Listed(where, key, split)
                except Unusable as error:
                    yield Listed(str(error), key, split)

    def record(self, where: Row, columns: tuple[str, ...]) -> Record:
        """These cells of a row. Raises UserError where the file cannot be read."""
        return cursor(self.tables[where.file], columns).record(where.number)

    def classes(self, column: str) -> Sequence[str]:
        """The classes of a column where the data know them."""
        return self.tables[0].classes(column)


def _cell(record: Record, column: str) -> str:
    """Raises Unusable."""
    place = f"{record.place}, column {column}"
    if missing(record.cells[column]):
        raise Unusable(f"{place}: empty, and every sample needs one")
    try:
        return text(record.cells[column]).strip()
    except Unusable as error:
        raise Unusable(f"{place}: {error}") from None


def _split(record: Record, column: str) -> str:
    """Raises Unusable."""
    name = _cell(record, column)
    if name.lower() not in SPLITS:
        raise Unusable(f"{record.place}, column {column}: {name!r} is no split; known are {', '.join(SPLITS)}")
    return SPLITS[name.lower()]


@dataclass(frozen=True)
class Folder:
    """Files of which each is a modality of the key that its name begins with."""

    folder: Path
    modalities: tuple[str, ...]

    def record(self, where: Files, columns: tuple[str, ...]) -> Record:
        """The bytes of these modalities' files."""
        files = {m: name for m, name in zip(self.modalities, where.names, strict=True) if m in columns and name}
        held = {modality: (self.folder / name).read_bytes() for modality, name in files.items()}
        return Record(where.key, dict.fromkeys(columns) | held, files=files)

    def classes(self, column: str) -> Sequence[str]:
        """Files know of none."""
        return ()


Source = Tables | Folder


class Opened(NamedTuple):
    """A source, its samples in their order, and what is to be said of it."""

    source: Source
    listed: Iterable[Listed]
    notes: list[str]


def open_source(source: Path, settings: Settings) -> Opened:
    """What [data] names. Raises UserError where it is not there, damaged, or lacks a column."""
    data, notes = settings.data, list[str]()
    if data.folder:
        return _folder(source / data.folder, settings.modalities)
    tables = _tables(source, data) if data.table else _dataset(source / data.dataset, notes)
    if not sum(table.rows for table in tables.tables):
        raise UserError(f"{source / (data.table or data.dataset)} holds no rows")
    for name in ("key", "split"):
        if column := getattr(data, name):
            _check_there(tables, column, f"{settings.file}: [data] {name}")
    for asked in settings.modalities.values():
        for column in asked.columns:
            _check_there(tables, column, f"{asked.where} column")
    return Opened(tables, tables.listed(data), notes)


# Tables


def _check_there(tables: Tables, column: str, where: str) -> None:
    for table in tables.tables:
        count = table.columns.count(column)
        if not count:
            raise UserError(f"{where}: {table.name} has no column {column!r}" + nearest(column, list(table.columns)))
        if count > 1:
            raise UserError(f"{where}: {table.name} has {count} columns {column!r}: give them different names")


def _tables(source: Path, data: Data) -> Tables:
    one = source / data.table
    paths = [one] if one.is_file() else sorted(source / name for name in glob.glob(data.table, root_dir=source))
    if not paths:
        raise UserError(f"{source / FILE}: [data] table: there is no file {data.table!r} in {source}")
    if len({path.parent for path in paths}) > 1:
        raise UserError(f"{source / FILE}: [data] table: the files of {data.table!r} have to lie in one folder")
    return Tables(paths[0].parent, tuple(_table(path, os.path.relpath(path, source), data) for path in paths))


def _table(path: Path, name: str, data: Data) -> Table:
    prefix, ending = re.sub(r"[^A-Za-z0-9_\-]", "-", path.stem), path.suffix.lower()
    if ending == ".parquet":
        return Parquet.open(path, name, prefix)
    if ending in (".csv", ".tsv"):
        return Csv.open(path, name, prefix, data.delimiter or ("\t" if ending == ".tsv" else ","))
    raise UserError(f"{path}: a table is a file .csv, .tsv or .parquet (unpacked)")


def _dataset(folder: Path, notes: list[str]) -> Tables:
    tables, splits = list[Table](), list[str]()
    if not (folder / "dataset_dict.json").is_file():
        return Tables(folder, tuple(_saved(folder, folder.name, "data")))
    names = _json(folder / "dataset_dict.json").get("splits")
    if not isinstance(names, list):
        raise UserError(f"{folder / 'dataset_dict.json'} is not what `save_to_disk` writes: it has no list of splits")
    for name in names:
        if name not in SPLITS:
            notes.append(f"split {name!r} is left out: it is none of {', '.join(SPLITS)}")
            continue
        mine = list(_saved(folder / name, f"{folder.name}/{name}", name))
        tables += mine
        splits += [SPLITS[name]] * len(mine)
    return Tables(folder, tuple(tables), tuple(splits))


def _saved(folder: Path, name: str, prefix: str) -> Iterator[Table]:
    """The files of a data set, in their order."""
    state, first = _json(folder / "state.json"), 0
    features = _json(folder / "dataset_info.json").get("features") or {}
    if not isinstance(features, dict):
        raise UserError(f"{folder / 'dataset_info.json'} is not what `save_to_disk` writes: its features have no names")
    named = {
        column: tuple(map(str, feature["names"]))
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{folder} holds a selection of rows: save it again after `flatten_indices()`")
    files = state.get("_data_files")
    if not isinstance(files, list) or not all(isinstance(one, dict) and "filename" in one for one in files):
        raise UserError(f"{folder / 'state.json'} is not what `save_to_disk` writes: it names no data files")
    for one in files:
        file = str(one["filename"])
        table = Arrow.open(folder / file, f"{name}/{file}", prefix, first, named)
        first += table.rows
        yield table


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): is this what `save_to_disk` wrote?") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what `save_to_disk` writes: it holds no JSON object")
    return content


# Folders


def _folder(folder: Path, modalities: Mapping[str, Asked]) -> Opened:
    """All keys, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory")
    names, found, others = list(modalities), dict[str, list[list[str]]](), list[str]()
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()):
        key, modality = _belonging(name, modalities)
        if modality:
            found.setdefault(key, [[] for _ in names])[names.index(modality)].append(name)
        elif name != FILE:
            others.append(name)
    if not found:
        raise UserError(f"{folder} holds no file of a modality: expected are names like KEY.{names[0]}.EXTENSION")
    notes = [f"{len(others):,} files belong to no modality, {others[0]!r} for one"] if others else []
    return Opened(Folder(folder, tuple(names)), [_one(key, files) for key, files in sorted(found.items())], notes)


def _belonging(name: str, modalities: Mapping[str, Asked]) -> tuple[str, str]:
    """Key and modality of a file; of its possible endings the longest that belongs to one. No modality: ""."""
    folder, slash, file = name.rpartition("/")
    for dot in re.finditer(r"(?<=.)\.", file):  # a hidden file has no key
        key, ending = folder + slash + file[: dot.start()], file[dot.end() :].lower()
        for modality, asked in modalities.items():
            before, _, last = ending.partition(".")
            if ending in asked.extensions or (not asked.extensions and before == modality and last and "." not in last):
                return key, modality
    return "", ""


def _one(key: str, files: list[list[str]]) -> Listed:
    for several in files:
        if len(several) > 1:
            return Listed(f"{several[0]} and {several[1]} are the same modality of one key", key)
    return Listed(Files(key, tuple(several[0] if several else None for several in files)), key)
