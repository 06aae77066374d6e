"""Pictures of a sweep: its trials as parallel coordinates, and the metric over supervision (as MVAE figure 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.review.effects import FEW, comparable, standard_error
from pipeline.review.groups import Aim, Group
from pipeline.review.rows import Row, number, short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRACTION, SEED = "pairing.fraction", "seed"
LINES = 8
"""Lines in a panel, at most."""
WIDE_RANGE = 20
"""Largest over smallest of numbers from which on an axis is logarithmic."""
KEYS = 9
"""Coordinates of the parallel ones, at most: those of most effect come first."""
SPREAD = 0.18
"""Height over which the lines of one value are spread, at most."""
DPI = 110


def pictures(group: Group, keys: Sequence[str] | None = None) -> dict[str, bytes]:
    """What can be drawn of a group, as PNG by name: `parallel`, and `supervision` where the fraction was swept.

    `keys` are the swept keys in another order than the configuration's. Empty where no two runs can be compared.
    """
    aim = group.aim
    keys = list(keys or group.swept)
    rows = comparable(group)
    if aim is None or not keys or len(rows) < 2:
        return {}
    made = {"parallel": png(parallel(rows, keys, aim, group.name))}
    if FRACTION in keys:
        made["supervision"] = png(supervision(rows, keys, aim, group.name))
    return made


def png(figure: Figure) -> bytes:
    """A figure's file."""
    stream = BytesIO()
    figure.savefig(stream, dpi=DPI)
    return stream.getvalue()


