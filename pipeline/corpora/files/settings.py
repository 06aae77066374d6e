"""What a `pairstream.toml` says, as `files.py` describes it: read and checked, with errors that name the key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from infra.errors import UserError, nearest
from modalities import AnyModality, Attributes, Features, Image, Label, Sentences, Text
from pipeline.shards import NAME

FILE = "pairstream.toml"


@dataclass(frozen=True)
class Data:
    """The table [data]."""

    folder: str = ""
    table: str = ""
    dataset: str = ""
    key: str = ""
    split: str = ""
    delimiter: str = ""
    val: float | None = None
    test: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("folder", "table", "dataset") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"say one of folder, table and dataset, not {' and '.join(given) or 'none of them'}")
        for name in ("key", "split") if self.folder else ():
            if getattr(self, name):
                raise ValueError(f"{name} is a column of a table, a folder has none")
        if self.delimiter and not (self.table and len(self.delimiter) == 1 and self.delimiter not in '"\r\n\0'):
            raise ValueError("delimiter is one letter, for a table of CSV, and neither a quote nor the end of a line")
        val, test = self.val or 0, self.test or 0
        if not (val >= 0 and test >= 0 and val + test < 1):  # nan is none of these
            raise ValueError("val and test are shares of the samples, from 0, and must leave some to train on")


@dataclass(frozen=True)
class Pictures:
    """Of [modalities.NAME] for kind image, what the modality itself does not have; so of the other kinds below."""

    size: tuple[int, int]
    fit: Literal["crop", "stretch"] = "crop"
    channels: Literal[1, 3] = 3
    codec: Literal["npy", "png", "jpg"] = "png"

    def known(self) -> dict[str, Any]:
        """The modality's settings that follow, as far as they are known before the data are."""
        height, width = self.size
        return {"height": height, "width": width, "channels": self.channels, "codec": self.codec, "levels": 255}


@dataclass(frozen=True)
class Classes:
    classes: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        _check_different("classes", self.classes)

    def known(self) -> dict[str, Any]:
        return {"classes": max(1, len(self.classes))}


@dataclass(frozen=True)
class Flags:
    columns: tuple[str, ...] = ()
    separator: str = "|"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_different("columns", self.columns)
        _check_different("names", self.names)
        if self.columns and self.names:
            raise ValueError("names are those of the columns: leave names away")
        if not self.separator:
            raise ValueError("separator is empty: choose what stands between two attributes")

    def known(self) -> dict[str, Any]:
        return {"count": max(1, len(self.columns or self.names))}


@dataclass(frozen=True)
class Words:
    vocabulary: int = 8000
    length: int = 70
    tokenizer: Literal["unigram", "word", "bpe", "char"] = "unigram"

    def known(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "length": self.length}


@dataclass(frozen=True)
class Letters(Words):
    tokenizer: Literal["unigram", "word", "bpe", "char"] = "char"


@dataclass(frozen=True)
class Numbers:
    columns: tuple[str, ...] = ()
    count: int = 0

    def __post_init__(self) -> None:
        _check_different("columns", self.columns)
        if self.columns and self.count:
            raise ValueError("count is the number of the columns: leave count away")

    def known(self) -> dict[str, Any]:
        return {"count": self.count or max(1, len(self.columns))}


Own = Pictures | Classes | Flags | Words | Numbers
KINDS: dict[str, tuple[type[Own], type[AnyModality]]] = {
    "image": (Pictures, Image),
    "label": (Classes, Label),
    "attributes": (Flags, Attributes),
    "sentences": (Words, Sentences),
    "text": (Letters, Text),
    "features": (Numbers, Features),
}


def _check_different(name: str, values: tuple[str | int, ...]) -> None:
    words = [str(value) for value in values]
    twice = [word for word in words if words.count(word) > 1]
    if twice:
        raise ValueError(f"{name} has {twice[0]!r} twice")


