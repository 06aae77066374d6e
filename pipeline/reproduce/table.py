"""A table of a paper beside ours: which numbers it has, and what each of ours is made of."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infra.errors import UserError
from pipeline.evaluate.scored import Scored
from pipeline.manifest import NoData
from pipeline.reproduce.shortened import training_rows
from pipeline.reproduce.work import Result, Work
from pipeline.settings import Precision


class Undefined(UserError):
    """A cell's work is done, and its score is none."""


def percent(share: float) -> str:
    """0.002 -> 0.2 %"""
    return f"{100 * share:g} %"


def meant(part: str, row: str) -> bool:
    """Whether a row's name holds this; a word of it from its start: MVAE is in "MVAE, λ 50" and in no JMVAE."""
    before = r"(?<![^\W_])" if part[:1].isalnum() else ""
    return bool(re.search(before + re.escape(part), row))


@dataclass(frozen=True)
class Extent:
    """How much of what the papers did is done."""

    budget: float = 1.0
    """Share of the paper's epochs."""
    seeds: int = 1
    """Runs of each number that differ in their seed (weights, order, pairs)."""
    rows: tuple[str, ...] = ()
    """Rows that are `meant` by one of these; all where none is given."""
    columns: tuple[str, ...] = ()
    """Columns of these names; all where none is given."""

    def epochs(self, paper: float) -> float:
        """Of the paper's so many."""
        return self.budget * paper

    def wants(self, row: str = "", column: str = "") -> bool:
        """Whether a row and a column are asked for; an empty name is whichever."""
        return (not (row and self.rows) or any(meant(part, row) for part in self.rows)) and (
            not (column and self.columns) or column in self.columns
        )


@dataclass(frozen=True)
class Cell:
    """One number of ours, and the paper's beside it."""

    row: str
    """What was trained: MVAE, λ = 50."""
    column: str
    """On what, or which number: 1 %."""
    metric: str
    """Of test data, as `pairstream evaluate` names it."""
    paper: float | None
    """What the paper has there; None where it has nothing."""
    candidates: tuple[tuple[Work, ...], ...]
    """Each a setting, run with several seeds; of several settings the one with the best validation counts."""
    paper_epochs: float = math.nan
    """As long as the paper trained."""
    names: tuple[str, ...] = ()
    """What the candidates are called."""
    scale: float = 1.0
    """By which ours is multiplied before it is written: 100 for the papers' percentages."""

    @property
    def works(self) -> list[Work]:
        return [work for candidate in self.candidates for work in candidate]


@dataclass(frozen=True)
class Number:
    """A number of ours with everything that one has to know to make it again. There is none without."""

    table: str
    row: str
    column: str
    metric: str
    paper: float | None
    ours: float
    spread: float
    """Standard deviation over the runs; of one run the standard error over its rows."""
    of: str
    """What the spread is one of: "runs" or "rows"."""
    runs: int
    seeds: str
    epochs: float
    paper_epochs: float
    rows: int
    """Test rows, of each run."""
    data: str
    """Recipe's data and their fingerprint."""
    setting: str
    """Which candidate was chosen, on validation data; empty where there was one."""
    command: str

    @property
    def quantity(self) -> str:
        """Its metric, whenever in the course of a training."""
        return self.metric.partition("@")[0]

    def __post_init__(self) -> None:
        """Raises ValueError where something is missing that a reader needs to believe the number."""
        told = {"table": self.table, "metric": self.metric, "seeds": self.seeds, "data": self.data}
        missing = [name for name, value in (told | {"command": self.command}).items() if not value]
        if missing or not (self.runs and self.rows and self.epochs >= 0):
            raise ValueError(f"a number of table {self.table!r} without its provenance: {', '.join(missing) or self}")


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper that can be made again."""

    name: str
    title: str
    source: str
    """Which table of which paper."""
    cells: Callable[[Extent], list[Cell]]
    draw: Callable[[Sequence[Number], Path], Path] | None = None
    """A picture of the numbers."""
    remark: str = ""
    """What a reader has to know."""


def in_precision(cells: Sequence[Cell], precision: Precision) -> list[Cell]:
    """Cells whose trainings' networks are of another precision; what is no training is left as it is."""

    return [
        replace(cell, candidates=tuple(tuple(w.in_precision(precision) for w in works) for works in cell.candidates))
        for cell in cells
    ]


def makeable(cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells whose data are there, and a sentence for each data directory that is not."""
    absent: dict[str, str] = {}
    for data in dict.fromkeys(work.run.data for cell in cells for work in cell.works):
        try:
            training_rows(data)
        except NoData as error:
            absent[data] = str(error)
    return [cell for cell in cells if not any(work.run.data in absent for work in cell.works)], list(absent.values())


def number_of(table: Table, cell: Cell, root: Path, command: str) -> Number | None:
    """A cell's number where all of its work is done, else None.

    Raises UserError where that was made of other data, and Undefined where there is no such number.
    """
    found = [[work.done(root) for work in candidate] for candidate in cell.candidates]
    known = [[result for result in results if result] for results in found]
    if any(len(results) < len(candidate) for results, candidate in zip(known, cell.candidates, strict=True)):
        return None
    chosen = 0 if len(known) == 1 else max(range(len(known)), key=lambda n: _validation(known[n]))
    results = known[chosen]
    scores = [result.scores[cell.metric] for result in results]
    undefined = [r.seed for r, score in zip(results, scores, strict=True) if not score.count or math.isnan(score.value)]
    if undefined:
        raise Undefined(
            f"{cell.row}, {cell.column}: {cell.metric} is undefined for seed {', '.join(map(str, undefined))} and left "
            "out: all pairs that it was learnt from are of one class, or no test row can tell it"
        )
    value, spread = _spread(scores)
    work = cell.candidates[chosen][0]
    return Number(
        table.name, cell.row, cell.column, cell.metric, cell.paper, value * cell.scale, spread * cell.scale,
        "runs" if len(results) > 1 else "rows", len(results), " ".join(str(result.seed) for result in results),
        results[0].epochs, cell.paper_epochs, scores[0].count, f"{work.run.data} {results[0].data}",
        cell.names[chosen] if len(known) > 1 else "", command,
    )  # fmt: skip


def _validation(results: Sequence[Result]) -> float:
    return statistics.fmean(result.validation for result in results)


def _spread(scores: Sequence[Scored]) -> tuple[float, float]:
    if len(scores) == 1:
        return scores[0].value, scores[0].error
    values = [score.value for score in scores]
    return statistics.fmean(values), statistics.stdev(values)