def parallel(rows: Sequence[Row], keys: Sequence[str], aim: Aim, title: str) -> Figure:
    """An axis for each key and one for the metric, a line for each run; the darker the better, the best in red.

    Lines that meet at a value of few are spread, so that each can be followed.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    hidden, keys = keys[KEYS:], keys[:KEYS]
    rows = list(reversed(aim.sorted(rows)))  # the best is drawn last, on top
    scores = np.array([aim.of(row) for row in rows], float)
    figure = Figure(figsize=(max(6.5, 1.7 * (len(keys) + 1)), 4.4))
    axis = figure.subplots()
    scales = [*(_scale([row.params.get(key) for row in rows]) for key in keys), _continuous(scores, False)]
    rank = np.argsort(np.argsort(scores)) / max(1, len(rows) - 1)
    places = np.stack([scale.heights + scale.apart * (rank - 0.5) for scale in scales], axis=1)  # (rows, axes)
    shade = rank if aim.direction == "max" else 1 - rank
    colours = colormaps["YlGnBu"](0.25 + 0.75 * shade)
    lines = [list(enumerate(line)) for line in places]
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=1.2, alpha=0.9 if len(rows) <= 60 else 0.5))
    axis.add_collection(LineCollection(lines[-1:], colors="crimson", linewidths=2.2))
    for place, scale in enumerate(scales):
        axis.axvline(place, color="0.3", linewidth=0.8)
        for height, name in scale.ticks:
            axis.annotate(
                name, (place, height), (4, 0), "data", "offset points", fontsize=8, va="center",
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )  # fmt: skip
    axis.set_xlim(-0.1, len(keys) + 0.45)
    axis.set_ylim(-SPREAD / 1.8, 1 + SPREAD / 1.8)
    axis.set_xticks(range(len(keys) + 1), [_folded(name) for name in (*short_names(keys), aim.metric)], fontsize=8)
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    more = f"; not shown: {', '.join(hidden)}" if hidden else ""
    figure.suptitle(f"{title}: {len(rows)} trials, dark is better, red is best{more}", fontsize=9)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class Scale:
    """One of the parallel axes."""

    heights: np.ndarray
    """Of each run, 0 to 1."""
    ticks: list[tuple[float, str]]
    apart: float = 0.0
    """Height over which runs of the same value are spread."""


def _scale(values: Sequence[str | None]) -> Scale:
    """Few values and names stand at even distances, many numbers where they belong."""
    numbers = [number(value) for value in values]
    if None not in numbers and len(set(numbers)) > FEW:
        return _continuous(np.array(numbers, float))
    names = sorted(set(values), key=lambda value: (number(value) is None, number(value) or 0.0, str(value)))
    heights = dict(zip(names, np.linspace(0, 1, len(names)) if len(names) > 1 else [0.5], strict=True))
    ticks = [(float(heights[name]), "none" if name is None else name) for name in names]
    return Scale(np.array([heights[value] for value in values]), ticks, min(SPREAD, 0.5 / len(names)))


def _continuous(values: np.ndarray, may_log: bool = True) -> Scale:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Scale(np.full(len(values), 0.5), [(0.5, f"{low:.3g}")])
    log = may_log and low > 0 and high / low > WIDE_RANGE
    heights = np.log(values / low) / math.log(high / low) if log else (values - low) / (high - low)
    marks = np.geomspace(low, high, 5) if log else np.linspace(low, high, 5)
    return Scale(heights, [(place / 4, f"{mark:.3g}") for place, mark in enumerate(marks)])


def _folded(name: str) -> str:
    return name.replace("/", "/\n", 1).replace("_given_", "\ngiven ")


def supervision(rows: Sequence[Row], keys: Sequence[str], aim: Aim, title: str) -> Figure:
    """The metric over the share of complete samples: a line for each setting of the other keys, means over seeds.

    Where these settings are many, a panel for each of the other keys, with means over the rest. Bars are standard
    errors of means.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if number(row.params.get(FRACTION)) is not None]
    others = [key for key in keys if key not in (FRACTION, SEED)]
    settings = {tuple(row.params.get(key) for key in others) for row in rows}
    panels = [others] if len(settings) <= LINES else [[key] for key in others if len(_values(rows, key)) <= LINES]
    panels = panels[:4] or [[]]
    figure = Figure(figsize=(max(6.0, 4.6 * len(panels)), 4.0))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        lines: dict[tuple[str | None, ...], list[Row]] = {}
        for row in rows:
            lines.setdefault(tuple(row.params.get(key) for key in panel), []).append(row)
        names = short_names(panel)
        for setting in sorted(lines, key=lambda values: [(number(v) or 0.0, str(v)) for v in values]):
            label = ", ".join(f"{name} {value}" for name, value in zip(names, setting, strict=True))
            _line(axis, lines[setting], aim, label or None)
        axis.set_xscale("log")
        fractions = sorted({float(row.params[FRACTION]) for row in rows})
        if len(fractions) <= FEW:
            axis.set_xticks(fractions, [f"{fraction:g}" for fraction in fractions], fontsize=8)
            axis.minorticks_off()
        axis.set_xlabel("share of complete training samples")
        axis.grid(alpha=0.3)
        if panel:
            axis.legend(fontsize=7)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel(aim.metric + (" (nats)" if aim.metric.endswith("elbo") else ""), fontsize=8)
    repeated = len(rows) > len({(row.params[FRACTION], *(row.params.get(key) for key in panels[0])) for row in rows})
    note = ": means and their standard errors" if repeated else ""
    figure.suptitle(f"{title}: {len(rows)} trials{note}", fontsize=9)
    figure.tight_layout()
    return figure


def _values(rows: Sequence[Row], key: str) -> set[str | None]:
    return {row.params.get(key) for row in rows}


def _line(axis: Any, rows: Sequence[Row], aim: Aim, label: str | None) -> None:
    points: dict[float, list[float]] = {}
    for row in rows:
        points.setdefault(float(row.params[FRACTION]), []).append(aim.of(row) or 0.0)
    xs = sorted(points)
    means = [float(np.mean(points[x])) for x in xs]
    if len(xs) > FEW:  # sampled at random: a line would only zigzag
        axis.plot(xs, means, "o", markersize=3, label=label)
        return
    errors = [standard_error(np.array(points[x])) for x in xs]
    axis.errorbar(xs, means, [0 if math.isnan(e) else e for e in errors], marker="o", ms=4, capsize=2, label=label)
