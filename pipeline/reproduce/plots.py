"""Pictures of a table's numbers, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.reproduce.table import Number

LOGITS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Ticks of a scale on which 98 and 99 % are as far apart as 1 and 2 %."""


def curves(
    numbers: Sequence[Number], file: Path, across: str, up: str, logarithmic: bool = True, shares: bool = False
) -> Path:
    """One panel a metric, a line a row over the columns, which are numbers with or without a unit ("0.2 %").

    The paper's rows are dashed and grey. Bars are the spread. `shares` are drawn on a logit scale where none is 0 or 1.
    """
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(number.quantity for number in numbers))
    figure = Figure(figsize=(7.5 * len(metrics), 6))
    axes = figure.subplots(1, len(metrics), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        mine = [number for number in numbers if number.quantity == metric]
        for row, line in _lines(mine).items():
            xs = [_place(number) for number in line]
            axis.errorbar(xs, [n.ours for n in line], [n.spread for n in line], marker="o", ms=4, capsize=2, label=row)
        papers: dict[str, list[tuple[float, float]]] = {}
        for number in mine:
            if number.paper is not None:
                papers.setdefault(number.row, []).append((_place(number), number.paper))
        for points in {tuple(sorted(points)) for points in papers.values()}:
            axis.plot(*zip(*points, strict=True), color="grey", ls="--", marker="x", ms=5, label="the paper")
        if logarithmic:
            axis.set_xscale("log")
        ticks = sorted({_place(number) for number in mine})
        axis.set_xticks(ticks, [_name(mine, tick) for tick in ticks], fontsize=8)
        ends = [value for n in mine for value in (n.ours, n.paper) if value is not None]
        if shares and min(ends) > 0 and max(ends) < 1:
            axis.set_yscale("logit", nonpositive="clip")
            axis.set_ylim(0.7 * min(ends), 1 - 0.7 * (1 - max(ends)))
            low, high = axis.get_ylim()
            marks = [mark for mark in LOGITS if low <= mark <= high]
            axis.set_yticks(marks, [f"{mark:g}" for mark in marks])
        axis.minorticks_off()
        axis.set_xlabel(across)
        axis.set_ylabel(f"{up} ({metric})")
        axis.grid(alpha=0.3)
        handles, labels = axis.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axis.legend(once.values(), once.keys(), fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _saved(figure, numbers, file)


def supervision(numbers: Sequence[Number], file: Path) -> Path:
    """Accuracy over the share of complete pairs (MVAE figure 3)."""
    return curves(numbers, file, "complete training samples", "test accuracy", shares=True)


def coherence_curves(numbers: Sequence[Number], file: Path) -> Path:
    """Coherence over the share of complete pairs (SVAE figures 4, 7 and 8)."""
    return curves(numbers, file, "complete training samples", "test")


def beside(numbers: Sequence[Number], file: Path) -> Path:
    """Ours against the paper's, a panel a metric: a dot and its bar for each row and column, a cross for the paper."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys((number.column, number.metric) for number in numbers))
    height = max(sum((n.column, n.metric) == metric for n in numbers) for metric in metrics)
    figure = Figure(figsize=(4.2 * len(metrics), 1.5 + 0.4 * height))
    axes = figure.subplots(1, len(metrics), squeeze=False)
    for axis, (column, metric) in zip(axes[0], metrics, strict=True):
        mine = [number for number in numbers if (number.column, number.metric) == (column, metric)]
        places: Any = range(len(mine))
        axis.errorbar([n.ours for n in mine], places, xerr=[n.spread for n in mine], fmt="o", capsize=2, label="ours")
        known = [(number.paper, place) for place, number in zip(places, mine, strict=True) if number.paper is not None]
        if known:
            axis.plot(*zip(*known, strict=True), "x", color="grey", label="the paper")
        axis.set_yticks(places, [number.row for number in mine], fontsize=7)
        axis.invert_yaxis()
        axis.set_title("\n".join(dict.fromkeys((column, metric))), fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return _saved(figure, numbers, file)


def _saved(figure: Any, numbers: Sequence[Number], file: Path) -> Path:
    commands = {number.command for number in numbers}
    made = numbers[0].command if len(commands) == 1 else f"{len(commands)} commands, which {file.stem}.csv names"
    figure.suptitle(f"{numbers[0].table}: {made}", fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return file


def _lines(numbers: Sequence[Number]) -> dict[str, list[Number]]:
    """By row and length of training, in the order of the columns."""
    lines: dict[str, list[Number]] = {}
    for number in sorted(numbers, key=_place):
        lines.setdefault(f"{number.row} ({number.epochs:.3g} epochs)", []).append(number)
    return lines


def _place(number: Number) -> float:
    return float(number.column.split()[-2 if number.column.endswith("%") else -1])


def _name(numbers: Sequence[Number], place: float) -> str:
    return next(number.column for number in numbers if _place(number) == place)
