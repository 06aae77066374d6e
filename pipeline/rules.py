"""Rules that say which extension of a foreign tar is which modality."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError
from pipeline.manifest import Described
from pipeline.shards import MODALITIES, NAME

EXTENSION = re.compile(r"[^.*]+(\.[^.*]+)*(\.\*(\.[^.*]+)+)?")
"""Parts between dots, at most one of them `*`, which is neither the first nor the last."""


@dataclass(frozen=True)
class Rules:
    """Which extension is which modality; a `*` between dots stands for the number of an instance."""

    modality_of: dict[str, str]
    modalities: dict[str, Described]

    @staticmethod
    def read(given: Sequence[str], file: Path | None = None) -> Rules:
        """Rules from EXTENSION=MODALITY and from the table [modalities] of a TOML file. Raises UserError."""
        rules = Rules({}, {})
        for text in given:
            extension, equals, modality = text.partition("=")
            if not equals:
                raise UserError(f"--map {text}: write EXTENSION=MODALITY, as in jpg=image")
            rules._add(extension, modality, f"--map {text}")
        for extension, modality in _table(file) if file else ():
            rules._add(extension, modality, f"{file}: {extension} = {modality!r}")
        if not rules.modalities:
            raise UserError("no rule says which member is which modality: give --map jpg=image …, or --rules FILE.toml")
        if len(rules.modalities) > MODALITIES:
            raise UserError(f"{len(rules.modalities)} modalities: a data set holds at most {MODALITIES}")
        return rules

    def _add(self, extension: str, modality: Any, source: str) -> None:
        extension = extension.lower().removeprefix(".")  # webdataset makes extensions lower case
        if not EXTENSION.fullmatch(extension):
            raise UserError(f"{source}: write an extension like jpg or caption.txt; '*' as in caption.*.txt, once")
        if not isinstance(modality, str) or not NAME.fullmatch(modality):
            raise UserError(f"{source}: name a modality with small letters, digits, '_' and '-' only, no '_' first")
        other = self.modality_of.setdefault(extension, modality)
        if other != modality:
            raise UserError(f"{source}: .{extension} is {other} already, one member cannot be two modalities")
        last = extension.rpartition(".")[2]
        before = self.modalities.setdefault(modality, Described(last, None))
        if before.extension != last:
            raise UserError(f"{source}: {modality} is .{before.extension} already; give .{last} another modality")

    def __call__(self, extension: str) -> tuple[int, str] | None:
        """The number of the extension's modality and the name of the instance, "" for the only one."""
        rule = extension if extension in self.modality_of else self._instances(extension)
        if rule is None:
            return None
        return list(self.modalities).index(self.modality_of[rule]), extension if "*" in rule else ""

    def _instances(self, extension: str) -> str | None:
        """The rule with a `*` that an extension's number fits."""
        for rule in self.modality_of:
            before, star, after = rule.partition("*")
            number = extension.removeprefix(before).removesuffix(after)
            if star and number.isdecimal() and extension == before + number + after:
                return rule
        return None


def _table(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        raise UserError(f"--rules {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--rules {file}: not TOML ({error})") from None
    for name in table:
        if name != "modalities":
            raise UserError(f"--rules {file}: only a table [modalities] is known, not {name!r}")
    if not isinstance(table.get("modalities"), Mapping):
        raise UserError(f'--rules {file}: needs a table [modalities] with lines like jpg = "image"')
    yield from _flat(table["modalities"])


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Extensions with dots: TOML reads an unquoted caption.txt = … as a table in a table."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
