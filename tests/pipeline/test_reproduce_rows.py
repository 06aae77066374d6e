"""The papers' rows that our tables have, each with its own work and number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modalities import Image
from pipeline.reproduce.domains import TWO_LEVELS, two_domains, two_domains_levels
from pipeline.reproduce.table import Cell, Extent
from pipeline.reproduce.weak import fashion_weak, mnist_weak, multimnist_weak
from pipeline.reproduce.work import Fitted
from pipeline.reproduce.worth import on_completed, worth
from pipeline.settings import Pairing


@pytest.fixture(autouse=True)
def _without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_table_10_has_jmvae_on_the_pairs_alone() -> None:
    cells = {(cell.row, cell.column): cell for cell in multimnist_weak(Extent())}
    cell = cells["JMVAE", "5 %"]
    assert (cell.paper, cell.metric) == (0.1772, "digits/string_given_image")
    (work,) = cell.works
    assert (work.run.model.system, work.run.pairing.complete_share) == ("jmvae", 1.0)


@pytest.mark.parametrize(("table", "shift"), [(mnist_weak, 3.0), (fashion_weak, 2.0)])
def test_the_supervised_bar_sees_what_ours_sees(table: Callable[[Extent], list[Cell]], shift: float) -> None:
    def moved(row: str) -> tuple[float, ...]:
        (cell,) = (cell for cell in table(Extent()) if (cell.row, cell.column) == (row, "10 %"))
        (work,) = cell.works
        assert isinstance(work, Fitted) is not row.startswith("ours")
        image = work.run.modalities["image"]
        assert isinstance(image, Image)
        return image.shift, image.rotate, image.zoom, image.shear, work.run.optim.decay

    *moves, rate = moved("ours: cross term, augmentation, pseudo-labels")
    assert moves[0] == shift
    assert moved("NN, augmented as ours") == (*moves, rate)
    assert moved("NN, augmented as ours, falling learning rate") == (*moves, 0.5)
    assert moved("ours, for many pairs: λ 500, 90 % complete rows, falling learning rate") == (*moves, 0.5)
    assert moved("NN") == moved("ours without augmentation") == (0.0, 0.0, 0.0, 0.0, rate)


def test_the_network_on_completed_data_sees_still_pictures_like_those_beside_it(tmp_path: Path) -> None:
    cells = {cell.row: cell.works[0].run for cell in worth(Extent(columns=("MNIST, 1 %",)))}
    completed = on_completed(cells["network on the completed data"], tmp_path)
    image, beside = completed.modalities["image"], cells["network on the pairs alone"].modalities["image"]
    assert image == beside
    assert isinstance(image, Image)
    assert not image.augmented
    assert (completed.data, completed.pairing) == (str(tmp_path), Pairing())


def test_only_what_needs_no_labels_is_trained_for_all_levels_at_once() -> None:
    cells = mnist_weak(Extent(columns=("1 %",)))
    runs = {cell.row: len(work.runs) for cell in cells for work in cell.works if isinstance(work, Fitted)}
    alone = dict.fromkeys(("NN", "NN, augmented as ours", "NN, augmented as ours, falling learning rate", "LOGREG"), 1)
    assert runs == dict.fromkeys(("AE", "RBM", "VAE"), 9) | alone


def test_each_single_vae_is_probed_in_its_own_domain() -> None:
    cells = {(cell.row, cell.metric): cell for cell in two_domains(Extent())}
    for name, paper in (("mnist", 85.3), ("digits", 20.7)):
        cell = cells["VAE", f"probe/label_given_{name}"]
        (work,) = cell.works
        assert (cell.paper, list(work.run.modalities), work.run.model.system) == (paper, [name], "vae")


def test_figure_7_trains_every_system_with_its_paper_s_settings() -> None:
    runs = {cell.row: work.run for cell in two_domains_levels(Extent()) for work in cell.works}
    assert set(runs) == set(TWO_LEVELS)
    mnist = {row: run.modalities["mnist"] for row, run in runs.items()}
    assert all(isinstance(image, Image) for image in mnist.values())
    assert {row: (run.optim.lr, run.objective.samples, mnist[row].likelihood) for row, run in runs.items()} == {
        "MMVAE": (1e-3, 30, "laplace"),
        "SVAE": (1e-4, 1, "bernoulli"),
        "VAEVAE": (1e-3, 1, "bernoulli"),
        "VAEVAE*": (1e-3, 1, "bernoulli"),
    }  # fmt: skip
    assert {run.train.best for run in runs.values()} == {"val/coherence/joint"}
