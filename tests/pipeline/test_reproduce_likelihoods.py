"""The tables of likelihoods: whose number stands beside whose."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.config import override
from pipeline.corpora import prepare
from pipeline.reproduce.likelihoods import DATA, LIKELIHOODS, OURS, likelihoods, weight_variance
from pipeline.reproduce.table import Extent
from tests.pipeline.corpora import tiny

LABELLED = [place for place, name in enumerate(DATA) if name not in ("multimnist", "celeba")]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for corpus in DATA:
        prepare(corpus, Path("data", corpus), source=tiny(corpus, tmp_path / "raw" / corpus)[1])
    return tmp_path


@pytest.mark.parametrize("system", ["JMVAE", "MVAE-Q", "MVAE"])
@pytest.mark.parametrize("source", ["image", "all"])
def test_a_conditional_stands_beside_the_paper_s_of_the_same_posterior(system: str, source: str) -> None:
    """log p(x | y) = log p(x, y) + log 10 for even labels: so the printed ones say which posterior they are from."""
    joint = LIKELIHOODS.get((system, "log_p/all" if source == "all" else f"log_p/all.by_{source}"))
    given = LIKELIHOODS.get((system, f"log_p/image_given_label.by_{source}"))
    assert (joint is None) == (given is None) == (source == "all" and system == "MVAE-Q")
    for place in LABELLED if joint and given else []:
        assert given[place] == pytest.approx(joint[place] + math.log(10), abs=0.35)  # type: ignore[index, operator]


def test_what_no_table_has_stands_beside_nothing(small: Path) -> None:
    cells = {(cell.row, cell.column): cell for cell in likelihoods(Extent(budget=1e-6))}
    assert cells["MVAE: log_p/image_given_label", "mnist"].paper is None
    assert cells["MVAE: log_p/image_given_label.by_image", "mnist"].paper == -88.569
    assert cells["CVAE: log_p/image_given_label", "mnist"].paper == -87.773
    assert ("CVAE: log_p/image_given_string", "multimnist") not in cells


def test_ours_stands_beside_the_paper_s_mvae(small: Path) -> None:
    cells = {(cell.row, cell.column): cell for cell in likelihoods(Extent(budget=1e-6))}
    (name,) = OURS
    theirs = {where: cell for where, cell in cells.items() if where[0].startswith("MVAE:")}
    assert len(theirs) == 7 * len(DATA)
    for (row, column), cell in theirs.items():
        ours = cells[row.replace("MVAE", name), column]
        assert (ours.paper, ours.metric) == (cell.paper, cell.metric)
        ((run,), (plain,)) = ([work.run for work in one.candidates[0]] for one in (ours, cell))
        changed = {"objective.anneal": run.objective.anneal, "optim.decay": run.optim.decay}
        assert run == override(plain, changed) != plain


def test_mvae19_is_its_own_recipe_on_celeba_alone(small: Path) -> None:
    cells = [cell for cell in likelihoods(Extent(budget=1e-6)) if cell.row.startswith("MVAE19")]
    assert {cell.column for cell in cells} == {"celeba"}
    assert {work.run.recipe for cell in cells for works in cell.candidates for work in works} == {"celeba19"}


@pytest.mark.parametrize("rows", [(), ("log_weight_variance",), ("log_weight_variance/image",), ("MVAE:",)])
def test_a_variance_never_stands_without_the_likelihood_of_its_checkpoint(small: Path, rows: tuple[str, ...]) -> None:
    cells = {(cell.row, cell.column): cell for cell in weight_variance(Extent(budget=1e-6, rows=rows))}
    variances = [where for where in cells if "log_weight_variance" in where[0]]
    assert variances
    for row, column in variances:
        partner = cells[row.replace("log_weight_variance", "log_p"), column]
        assert partner.candidates == cells[row, column].candidates
