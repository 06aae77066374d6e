"""What came out of a sweep: a table, a CSV file and a picture, each naming the command that made it."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.recipes.sweep import Sweep

FRACTION = "pairing.fraction"


@dataclass(frozen=True)
class Trial:
    """A trial and what became of it."""

    cell: Mapping[str, Any]
    """The keys in which it differs from the others."""
    directory: Path
    metrics: Mapping[str, float]
    """The validation metric at its best step, and the test metrics of that checkpoint; empty when it failed."""
    pairs: int
    """Complete rows that the training view showed."""
    error: str = ""
    stopped: bool = False
    """By the scheduler, before its last step: no test data were looked at."""


@dataclass(frozen=True)
class Baseline:
    """Logistic regression on the pairs of one supervision view."""

    cell: Mapping[str, Any]
    """The swept keys that decide which pairs there are."""
    pairs: int
    scores: Mapping[str, float]


def best_trials(sweep: Sweep, trials: list[Trial]) -> list[int]:
    """The best trial by the validation metric for each supervision fraction (of all trials where it is not swept)."""
    groups: dict[Any, list[int]] = {}
    for number, trial in enumerate(trials):
        if sweep.metric in trial.metrics:
            groups.setdefault(trial.cell.get(FRACTION), []).append(number)
    pick = max if sweep.direction == "max" else min
    return [pick(numbers, key=lambda n: trials[n].metrics[sweep.metric]) for numbers in groups.values()]


def write_csv(sweep: Sweep, trials: list[Trial], baselines: list[Baseline], command: str, file: Path) -> Path:
    """One line per trial and baseline, after a comment that names command, seed and data."""
    columns = [sweep.metric, *sweep.columns]
    with file.open("w", newline="") as stream:
        stream.write(f"# {command}; seed {sweep.run.seed}; {sweep.run.train.steps} steps; data {sweep.run.data}\n")
        writer = csv.writer(stream)
        writer.writerow(["model", *sweep.keys, "pairs", *columns, "error"])
        for trial in trials:
            numbers = [trial.metrics.get(name, "") for name in columns]
            writer.writerow(
                [_model(sweep, trial), *(trial.cell[key] for key in sweep.keys), trial.pairs, *numbers, trial.error]
            )
        for baseline in baselines:
            cell = [baseline.cell.get(key, "") for key in sweep.keys]
            scores = [baseline.scores.get(name, "") for name in columns]
            writer.writerow(["logistic regression", *cell, baseline.pairs, *scores, ""])
    return file


def draw(sweep: Sweep, trials: list[Trial], baselines: list[Baseline], file: Path) -> Path | None:
    """Each test accuracy against supervision, a line per other setting, the baseline dashed. None without fractions."""
    if FRACTION not in sweep.grid:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sweep.columns), figsize=(4.6 * len(sweep.columns), 3.8), squeeze=False)
    others = [key for key in sweep.grid if key != FRACTION]
    for axis, column in zip(axes[0], sweep.columns, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for trial in trials:
            label = ", ".join(f"{key.rpartition('.')[2]} {_short(trial.cell[key])}" for key in others)
            label = label or _model(sweep, trial)
            if column in trial.metrics:
                lines.setdefault(label.replace("label ", "λ_label "), []).append(
                    (trial.cell[FRACTION], trial.metrics[column])
                )
        for label, line in lines.items():
            # where other keys were drawn, neighbours differ in these too: points, no line
            axis.plot(*zip(*sorted(line), strict=True), marker="o", ls="" if sweep.sample else "-", label=label)
        known = [b for b in baselines if not math.isnan(b.scores.get(column, math.nan))]
        scores = [(b.cell[FRACTION], b.scores[column]) for b in known]
        if scores:
            axis.plot(*zip(*sorted(scores), strict=True), "k--", marker="x", label="logistic regression")
        axis.set_xscale("log")
        axis.set_xlabel("share of complete training samples")
        axis.set_title(column + (" (nats)" if column.endswith("elbo") else ""), fontsize=9)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _model(sweep: Sweep, trial: Trial) -> str:
    return str(trial.cell.get("model.system", sweep.run.model.system)).upper()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(plan: Sweep, trials: list[Trial], baselines: list[Baseline]) -> None:
    """The table; the best trial of each fraction, by validation, in bold."""
    from rich.console import Console
    from rich.table import Table

    columns = [plan.metric, *plan.columns]
    titles = ["model", *plan.keys, "pairs", *columns]
    table = Table(*(re.sub("[./_]", " ", title) for title in titles), title=f"sweep of {plan.run.recipe}")
    best = best_trials(plan, trials)
    for number, trial in enumerate(trials):
        values = [f"{trial.metrics[name]:.4f}" if name in trial.metrics else "-" for name in columns]
        style = "bold" if number in best else "red" if trial.error else "dim" if trial.stopped else None
        table.add_row(
            _model(plan, trial),
            *(_short(trial.cell[key]) for key in plan.keys),
            str(trial.pairs or ""),
            *values,
            style=style,
        )
    for baseline in baselines:
        cells = [_short(baseline.cell.get(key, "")) for key in plan.keys]
        values = [f"{baseline.scores[name]:.4f}" if name in baseline.scores else "" for name in columns]
        table.add_row("LR", *cells, str(baseline.pairs), *values, style="cyan")
    Console(width=max(120, Console().width)).print(table)
    print(
        "bold: best of its fraction by validation; LR: logistic regression on the same pairs; ELBO in nats, λ = β = 1"
    )
    if any(trial.stopped for trial in trials):
        print("dim: ended early by the scheduler, at its best validation so far")
    for trial in trials:
        if trial.error:
            print(f"failed: {trial.directory.name}: {trial.error}")
    if any(trial.error for trial in trials):
        where = os.path.relpath(trials[0].directory.parent)
        print(f"continue with: pairstream sweep {plan.run.recipe} --resume --out {where}")
