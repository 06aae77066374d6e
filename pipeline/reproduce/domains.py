"""Whether what a model generates belongs together: MNIST's halves and thirds, and digits of two domains.

SVAE section 4 (table 1), MMVAE section 4.2 (tables 1, 2 and 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluate.probes import probes
from pipeline.evaluate.run import Study, judged
from pipeline.reproduce.plots import beside, coherence_curves
from pipeline.reproduce.shortened import lasting
from pipeline.reproduce.table import Cell, Extent, Table, percent
from pipeline.reproduce.work import Trained

Published = Mapping[str, tuple[float | None, ...]]
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "MMVAE": {"model.system": "mmvae", "objective.samples": 1},
    "SVAE": {"model.system": "svae"},
    "VAEVAE": {"model.system": "vaevae-b"},
    "VAEVAE*": {"model.system": "vaevae-star"},
}
HALVES: Published = {
    "MMVAE": (0.539, 0.221, 0.283),
    "SVAE": (0.948, 0.872, 0.816),
    "VAEVAE": (0.956, 0.887, 0.830),
    "VAEVAE*": (0.958, 0.863, 0.778),
}
"""SVAE table 1: accuracy of both, the top half, the bottom half."""
CURVE = (0.001, 0.01, 0.1, 0.5, 1.0)
"""Shares of complete pairs: SVAE names 0.1 and 100 % in its text."""
HALF_METRICS = ("synergy/parts", "coherence/parts_given_top", "coherence/parts_given_bottom")
JOINT_METRICS = ("coherence/joint", "coherence/digits_given_mnist", "coherence/mnist_given_digits")
BERNOULLI: Mapping[str, Any] = {
    **{f"modalities.{name}.{key}": value for name in ("mnist", "digits")
       for key, value in (("likelihood", "bernoulli"), ("scale", 1.0))},
    "train.batch": 100, "objective.samples": 1, "objective.lambda.digits": 1.0,
}  # fmt: skip
"""SVAE's settings for digits of two domains, where the recipe has MMVAE's."""
TWO_LEVELS: Mapping[str, Mapping[str, Any]] = {
    "MMVAE": {},
    **{row: {**SYSTEMS[row], **BERNOULLI, "optim.lr": rate}
       for row, rate in (("SVAE", 1e-4), ("VAEVAE", 1e-3), ("VAEVAE*", 1e-3))},
}  # fmt: skip
THIRD_METRICS = ("synergy/parts", *(f"coherence/parts_given_{part}" for part in ("top", "middle", "bottom")))


def _judged(
    name: str, rows: Published, metrics: Sequence[str], paper_epochs: float, extent: Extent, scale: float = 1.0
) -> list[Cell]:
    """Systems by row, metrics of oracles by column; the best epoch as the paper chooses it (appendix F)."""
    cells = []
    for row, papers in rows.items():
        changes = {**SYSTEMS[row], "train.best": f"val/{metrics[1]}"}
        works = tuple(
            Trained(lasting(name, extent.epochs(paper_epochs), changes, seed), tuple(metrics), studies=(judged,))
            for seed in range(extent.seeds if extent.wants(row) else 0)
        )
        for metric, paper in zip(metrics, papers, strict=True):
            if works and extent.wants(row, metric):
                cells.append(Cell(row, metric, metric, paper, (works,), paper_epochs, scale=scale))
    return cells


def curve_cells(
    name: str,
    systems: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    study: Study,
    paper_epochs: float,
    extent: Extent,
    best: str,
) -> list[Cell]:
    """Systems over the share of complete pairs, a panel for each metric; the papers' curves are not in their text.

    The best epoch is that of the highest `best` on validation data.
    """
    cells = []
    for row, changes in systems.items():
        for level in CURVE:
            if not extent.wants(row, percent(level)):
                continue
            shown = {"pairing.view": "split", "pairing.fraction": level, "train.best": f"val/{best}"}
            works = tuple(
                Trained(lasting(name, extent.epochs(paper_epochs), {**changes, **shown}, seed), tuple(metrics),
                        studies=(study,))
                for seed in range(extent.seeds)
            )  # fmt: skip
            cells += [Cell(row, percent(level), metric, None, (works,), paper_epochs) for metric in metrics]
    return cells


def halves_levels(extent: Extent) -> list[Cell]:
    """SVAE figure 4."""
    return curve_cells("mnist-split", SYSTEMS, HALF_METRICS, judged, 200, extent, best=HALF_METRICS[1])


def two_domains_levels(extent: Extent) -> list[Cell]:
    """SVAE figure 7, each system with its paper's settings (SVAE appendix F.2)."""
    return curve_cells("mnist-digits", TWO_LEVELS, JOINT_METRICS, judged, 50, extent, best=JOINT_METRICS[0])


