"""A run as MLflow has it: all that can be a column, a condition or an order, and how it is written in a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any

from infra.errors import UserError, nearest
from pipeline.config import BESIDE, ELSEWHERE

CHANGED, SWEEP, DIRECTORY = "changed.", "pairstream.sweep", "pairstream.directory"  # tags
METRIC, DIRECTION = "pairstream.metric", "pairstream.direction"  # of a sweep
ALWAYS = ("name", "status", "start")
UNCOMPARED = (
    "tracking.", "examine.", "data", "train.best", "engine.accumulate",
    *(f"engine.{name}" for name in ELSEWHERE), *(f"train.{name}" for name in BESIDE),
)  # fmt: skip
"""Keys of a configuration that change nothing of what is learnt, or only say where it lies."""
TELLING = (
    "recipe", "model.system", "pairing.view", "pairing.fraction", "objective.k", "objective.lambda.", "optim.lr",
    "train.steps", "seed",
)  # fmt: skip
"""Of a configuration, what people ask for first."""
MANY = 300
"""Letters of a hint, at most."""


@dataclass(frozen=True)
class Row:
    """One run. Its parameters are the last ones: what a resumed run or a scheduler changed counts."""

    run_id: str
    experiment_id: str
    name: str
    identity: str | None
    parent: str | None
    """The identity of the sweep that it is a trial of."""
    status: str
    start: int
    """Milliseconds since the epoch."""
    params: dict[str, str]
    metrics: dict[str, float]
    """Latest values."""
    tags: dict[str, str]

    @classmethod
    def of(cls, run: dict[str, Any]) -> Row:
        """From what `infra.store.runs` tells of a run."""
        changed = {key[len(CHANGED) :]: value for key, value in run["tags"].items() if key.startswith(CHANGED)}
        return cls(**{field.name: run[field.name] for field in fields(cls)} | {"params": run["params"] | changed})

    @cached_property
    def fields(self) -> dict[str, Any]:
        """All that can be a column, by key."""
        return {**self.params, **self.metrics, "name": self.name, "status": self.status, "start": self.start}


def number(value: object) -> float | None:
    """A value as a finite number, or None."""
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def when(start: int) -> str:
    """The time of a start as people write it, to the minute."""
    return f"{datetime.fromtimestamp(start / 1000):%Y-%m-%d %H:%M}"


def written(key: str, value: object) -> str:
    """A field as a table shows it: four digits of what is measured, names as they are."""
    if value is None:
        return ""
    if key == "start":
        return when(int(str(value)))
    told = number(value)
    if told is None or (isinstance(value, str) and len(value) <= 7):
        return str(value)
    size = abs(told)
    return f"{told:.4f}" if 0.01 <= size < 10 else f"{told:.2f}" if 10 <= size < 1e4 else f"{told:.4g}"


def keys_of(rows: Iterable[Row]) -> list[str]:
    """All keys that any of the runs has."""
    return sorted({key for row in rows for key in row.fields})


def hint(name: str, known: Sequence[str]) -> str:
    """The nearest names, or a few where none is near."""
    told = nearest(name, list(known))
    return told if len(told) < MANY else f"; there are {len(known)} others, such as {', '.join(known[:6])}"


def check_key(key: str, rows: Sequence[Row], option: str) -> None:
    """Raise UserError where no run has such a field."""
    if rows and not any(key in row.fields for row in rows):
        raise UserError(f"{option}: no run has {key!r}" + hint(key, keys_of(rows)))


def is_compared(key: str) -> bool:
    """Whether a key of a configuration belongs among those that a table or an effect is about."""
    return not any(key == prefix or key.startswith(prefix) for prefix in UNCOMPARED)


def telling(key: str) -> int:
    """The place of a key among those that people ask for first, behind them all for any other."""
    return next((place for place, start in enumerate(TELLING) if key.startswith(start)), len(TELLING))


def varying(rows: Sequence[Row]) -> list[str]:
    """The keys of which the runs' configurations hold several values, the most telling first."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.params.items():
            values.setdefault(key, set()).add(value)
    several = [key for key, found in values.items() if len(found) > 1 and is_compared(key)]
    return sorted(several, key=lambda key: (telling(key), key))


def ordered(rows: Sequence[Row], sort: str) -> list[Row]:
    """By a key, the largest first where it begins with "-": numbers by size, text by letters, what has none last."""
    key = sort.removeprefix("-")

    def rank(row: Row) -> tuple[bool, float, str] | None:
        value = row.fields.get(key)
        told = number(value)
        if told is not None:
            return False, told, ""
        return (True, 0.0, value) if isinstance(value, str) else None  # a metric that is NaN has no place

    ranked = [(place, row) for row in rows if (place := rank(row))]
    ranked.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    return [row for _, row in ranked] + [row for row in rows if not rank(row)]


def shortened(key: str) -> str:
    """A dotted key without its section: fraction, k, lambda.label. Metrics stay as they are."""
    if "/" in key:
        return key
    match = re.search(r"(lambda\.|modalities\.)?[^.]+$", key)
    return match.group() if match else key


def short_names(keys: Sequence[str]) -> list[str]:
    """Names for columns: without their sections where that leaves them different."""
    names = [shortened(key) for key in keys]
    return [name if names.count(name) == 1 else key for name, key in zip(names, keys, strict=True)]
