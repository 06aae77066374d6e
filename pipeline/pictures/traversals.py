"""Latent dimensions moved one by one, and how much each of them says of which modality (MMVAE figure 5).

Shape legend: D dimensions that are moved, O offsets, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from infra.errors import UserError
from pipeline.batch import Batch, empty_batch
from pipeline.evaluate.subject import Subject
from pipeline.pictures.looks import Face, faces, titled
from pipeline.pictures.made import decoded, lacking, makes, mean_of, rows
from pipeline.pictures.page import Chart, Element, Page, Panel, Tile, line_width, side_for
from pipeline.sheet import DARK

MOST = 12
"""Dimensions that are moved, at most."""
OFFSETS = np.linspace(-5, 5, 11)
"""Standard deviations of the prior by which they are moved (section 4.2)."""
CHART, DPI, LIGHT = (380, 120), 100, "#b8c2cc"
"""Width, at least, and height of a chart of bars in pixels; pixels of an inch; dimensions that are not moved."""
JOINT = "+"
"""Between the names of two modalities whose posteriors are compared."""


def strongest(divergences: Mapping[str, np.ndarray], most: int = MOST) -> list[int]:
    """The dimensions with the largest KL(q(z | x_m) || p(z)) of any modality m, the largest first."""
    largest = np.max([kl for name, kl in divergences.items() if JOINT not in name], axis=0)
    return np.argsort(-largest, kind="stable")[:most].tolist()


def moved(
    subject: Subject, batch: Batch, given: Sequence[str], dimensions: Sequence[int], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """These modalities decoded of the first row's mean of q(z | x_given), moved along each dimension: (D, O, …)."""
    device = subject.world.device
    mean_Z, step_Z = mean_of(subject, batch, given)[0], subject.model.prior(device).deviation[0]
    offset_O = torch.from_numpy(OFFSETS).to(mean_Z)
    z_DOZ = mean_Z.repeat(len(dimensions), len(offset_O), 1)
    for place, dimension in enumerate(dimensions):
        z_DOZ[place, :, dimension] += offset_O * step_Z[dimension]
    made = decoded(subject, names, z_DOZ.flatten(0, 1), empty_batch(subject.model.modalities, device))
    return {name: values.reshape(len(dimensions), len(offset_O), *values.shape[1:]) for name, values in made.items()}


def sheet(subject: Subject, divergences: Mapping[str, np.ndarray]) -> Page | None:
    """Bars of `divergences`, and a row of the split whose latent dimensions are moved by -5 to 5 σ_0.

    `divergences` are means over rows by latent dimension, (Z,), in nats: KL(q(z | x_m) || p(z)) under a modality's name
    and the symmetric KL of two posteriors under both names ("top+bottom"). None where no picture is made of one picture
    alone. Raises UserError for divergences of other latent dimensions, and where there are none of single modalities.
    """
    _check(subject, divergences)
    shown = faces(subject.run)
    batch = rows(subject, 1, [name for face in shown for name in face.names])
    able = [face for face in shown if {*face.names} <= {*makes(subject, face.names)}]
    able = [face for face in able if not lacking(batch, face.names).any()]
    if not able:
        return None
    sources = able if len(able) <= 2 else able[:1]
    dimensions = strongest(divergences)
    across = min(3, len(shown))
    side = side_for(len(OFFSETS), across, [face.longest for face in shown], most=64)
    grids: list[Sequence[Element]] = []
    for source in sources:
        panels = [_panel(subject, batch, source, face, dimensions, side) for face in shown]
        grids += [panels[start : start + across] for start in range(0, len(panels), across)]
    lines = [[_bars(divergences, dimensions, line_width(grids[0]))], *grids]
    title = titled(subject, f"dimensions of largest KL, moved by -5 to 5 σ of the prior; {batch.keys[0]}", data=True)
    return Page(title, lines)


def _check(subject: Subject, divergences: Mapping[str, np.ndarray]) -> None:
    if all(JOINT in name for name in divergences):
        raise UserError("traversals need the KL of single modalities by latent dimension, and were given none")
    for name, kl in divergences.items():
        if kl.shape != (subject.model.latent,):
            raise UserError(
                f"the KL of {name} by latent dimension has shape {kl.shape}, and the model has {subject.model.latent} "
                "latent dimensions: is it of another run?"
            )


def _panel(subject: Subject, batch: Batch, source: Face, face: Face, dimensions: Sequence[int], side: int) -> Panel:
    made = moved(subject, batch, source.names, dimensions, face.names)
    table = [face.pictures({name: values[place] for name, values in made.items()}) for place in range(len(dimensions))]
    heads = [f"{offset:+.0f}" if offset else "mean" for offset in OFFSETS]
    names = [f"z {dimension}" for dimension in dimensions]
    return Panel(f"{face.title}, from {source.title}", [[Tile(p) for p in line] for line in table], side, names, heads)


def _bars(divergences: Mapping[str, np.ndarray], dimensions: Sequence[int], width: int) -> Chart:
    """A small chart for each, the dimensions that are moved dark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across = min(len(divergences), max(1, width // CHART[0]))
    down = -(-len(divergences) // across)
    figure = Figure(figsize=(width / DPI, down * CHART[1] / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(divergences) :]:
        axis.set_visible(False)
    for axis, (name, kl) in zip(axes, divergences.items(), strict=False):
        colours = [DARK if dimension in dimensions else LIGHT for dimension in range(len(kl))]
        axis.bar(range(len(kl)), kl, color=colours, width=0.8)
        both = " and ".join(name.split(JOINT))
        title = f"symmetric KL, {both}" if JOINT in name else f"KL(q(z | {name}) || p(z))"
        axis.set_title(f"{title}, nats", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.01)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(pad=0.4, w_pad=2, h_pad=1)
    canvas.draw()
    return Chart(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
