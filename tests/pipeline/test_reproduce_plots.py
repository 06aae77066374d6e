"""Pictures of tables: whose curve is whose, one point at each place, every scale with its unit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.reproduce import plots, table
from pipeline.reproduce.plots import beside, coherence_curves, supervision
from pipeline.reproduce.table import Number

ACCURACY = "accuracy/label_given_image"


@pytest.fixture(autouse=True)
def _figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What draws returns its figure and writes no file."""
    monkeypatch.setattr(plots, "_saved", lambda figure, numbers, file: figure)


def number(row: str, column: str, ours: float, paper: float | None = None, **others: Any) -> Number:
    known = {"metric": ACCURACY, "spread": 0.01, "of": "rows", "runs": 1, "seeds": "0", "epochs": 10.0, "rows": 100}
    told = {"paper_epochs": 500.0, "data": "data/toy f1", "setting": "", "command": "pairstream reproduce toy"}
    return Number(table="toy", row=row, column=column, paper=paper, ours=ours, **known | told | others)


def line(row: str, ours: float, papers: dict[str, float | None]) -> list[Number]:
    return [number(row, column, ours, paper) for column, paper in papers.items()]


def points(artist: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*artist.get_data(), strict=True)]


def mine(axis: Any) -> dict[str, Any]:
    """Our lines, by what the legend calls them."""
    return {container.get_label(): container.lines[0] for container in axis.containers}


def dashed(axis: Any) -> list[tuple[str, list[tuple[float, float]]]]:
    """Colour and points of each curve of a paper."""
    return [(one.get_color(), points(one)) for one in axis.lines if one.get_linestyle() == "--" and points(one)]


def legend(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize("draw", [supervision, coherence_curves])
def test_a_papers_curve_has_the_colour_of_its_row(draw: Any) -> None:
    numbers = [
        *line("NN", 0.8, {"1 %": 0.79, "10 %": 0.94}),
        *line("AE", 0.7, {"1 %": 0.64, "10 %": 0.92}),
        *line("NN, augmented", 0.9, {"1 %": None, "10 %": None}),
    ]
    (axis,) = draw(numbers, Path("toy.png")).axes
    colours = {name.partition(" (")[0]: one.get_color() for name, one in mine(axis).items()}
    assert len(set(colours.values())) == 3
    assert dashed(axis) == [
        (colours["NN"], [(1, 0.79), (10, 0.94)]),
        (colours["AE"], [(1, 0.64), (10, 0.92)]),
    ]
    assert sum("the paper's" in text for text in legend(axis)) == 1
    assert len(legend(axis)) == 4


def test_a_papers_curve_of_several_rows_is_drawn_once_and_says_whose_it_is() -> None:
    numbers = [
        *line("for many pairs", 0.9, {"10 %": 0.97}),
        *line("as printed", 0.3, {"1 %": 0.88, "10 %": 0.97}),
        *line("NN", 0.8, {"1 %": 0.79}),
    ]
    (axis,) = supervision(numbers, Path("toy.png")).axes
    nn = mine(axis)["NN (10 epochs)"].get_color()
    assert dashed(axis) == [("black", [(1, 0.88), (10, 0.97)]), (nn, [(1, 0.79)])]
    assert 'the paper\'s, beside our row "as printed" and 1 more' in legend(axis)


def test_as_many_rows_as_a_table_has_have_colours_of_their_own() -> None:
    numbers = [one for row in range(18) for one in line(f"row {row}", 0.5, {"1 %": 0.3 + row / 100})]
    (axis,) = supervision(numbers, Path("toy.png")).axes
    assert len({one.get_color() for one in mine(axis).values()}) == 18
    assert len({colour for colour, _ in dashed(axis)}) == 18


def test_a_papers_row_without_a_number_of_ours_is_drawn() -> None:
    (axis,) = supervision([number("RBM", "1 %", math.nan, 0.83), number("NN", "1 %", 0.8)], Path("toy.png")).axes
    assert [of for _, of in dashed(axis)] == [[(1, 0.83)]]
    assert axis.get_yscale() == "logit"


def test_a_line_has_one_point_at_a_place_of_most_runs() -> None:
    numbers = [
        number("NN", "1 %", 0.80, runs=1),
        number("NN", "1 %", 0.82, runs=5),
        number("NN", "1 %", 0.81, runs=3),
        number("NN", "10 %", 0.90, runs=1),
        number("NN", "10 %", 0.91, epochs=10.001),
    ]
    (axis,) = supervision(numbers, Path("toy.png")).axes
    assert {name: points(one) for name, one in mine(axis).items()} == {"NN (10 epochs)": [(1, 0.82), (10, 0.91)]}
    longer = [*numbers, number("NN", "1 %", 0.95, epochs=100.0)]
    (axis,) = supervision(longer, Path("toy.png")).axes
    assert points(mine(axis)["NN (100 epochs)"]) == [(1, 0.95)]
    assert len({one.get_color() for one in mine(axis).values()}) == 1
    assert len({one.get_marker() for one in mine(axis).values()}) == 2

    axis = beside(longer, Path("toy.png")).axes[0]
    assert points(axis.containers[0].lines[0]) == [(0.82, 0), (0.95, 1)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["NN (10 epochs)", "NN (100 epochs)"]


def test_translations_have_a_panel_for_nats_one_for_bleu_one_for_chrf() -> None:
    metrics = ("log_p/all", "bleu/vi_given_en", "bleu/en_given_vi", "chrf/vi_given_en", "chrf/en_given_vi")
    papers = {"log_p/all": -478.0}
    numbers = [
        number(metric, column, -300.0 if metric in papers else 0.4, papers.get(metric), metric=metric)
        for metric in metrics
        for column in ("0.1 %", "100 %")
    ]
    draw = table("translation").draw
    assert draw
    figure: Any = draw(numbers, Path("translation.png"))
    assert [[name.partition(" (")[0] for name in mine(axis)] for axis in figure.axes] == [
        ["log_p/all"], ["bleu/vi_given_en", "bleu/en_given_vi"], ["chrf/vi_given_en", "chrf/en_given_vi"]
    ]  # fmt: skip
    for axis, unit in zip(figure.axes, ("nats", "BLEU", "chrF"), strict=True):
        assert unit in axis.get_ylabel()
        assert "accuracy" not in axis.get_ylabel()
        assert axis.get_yscale() == "linear"
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0.1 %", "100 %"]
    assert [len(dashed(axis)) for axis in figure.axes] == [1, 0, 0]


def test_a_variance_of_nats_is_no_nats() -> None:
    numbers = [
        number("own noise", f"k = {k}", -6500.0 if metric == "log_p/all" else 200.0, metric=metric)
        for metric in ("log_p/all", "log_weight_variance/all")
        for k in (0, 10)
    ]
    draw = table("k-effect").draw
    assert draw
    figure: Any = draw(numbers, Path("k-effect.png"))
    assert [axis.get_ylabel().rpartition(" ")[2] for axis in figure.axes] == ["(nats)", "(nats²)"]
    assert [axis.get_xscale() for axis in figure.axes] == ["linear", "linear"]


@pytest.mark.parametrize(("draw", "wide"), [(coherence_curves, 3), (beside, 4)])
def test_many_panels_go_on_below(draw: Any, wide: int) -> None:
    numbers = [number("NN", "1 %", 0.8, metric=f"coherence/{n}") for n in range(wide + 2)]
    figure: Any = draw(numbers, Path("toy.png"))
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == wide + 2
    places = [axis.get_subplotspec() for axis in shown]
    assert [(one.rowspan.start, one.colspan.start) for one in places] == [divmod(n, wide) for n in range(wide + 2)]
