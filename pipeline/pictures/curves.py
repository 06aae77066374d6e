"""Curves of a run from its journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infra.journal import points

ACROSS = 3
"""Panels beside each other."""
TOGETHER = {
    "accuracy/": "accuracy",
    "precision.": "share of precision",
    "latents/active.": "active units",
    "latents/decided.": "dimensions that an expert decides",
    "latents/kl.": "KL of each posterior",
}
"""Quantities that share a panel, by how their names begin."""
NATS = ("elbo", "kl", "KL", "objective", "recon.")


def draw(directory: Path, file: Path) -> Path:
    """One panel per quantity, training and validation together, over steps."""
    from matplotlib.figure import Figure

    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, values in points(directory):
        for name, value in values.items():
            kind, _, quantity = name.partition("/")
            if kind in ("train", "val"):
                start = next((start for start in TOGETHER if quantity.startswith(start)), "")
                panel, label = (TOGETHER[start], quantity.removeprefix(start)) if start else (quantity, kind)
                series.setdefault(panel, {}).setdefault(label, []).append((step, value))
    down = -(-len(series) // ACROSS)
    figure = Figure(figsize=(12, 2.6 * down))
    axes = np.ravel(figure.subplots(down, ACROSS))
    for axis in axes[len(series) :]:
        axis.set_visible(False)
    for axis, (panel, lines) in zip(axes, sorted(series.items()), strict=False):
        for label, line in lines.items():
            axis.plot(*zip(*line, strict=True), label=label, marker="." if len(line) < 20 else None, linewidth=1)
        axis.set_title(panel + (" (nats)" if panel.startswith(NATS) else ""), fontsize=9)
        axis.legend(fontsize=7)
        axis.tick_params(labelsize=7)
    note = "training rows may lack modalities, so their ELBO and KL are of what is there"
    figure.suptitle(f"{directory.name}: means over rows, by step ({note})", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    return file
