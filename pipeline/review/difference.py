"""Two runs beside each other: where their configurations and what surrounds them differ, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from infra.store import IDENTITY, PARENT, TROUBLE
from pipeline.review.rows import CHANGED, DIRECTORY, Row, hint, when

OWN = (IDENTITY, PARENT, TROUBLE, DIRECTORY, CHANGED, "pairstream.configuration", "mlflow.")
"""Tags that are every run's own."""
ORDER = ("best", "test", "val", "train")
"""Of metrics, the most telling first."""


@dataclass(frozen=True)
class Difference:
    """Two runs; every pair holds the first's value, then the second's, None where it has none."""

    runs: tuple[str, str]
    configuration: dict[str, tuple[str | None, str | None]]
    surroundings: dict[str, tuple[str | None, str | None]]
    """Tags that differ: data, versions, host."""
    metrics: dict[str, tuple[float | None, float | None]]
    """All that either has."""


def labels(rows: Sequence[Row]) -> dict[str, str]:
    """By run id: a run's name, behind its sweep's where it is a trial."""
    sweeps = {row.identity: row.name for row in rows if row.identity}
    return {row.run_id: f"{sweeps[row.parent]}/{row.name}" if row.parent in sweeps else row.name for row in rows}


def resolve(rows: Sequence[Row], name: str) -> Row:
    """The run of an id, a name or SWEEP/NAME, or of the beginning of one of these. Raises UserError."""
    places = labels(rows)
    found = (
        [row for row in rows if name in (row.run_id, row.name, places[row.run_id])]
        or [row for row in rows if row.name.startswith(name) or places[row.run_id].startswith(name)]
        or [row for row in rows if row.run_id.startswith(name)]
    )
    if not found:
        known = sorted(places.values()) + sorted({row.name for row in rows if row.parent})
        raise UserError(f"--diff: no run {name!r}" + hint(name, known))
    if len(found) > 1:
        told = ", ".join(f"{places[row.run_id]} ({row.run_id[:8]}, {when(row.start)})" for row in found[:4])
        raise UserError(f"--diff: {len(found)} runs are called {name!r}: {told}; give SWEEP/NAME or the id")
    return found[0]


def difference(rows: Sequence[Row], one: str, other: str) -> Difference:
    """Of two runs, by names or ids. Raises UserError where there is no such run, or both are the same."""
    first, second = resolve(rows, one), resolve(rows, other)
    if first.run_id == second.run_id:
        raise UserError(f"--diff: {one!r} and {other!r} are the same run, {first.name}: name two different ones")
    places = labels(rows)
    metrics = _both(first.metrics, second.metrics)
    return Difference(
        (places[first.run_id], places[second.run_id]),
        _unequal(first.params, second.params),
        _unequal(_shared(first.tags), _shared(second.tags)),
        {key: metrics[key] for key in sorted(metrics, key=_place)},
    )


def _shared(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith(OWN)}


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (one.get(key), other.get(key)) for key in [*one, *(key for key in other if key not in one)]}


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: pair for key, pair in _both(one, other).items() if pair[0] != pair[1]}


def _place(metric: str) -> tuple[int, str]:
    kind = metric.partition("/")[0]
    return ORDER.index(kind) if kind in ORDER else len(ORDER), metric
