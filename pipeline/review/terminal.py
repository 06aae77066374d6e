"""Groups of runs, effects and differences as tables that fit a terminal."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.review.difference import Difference
from pipeline.review.effects import Effects
from pipeline.review.groups import Group
from pipeline.review.rows import ALWAYS, TELLING, Row, number, short_names, telling, when, written

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"FAILED": "red", "KILLED": "yellow", "RUNNING": "green"}
FOLD = 11
"""Letters of a line of a column's head, at least."""
MOST = 8
"""Columns of settings of runs that differ in all sorts of keys."""


def console(width: int | None = None) -> Console:
    """Plain text of the terminal's width, or another."""
    from rich.console import Console

    return Console(width=width, markup=False, highlight=False, soft_wrap=True)


def usual_columns(group: Group) -> list[str]:
    """What runs differ in, the metric they are compared by, and what it is at test: the most telling first of each."""
    settings = [key for key in group.swept if group.parent or telling(key) < len(TELLING)][:MOST]
    metrics = []
    if group.aim:
        bare = re.sub(r"^(best/)?((val|test)/)?", "", group.aim.metric)
        metrics = [group.aim.metric, f"test/{bare}", "val/elbo", "test/elbo"]
    statuses = {row.status for row in group.rows}
    known = {key for row in group.rows for key in row.metrics}
    shown = [key for key in dict.fromkeys(metrics) if key in known]
    return [*(["status"] if len(statuses) > 1 else []), *([] if group.parent else ["start"]), *settings, *shown]


def same_in_all(group: Group) -> dict[str, str]:
    """What people ask for first and all runs of the group have in common."""
    told = {}
    keys = [key for key in (group.rows[0].params if group.rows else ()) if telling(key) < len(TELLING)]
    for key in sorted(keys, key=lambda key: (telling(key), key)):
        values = {row.params.get(key) for row in group.rows}
        if len(values) == 1:
            told[key] = str(values.pop())
    statuses = {row.status for row in group.rows}
    return told | ({"status": statuses.pop()} if len(statuses) == 1 else {})


def row_names(group: Group) -> list[str]:
    """A trial's number where its name begins with one and the numbers differ; any other run's whole name."""
    starts = [row.name.partition("-")[0] for row in group.rows]
    if group.parent and all(start.isdigit() for start in starts) and len(set(starts)) == len(starts):
        return starts
    return [row.name for row in group.rows]


def heading(group: Group) -> str:
    """A sweep's name, state and size."""
    if not group.parent:
        return f"{group.name} ({len(group.rows)})"
    trials = Counter(row.status for row in group.rows)
    told = ", ".join(f"{count} {status}" for status, count in trials.items())
    return f"{group.name}: {group.parent.status}, {when(group.parent.start)}, trials: {told or 'none'}"


def show_group(group: Group, shown: Sequence[Row], columns: Sequence[str] = (), out: Console | None = None) -> None:
    """The table of those of a group's runs that are to be shown, below its heading; the best run is marked with *.

    The usual columns are as many as fit; those asked for are all shown.
    """
    out = out or console()
    out.print(heading(group), style="bold")
    if not columns:
        told = ", ".join(f"{key} {value}" for key, value in same_in_all(group).items())
        out.print(f"the same in all: {told}" if told and len(group.rows) > 1 else told, soft_wrap=False)
    if shown:
        wanted = list(columns) or usual_columns(group)
        names = dict(zip((row.run_id for row in group.rows), row_names(group), strict=True))
        named = [(names[row.run_id], row) for row in shown]
        fitting, left = (wanted, []) if columns else _fit(group, named, wanted, out.width)
        wide = console(10_000) if columns else out  # as wide as it needs, and nothing cut off
        wide.file = out.file
        wide.print(_table(group, named, fitting))
        if left:
            out.print(f"no room for: {', '.join(left)} (--columns KEY …)", soft_wrap=False)
    if group.sentence:
        out.print(f"* {group.sentence}", soft_wrap=False)
    out.print()


