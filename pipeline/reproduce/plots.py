"""Pictures of a table's numbers, ours beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.reproduce.table import Number

LOGITS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Ticks of a scale on which 98 and 99 % are as far apart as 1 and 2 %."""
MARKERS = "osD^v"
"""Of the lengths of training of one row, which have its colour."""
LONG = 7
"""Letters of a tick's name beyond which neighbours may overlap."""
ACROSS, WIDE = 4, 3
"""Panels side by side where there are many; of those with curves fewer."""
TRANSLATION = {
    "log_p": "log-likelihood of a pair, log_p/all (nats)",
    "bleu": "BLEU of translations (0 to 100)",
    "chrf": "chrF of translations (0 to 100)",
}
"""Panels by what their metrics begin with."""
SUBSETS = {
    "log_p": "log-likelihood of all modalities, log_p/all (nats)",
    "log_weight_variance": "variance of the log importance weights (nats²)",
}


def curves(
    numbers: Sequence[Number],
    file: Path,
    across: str,
    up: str = "",
    logarithmic: bool = True,
    shares: bool = False,
    panels: Mapping[str, str] | None = None,
) -> Path:
    """One panel a metric, a line a row over the columns, which are numbers with or without a unit ("0.2 %").

    A paper's curve is dashed: in its row's colour, or black where several rows have it beside them. Bars are the
    spread. `shares` are drawn on a logit scale where none is 0 or 1. `panels` names panels, with units, by what metrics
    begin with: there bleu/vi_given_en and bleu/en_given_vi, each a row of its own, are two lines of one panel.
    """

    def panel_of(number: Number) -> str:
        return panels[number.metric.partition("/")[0]] if panels else f"{up} ({number.quantity})"

    of_panel: dict[str, list[Number]] = {}
    for number in numbers:
        of_panel.setdefault(panel_of(number), []).append(number)
    colours = _colours(numbers)
    entries = max(len(_lines(mine)) for mine in of_panel.values()) + 2
    height = 5 + 0.17 * entries  # legends lie below, an entry a line
    figure, axes = _panels(len(of_panel), WIDE, 7.5, height)
    for axis, (name, mine) in zip(axes, of_panel.items(), strict=True):
        _draw_ours(axis, mine, colours)
        _draw_papers(axis, mine, colours)
        if logarithmic:
            axis.set_xscale("log")
        ticks = sorted({_place(number) for number in mine})
        names = [_name(mine, tick) for tick in ticks]
        slanted: Any = {"rotation": 30, "ha": "right"} if max(map(len, names)) > LONG else {}
        axis.set_xticks(ticks, names, fontsize=8, **slanted)
        ends = [value for n in mine for value in (n.ours, n.paper) if value is not None and not math.isnan(value)]
        if shares and ends and min(ends) > 0 and max(ends) < 1:
            axis.set_yscale("logit", nonpositive="clip")
            axis.set_ylim(0.7 * min(ends), 1 - 0.7 * (1 - max(ends)))
            low, high = axis.get_ylim()
            marks = [mark for mark in LOGITS if low <= mark <= high]
            axis.set_yticks(marks, [f"{mark:g}" for mark in marks])
        axis.minorticks_off()
        axis.set_xlabel(across)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _saved(figure, numbers, file)


def supervision(numbers: Sequence[Number], file: Path) -> Path:
    """Accuracy over the share of complete pairs (MVAE figure 3)."""
    return curves(numbers, file, "complete training samples", "test accuracy", shares=True)


def coherence_curves(numbers: Sequence[Number], file: Path) -> Path:
    """Coherence over the share of complete pairs (SVAE figures 4, 7 and 8)."""
    return curves(numbers, file, "complete training samples", "test")


def translation_curves(numbers: Sequence[Number], file: Path) -> Path:
    """Nats, BLEU and chrF over the share of complete pairs, a panel each."""
    return curves(numbers, file, "complete training samples", panels=TRANSLATION)


def subset_curves(numbers: Sequence[Number], file: Path) -> Path:
    """Log-likelihood and variance over the random subsets of a step, k (MVAE figure 10)."""
    return curves(numbers, file, "random subsets a step, k", logarithmic=False, panels=SUBSETS)


