"""How a step's time and memory grow with the number of modalities and of random subsets: both should be straight lines.

Each of N modalities is decoded for its single term and for the joint one: 2N times a batch's rows for k = 0, and N/2
times (on average) more for each random subset. The modalities are small and equal (`cases.small`), so that what a
modality costs by itself, whatever its size, weighs most.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.harness import Outcome, Series, alternate, drawing, repeated, resident
from pipeline.config import Run

COUNTS = (2, 4, 8, 16, 32, 64)
"""N, at k = 0."""
SUBSETS = (0, 5, 10, 20, 50)
"""k, at N = FIXED."""
FIXED = 8
STEPS = 8
"""Steps on different batches: random subsets differ in size, and their mean counts."""
TITLES = {"N": "N modalities, k = 0", "k": f"k random subsets, N = {FIXED}"}


def run(case: str, blocks: int, progress: Progress) -> Outcome:
    """Rows per second at each N and k. Figures: the least-squares lines through milliseconds and megabytes of a step.

    Memory is how far the peak of the resident set (VmHWM) of a fresh process that takes a few steps lies above what it
    had in memory (VmRSS) when everything was imported and a smallest model had taken a step.
    """
    points = {"N": [(n, 0) for n in COUNTS], "k": [(FIXED, k) for k in SUBSETS]}
    settings = {_name(n, k): cases.small(n, k) for n, k in dict.fromkeys(points["N"] + points["k"])}
    turns = {name: drawing(repeated(cases.steps(run, cases.batches(run, STEPS)))) for name, run in settings.items()}
    outcome = alternate("step", case, "rows", turns, blocks, progress=progress)
    memory = {name: _memory(len(run.modalities), run.objective.k) for name, run in settings.items()}
    figures: dict[str, float] = {}
    series: Series = {}
    for axis, along in points.items():
        names = [_name(n, k) for n, k in along]
        x = [float(k if axis == "k" else n) for n, k in along]
        time = [1000 * cases.SIZE / outcome.per_second[name] for name in names]
        peak = [memory[name] for name in names]
        decoded = [_decoded(settings[name]) for name in names]
        series[axis] = {"x": x, "ms per step": time, "peak memory, MB": peak, "decoded rows per step": decoded}
        for unit, y in (("ms", time), ("MB", peak)):
            figures |= {f"{axis}, {what}": value for what, value in line(x, y, unit).items()}
    return replace(outcome, figures=figures, series=series)


def _name(count: int, k: int) -> str:
    return f"N = {count}, k = {k}"


def line(x: Sequence[float], values: Sequence[float], unit: str) -> dict[str, float]:
    """The least-squares line through points: slope, intercept, R², and how far a point lies off it at most.

    That distance is a share of the largest value: a jump shows, and the smallest points need not meet the intercept.
    """
    y = np.asarray(values)
    slope, intercept = np.polyfit(x, y, 1)
    off = y - (slope * np.asarray(x) + intercept)
    whole = np.square(y - y.mean()).sum()
    return {
        f"{unit} for each": float(slope),
        f"{unit} at 0": float(intercept),
        f"{unit}, R²": float(1 - np.square(off).sum() / whole) if whole else 1.0,
        f"{unit}, largest deviation, share of the largest": float(np.abs(off).max() / y.max()),
    }


def _decoded(run: Run) -> float:
    """Rows that all decoders together run on in a step, the mean over the steps."""
    return float(np.mean([cases.decoded(run, batch, n).sum() for n, batch in enumerate(cases.batches(run, STEPS))]))


def _memory(count: int, k: int) -> float:
    """Megabytes (10^6 bytes) by which the peak of a fresh process grows."""
    program = f"from pipeline.benchmarks.growth import peak; peak({count}, {k})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def peak(count: int, k: int) -> None:
    """Take the steps in this process and print by how many megabytes its memory's peak grew."""
    torch.set_num_threads(1)
    least = cases.small(1, 0)
    cases.steps(least, cases.batches(least, 1))()  # loads what torch loads when it is first used
    before, run = resident()["resident"], cases.small(count, k)
    cases.steps(run, cases.batches(run, STEPS))()
    print(json.dumps(resident()["peak"] - before))


def picture(series: Series, file: Path) -> None:
    """Points and lines: time and memory over N, and over k."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    quantities = ("ms per step", "peak memory, MB")
    figure, axes = plt.subplots(len(quantities), len(series), figsize=(10, 7), squeeze=False)
    for across, (axis, values) in zip(axes.T, series.items(), strict=True):
        for panel, quantity in zip(across, quantities, strict=True):
            x, y = np.array(values["x"]), np.array(values[quantity])
            slope, intercept = np.polyfit(x, y, 1)
            panel.plot(x, slope * x + intercept, color="tab:gray", label=f"{slope:.3g} {axis} {intercept:+.3g}")
            panel.plot(x, y, "o", color="tab:blue", label="measured")
            panel.set(xlabel=axis, ylabel=quantity, ylim=(0, None))
            panel.legend()
        across[0].set_title(TITLES[axis])
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