def _table(group: Group, named: Sequence[tuple[str, Row]], columns: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    for head, key in zip(short_names(columns), columns, strict=True):
        numeric = key not in ALWAYS and any(number(row.fields.get(key)) is not None for _, row in named)
        table.add_column(folded(head), justify="right" if numeric else "left", no_wrap=True)
    for name, row in named:
        best = group.best is row
        style = "bold" if best else STYLES.get(row.status)
        cells = (written(key, row.fields.get(key)) for key in columns)
        table.add_row(("* " if best else "  ") + name, *cells, style=style)
    return table


def folded(name: str) -> str:
    """A column's head in lines, broken behind its separators."""
    lines = [""]
    for part in re.findall(r"[^./_]+[./_]*|[./_]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > FOLD:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _fit(
    group: Group, named: Sequence[tuple[str, Row]], columns: Sequence[str], width: int
) -> tuple[list[str], list[str]]:
    """The columns that a width has room for, and the rest: the metric first, then the others in order, last the start
    (which runs' own names tell)."""
    room = width - max(len(name) for name, _ in named) - 4
    metric = group.aim.metric if group.aim else ""
    kept = set()
    heads = dict(zip(columns, short_names(columns), strict=True))
    for key in sorted(columns, key=lambda key: (key != metric, key == "start", columns.index(key))):
        cells = max(len(written(key, row.fields.get(key))) for _, row in named)
        needs = max(cells, *map(len, folded(heads[key]).splitlines())) + 2
        if needs <= room:
            room -= needs
            kept.add(key)
    return [key for key in columns if key in kept], [key for key in columns if key not in kept]


def show_effects(effects: Effects, name: str, out: Console | None = None) -> None:
    """Each key's values with the metric's mean ± standard error."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = out or console()
    out.print(f"effects in {name} on {effects.metric}", style="bold", soft_wrap=False)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("key", overflow="fold")
    table.add_column("value", no_wrap=True)
    table.add_column("trials", justify="right")
    table.add_column("mean ± error", justify="right")
    table.add_column("explains", justify="right")
    for effect in effects.effects:
        share = "" if math.isnan(effect.explained) else f"{effect.explained:.0%}"
        rho = "" if math.isnan(effect.rank_correlation) else f"ρ {effect.rank_correlation:+.2f}"
        beside = {0: (effect.key, share), 1: ("", rho)}
        for place, level in enumerate(effect.levels):
            key, told = beside.get(place, ("", ""))
            table.add_row(key, level.value, str(level.count), measured(level.mean, level.error), told)
        table.add_section()
    out.print(table)
    out.print("mean over the other keys; explains: share of the variance; ρ: rank correlation", soft_wrap=False)
    for remark in remarks(effects):
        out.print(remark, soft_wrap=False)
    out.print()


def measured(mean: float, error: float) -> str:
    """A mean and its standard error, which one run does not have."""
    return written("", mean) + ("" if math.isnan(error) else f" ± {error:.2g}")


def remarks(effects: Effects) -> list[str]:
    """What a reader of the effects must know."""
    told = []
    if effects.failed or effects.silent:
        told.append(f"left out: {effects.failed} that failed, {effects.silent} without a finite {effects.metric}")
    if not effects.balanced:
        told.append("values have unequal numbers of trials, so the other keys are not the same at each of them")
    return told


def show_difference(found: Difference, out: Console | None = None) -> None:
    """What differs, and the metrics side by side; of training's own metrics those that both lack are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = out or console()
    out.print(f"A: {found.runs[0]}\nB: {found.runs[1]}", style="bold")
    table = Table("key", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right", overflow="fold")
    for section in (found.configuration, found.surroundings):
        for key, (one, other) in section.items():
            table.add_row(key, _or_dash(key, one), _or_dash(key, other), "")
        table.add_section()
    if not found.configuration:
        out.print("the configurations are the same")
    for key, (before, after) in found.metrics.items():
        gap = "" if before is None or after is None else f"{after - before:+.4g}"
        table.add_row(key, _or_dash(key, before), _or_dash(key, after), gap)
    out.print(table)


def _or_dash(key: str, value: object) -> str:
    return "-" if value is None else written(key, value)