class Asked(NamedTuple):
    """A table [modalities.NAME]."""

    where: str
    """File and table, for errors."""
    kind: str
    columns: tuple[str, ...]
    """Of the data's tables; in a folder the modality's name."""
    extensions: tuple[str, ...]
    """In a folder: how its files end; none: as in KEY.NAME.jpg, whatever the last part is."""
    own: Own
    rest: Mapping[str, Any]
    """The modality's own settings."""

    def modality(self, **found: Any) -> AnyModality:
        """The modality with these settings, which the data have shown. Raises UserError."""
        values = {**self.rest, **self.own.known(), **found}
        modality: AnyModality = _validated(KINDS[self.kind][1], values, self.where)
        return modality


class Settings(NamedTuple):
    """The whole file."""

    file: Path
    data: Data
    modalities: dict[str, Asked]


def read(source: Path) -> Settings:
    """The settings of the files in a directory. Raises UserError."""
    file = source / FILE
    try:
        table = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: write there what your files are") from None
    except ValueError as error:
        raise UserError(f"{file}: not TOML ({error})") from None
    _check_known(str(file), table, ["data", "modalities"])
    for name in ("data", "modalities"):
        if not isinstance(table.get(name), Mapping) or not table[name]:
            raise UserError(f"{file}: needs a table [{name if name == 'data' else 'modalities.NAME'}]")
    _check_known(f"{file}: [data]", table["data"], [field.name for field in fields(Data)])
    data: Data = _validated(Data, table["data"], f"{file}: [data]")
    asked = {name: _asked(f"{file}: [modalities.{name}]", name, one, data) for name, one in table["modalities"].items()}
    endings = [ending for one in asked.values() for ending in one.extensions]
    for ending in endings:
        if endings.count(ending) > 1:
            raise UserError(f"{file}: extension {ending!r} belongs to two modalities: a file is one of them")
    return Settings(file, data, asked)


def _asked(where: str, name: str, table: Any, data: Data) -> Asked:
    if not NAME.fullmatch(name):
        raise UserError(f"{where}: name a modality with small letters, digits, '_' and '-' only, no '_' first")
    if not isinstance(table, Mapping):
        raise UserError(f'{where}: needs lines like kind = "image"')
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = nearest(str(kind), list(KINDS))
        raise UserError(f"{where} kind: {f'unknown kind {kind!r}' if 'kind' in table else 'say which'}{hint}")
    own_class, modality_class = KINDS[kind]
    own_names = [field.name for field in fields(own_class)]
    own_values = {key: value for key, value in table.items() if key in own_names}
    if data.folder and "columns" in own_values:
        raise UserError(f"{where} columns: a folder has none")
    own: Own = _validated(own_class, own_values, where)
    from_data = ["kind", "extensions" if data.folder else "column"]
    rest_names = [f.name for f in fields(modality_class) if f.name not in (*own_names, *own.known(), "kind")]
    _check_known(where, table, [*from_data, *own_names, *rest_names])
    place: Place = _validated(Place, {key: table[key] for key in from_data if key in table}, where)
    several = getattr(own, "columns", ())
    if several and place.column:
        raise UserError(f"{where}: say column or columns, not both")
    endings = tuple(ending.lower().removeprefix(".") for ending in place.extensions)
    rest = {key: table[key] for key in rest_names if key in table}
    return Asked(where, kind, several or (place.column or name,), endings, own, rest)


@dataclass(frozen=True)
class Place:
    """Where a modality's values are."""

    column: str = ""
    extensions: tuple[str, ...] = ()


def _check_known(where: str, table: Mapping[str, Any], known: list[str]) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where} {key}: no such key" + nearest(key, known))


@cache
def _schema(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validated(kind: type, values: Mapping[str, Any], where: str) -> Any:
    try:
        return _schema(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f" {part}" for part in first["loc"][:1])
        got = "" if isinstance(first["input"], Mapping) else f" (got {first['input']!r})"
        raise UserError(f"{where}{key}: {first['msg'].removeprefix('Value error, ')}{got}") from None