def mnist_split(extent: Extent) -> list[Cell]:
    """SVAE table 1."""
    return _judged("mnist-split", HALVES, HALF_METRICS, 200, extent)


def mnist_split3(extent: Extent) -> list[Cell]:
    """SVAE figure 6, of which the text says that SVAE is better than VAEVAE on single parts."""
    return _judged("mnist-split3", {"SVAE": (None,) * 4, "VAEVAE": (None,) * 4}, THIRD_METRICS, 50, extent)


TWO: Mapping[str, Mapping[str, Any]] = {
    "MMVAE": {},
    "MMVAE, eq. 5": {"objective.bound": "tight"},
    "MVAE": {"model.system": "mvae"},
}
COHERENCE: Published = {"MMVAE": (42.1, 86.4, 69.1), "MMVAE, eq. 5": (24.2, 74.6, 15.6), "MVAE": (12.7, 9.5, 9.3)}
"""MMVAE tables 2 and 5, MNIST and SVHN: joint, MNIST -> SVHN, SVHN -> MNIST; percent."""
PROBES: Published = {
    "MMVAE": (91.3, 68.0, None, None), "MMVAE, eq. 5": (None,) * 4, "MVAE": (95.7, 9.1, 94.9, 90.1)
}  # fmt: skip
"""MMVAE table 1: MNIST's and SVHN's digit from their own latents (of MVAE "single"), and from those of both."""
SINGLE = (85.3, 20.7)
"""MMVAE table 1: the same from the latents of a VAE of MNIST, and of one of SVHN."""


def two_domains(extent: Extent) -> list[Cell]:
    """MMVAE tables 1, 2 and 5, with scikit-learn's digits in SVHN's place."""
    cells = []
    linear = ("probe/label_given_mnist", "probe/label_given_digits", "probe/label_given_all")
    for row, changes in TWO.items():
        if not extent.wants(row):
            continue
        works = tuple(
            Trained(
                lasting("mnist-digits", extent.epochs(30), changes, seed), (*JOINT_METRICS, *linear),
                studies=(judged, probes),
            )
            for seed in range(extent.seeds)
        )  # fmt: skip
        papers = dict(zip(JOINT_METRICS + linear, COHERENCE[row] + PROBES[row][:3], strict=True))
        cells += [
            Cell(row, metric, metric, paper, (works,), 30, scale=100)
            for metric, paper in papers.items()
            if extent.wants(row, metric)
        ]
    for name, paper in zip(("mnist", "digits"), SINGLE, strict=True):
        metric, changes = f"probe/label_given_{name}", {"model.system": "vae", "objective.samples": 1}
        if extent.wants("VAE", metric):
            runs = (lasting("mnist-digits", extent.epochs(30), changes, seed, (name,)) for seed in range(extent.seeds))
            works = tuple(Trained(run, (metric,), studies=(probes,)) for run in runs)
            cells.append(Cell("VAE", metric, metric, paper, (works,), 30, scale=100))
    return cells


OTHER_DOMAIN = "the paper's second domain is SVHN; here it is scikit-learn's 8x8 digits"
TABLES = [
    Table("mnist-split", "Oracle's accuracy on digits made of their halves", "SVAE table 1", mnist_split, beside),
    Table("mnist-split3", "Oracle's accuracy on digits made of their thirds", "SVAE figure 6", mnist_split3, beside),
    Table(
        "two-domains", "Digits of two domains: coherence and linear probes, percent", "MMVAE tables 1, 2 and 5",
        two_domains, beside, OTHER_DOMAIN,
    ),
    Table(
        "mnist-split-levels", "Oracle's accuracy on digits made of their halves, by supervision", "SVAE figure 4",
        halves_levels, coherence_curves,
    ),
    Table(
        "two-domains-levels", "Digits of two domains: coherence by supervision", "SVAE figure 7", two_domains_levels,
        coherence_curves, OTHER_DOMAIN,
    ),
]  # fmt: skip
