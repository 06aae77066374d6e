"""Curves of a run from its journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infra.journal import points

ACROSS = 3
"""Panels beside each other."""


def draw(directory: Path, file: Path) -> Path:
    """One panel per quantity, training and validation together, over steps."""
    from matplotlib.figure import Figure

    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, values in points(directory):
        for name, value in values.items():
            kind, _, quantity = name.partition("/")
            if kind in ("train", "val"):
                panel = "accuracy" if quantity.startswith("accuracy/") else quantity
                label = quantity.removeprefix("accuracy/") if panel == "accuracy" else kind
                series.setdefault(panel, {}).setdefault(label, []).append((step, value))
    down = -(-len(series) // ACROSS)
    figure = Figure(figsize=(12, 2.6 * down))
    axes = np.ravel(figure.subplots(down, ACROSS))
    for axis in axes[len(series) :]:
        axis.set_visible(False)
    for axis, (panel, lines) in zip(axes, sorted(series.items()), strict=False):
        for label, line in lines.items():
            axis.plot(*zip(*line, strict=True), label=label, marker="." if len(line) < 20 else None, linewidth=1)
        nats = panel not in ("accuracy", "beta") and not panel.startswith("tokens.")
        axis.set_title(panel + (" (nats)" if nats else ""), fontsize=9)
        axis.legend(fontsize=7)
        axis.tick_params(labelsize=7)
    note = "training rows may lack modalities, so their ELBO and KL are of what is there"
    figure.suptitle(f"{directory.name}: means over rows, by step ({note})", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    return file