def beside(numbers: Sequence[Number], file: Path) -> Path:
    """Ours against the paper's, a panel a metric: a dot and its bar for each row and column, a cross for the paper."""
    numbers = _one_each(numbers, lambda n: (n.row, n.column, n.metric, _length(n)))
    metrics = list(dict.fromkeys((number.column, number.metric) for number in numbers))
    height = max(sum((n.column, n.metric) == metric for n in numbers) for metric in metrics)
    figure, axes = _panels(len(metrics), ACROSS, 4.2, 1.5 + 0.4 * height)
    for axis, (column, metric) in zip(axes, metrics, strict=True):
        mine = [number for number in numbers if (number.column, number.metric) == (column, metric)]
        places: Any = range(len(mine))
        axis.errorbar([n.ours for n in mine], places, xerr=[n.spread for n in mine], fmt="o", capsize=2, label="ours")
        known = [(number.paper, place) for place, number in zip(places, mine, strict=True) if number.paper is not None]
        if known:
            axis.plot(*zip(*known, strict=True), "x", color="grey", label="the paper")
        rows = [number.row for number in mine]
        lengths = [f" ({_length(n)})" if rows.count(n.row) > 1 else "" for n in mine]
        names = [n.row.removesuffix(f": {metric}") + told for n, told in zip(mine, lengths, strict=True)]
        axis.set_yticks(places, names, fontsize=7)
        axis.invert_yaxis()
        axis.set_title("\n".join(dict.fromkeys((column, metric))), fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return _saved(figure, numbers, file)


def _draw_ours(axis: Any, numbers: Sequence[Number], colours: Mapping[str, Any]) -> None:
    drawn: list[str] = []
    for (row, length), line in _lines(numbers).items():
        xs, ys, bars = zip(*((_place(n), n.ours, n.spread) for n in line), strict=True)
        marker = MARKERS[drawn.count(row) % len(MARKERS)]
        axis.errorbar(xs, ys, bars, color=colours[row], marker=marker, ms=4, capsize=2, label=f"{row} ({length})")
        drawn.append(row)


def _draw_papers(axis: Any, numbers: Sequence[Number], colours: Mapping[str, Any]) -> None:
    """The papers' curves, of which those in a row's colour are one entry of the legend."""
    dashed: Any = {"ls": "--", "lw": 1.2, "marker": "x", "ms": 5}
    told: dict[str, str] = {}
    for points, rows in _papers(numbers):
        colour = colours[rows[0]] if len(rows) == 1 else "black"
        xs, ys = zip(*sorted(points.items()), strict=True)
        axis.plot(xs, ys, color=colour, **dashed)
        if len(rows) == 1:
            told["the paper's, beside our row of the same colour"] = "grey"
        else:
            told[f'the paper\'s, beside our row "{min(rows, key=len)}" and {len(rows) - 1} more'] = "black"
    for label, colour in told.items():
        axis.plot([], [], color=colour, label=label, **dashed)


def _papers(numbers: Sequence[Number]) -> list[tuple[dict[float, float], list[str]]]:
    """Each curve of a paper once, with our rows that it, or a part of it, stands beside."""
    of_row: dict[str, dict[float, float]] = {}
    for number in numbers:
        if number.paper is not None:
            of_row.setdefault(number.row, {})[_place(number)] = number.paper
    found: list[tuple[dict[float, float], list[str]]] = []
    for row, points in sorted(of_row.items(), key=lambda item: -len(item[1])):
        same = next((rows for whole, rows in found if points.items() <= whole.items()), None)
        if same is None:
            found.append((points, [row]))
        else:
            same.append(row)
    return found


def _panels(count: int, most: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many panels, at most `most` side by side, each of a size in inches."""
    from matplotlib.figure import Figure

    across, down = min(count, most), -(-count // most)
    figure = Figure(figsize=(width * across, height * down))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _saved(figure: Any, numbers: Sequence[Number], file: Path) -> Path:
    commands = {number.command for number in numbers}
    made = numbers[0].command if len(commands) == 1 else f"{len(commands)} commands, which {file.stem}.csv names"
    title = figure.suptitle(f"{numbers[0].table}: {made}", fontsize=8, va="top")
    title.set_y(1 - 0.1 / figure.get_figheight())  # a tenth of an inch from the top, however tall
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return file


def _lines(numbers: Sequence[Number]) -> dict[tuple[str, str], list[Number]]:
    """By row and length of training, in the order of the columns: one number at each."""
    lines: dict[tuple[str, str], list[Number]] = {}
    for number in _one_each(numbers, lambda n: (n.row, _length(n), _place(n))):
        lines.setdefault((number.row, _length(number)), []).append(number)
    return {name: sorted(line, key=_place) for name, line in lines.items()}


def _one_each(numbers: Sequence[Number], place: Callable[[Number], Hashable]) -> list[Number]:
    """Of numbers in one place that of most epochs, then of most runs: a file keeps those of fewer runs too."""
    chosen: dict[Hashable, Number] = {}
    for number in numbers:
        there = chosen.setdefault(place(number), number)
        chosen[place(number)] = max(there, number, key=lambda n: (n.epochs, n.runs))
    return list(chosen.values())


def _colours(numbers: Sequence[Number]) -> dict[str, Any]:
    """A colour for each row, whatever panel it is in: nine that are easily told apart, then nine paler ones."""
    from matplotlib import color_sequences

    rows = list(dict.fromkeys(number.row for number in numbers))
    shades = color_sequences["tab20"]  # dark and pale by turns
    colours = [shade for start in (0, 1) for shade in shades[start::2] if shade not in shades[14:16]]  # which are grey
    return {row: colours[place % len(colours)] for place, row in enumerate(rows)}


def _length(number: Number) -> str:
    return f"{number.epochs:.3g} epochs"


def _place(number: Number) -> float:
    return float(number.column.split()[-2 if number.column.endswith("%") else -1])


def _name(numbers: Sequence[Number], place: float) -> str:
    return next(number.column for number in numbers if _place(number) == place)
