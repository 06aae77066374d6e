"""How to read and to model what the shards hold, in files beside them.

modalities.json has the modalities' settings. A recipe has settings of its own; these serve who has none: `pairstream
train files`, `pairstream inspect --sheet`. The fingerprint of the data does not cover them, since networks may change
where bytes do not. NAME.model is the tokenizer of a modality, and NAME.names.json has the names of its classes,
attributes or letters: both belong to the data, and to their fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from infra.disk import write_whole
from infra.errors import UserError
from infra.storage import open_directory
from modalities import AnyModality, Modality
from modalities.text import END, Tokens
from pipeline.manifest import Manifest
from pipeline.tokenizers import Tokenizer

NAME = "modalities.json"


@cache
def _schema() -> TypeAdapter[dict[str, AnyModality]]:
    return TypeAdapter(dict[str, Annotated[AnyModality, Field(discriminator="kind")]])


def describe(directory: Path, modalities: Mapping[str, Modality]) -> None:
    """Write the settings of these modalities; of kinds that somebody else defined there are none to be written."""
    known = {name: modality for name, modality in modalities.items() if isinstance(modality, get_args(AnyModality))}
    write_whole(directory / NAME, _schema().dump_json(known, indent=2).decode() + "\n")


def described(manifest: Manifest) -> dict[str, AnyModality]:
    """The modalities as `describe` wrote them. Raises UserError where there is no such file, or not a readable one."""
    path = f"{manifest.directory}/{NAME}"
    try:
        return _schema().validate_json(open_directory(manifest.directory).whole(NAME).read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): `pairstream prepare` writes it beside the shards; give "
            "modalities by a recipe where somebody else made them"
        ) from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; run `pairstream prepare` again") from None


def model_file(modality: str) -> str:
    """The file beside the shards with the tokenizer of a modality."""
    return f"{modality}.model"


def names_file(modality: str) -> str:
    """The file beside the shards with the names of a modality's classes, attributes or tokens, by their numbers."""
    return f"{modality}.names.json"


def named(modality: str, names: Sequence[str]) -> dict[str, bytes]:
    """That file, for `Corpus.files`."""
    return {names_file(modality): json.dumps(list(names), ensure_ascii=False, indent=1).encode()}


def readers(manifest: Manifest, modalities: Mapping[str, Modality]) -> dict[str, Callable[[np.ndarray], str]]:
    """What a value (…) reads like, of modalities whose tokenizer, or whose names, lie beside the shards."""
    return readings(small_files(manifest, modalities), modalities)


def small_files(manifest: Manifest, modalities: Iterable[str]) -> dict[str, bytes]:
    """The tokenizers and names of these modalities that lie beside the shards."""
    names = [file(name) for name in modalities for file in (model_file, names_file)]
    return {name: manifest.file(name) for name in names if name in manifest.files}


def readings(files: Mapping[str, bytes], modalities: Mapping[str, Modality]) -> dict[str, Callable[[np.ndarray], str]]:
    """The same, of small files that are at hand."""
    found: dict[str, Callable[[np.ndarray], str]] = {}
    for name, modality in modalities.items():
        if isinstance(modality, Tokens) and model_file(name) in files:
            found[name] = partial(_text, Tokenizer(files[model_file(name)]))
        if names_file(name) in files:
            found[name] = partial(_names, json.loads(files[names_file(name)]), modality)
    return found


def _text(tokenizer: Tokenizer, value: np.ndarray) -> str:
    return tokenizer.decode(value[None])[0]


def _names(names: list[str], modality: Modality, value: np.ndarray) -> str:
    """Of a class, of the attributes that apply, or the letters of tokens."""
    if isinstance(modality, Tokens):
        return "".join(names[token] for token in value[value != END])
    return ", ".join(names[number] for number in (np.flatnonzero(value) if value.ndim else [int(value)]))
