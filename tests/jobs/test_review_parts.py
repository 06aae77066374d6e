"""The parts of a review: which runs are compared by what, what effects and pictures make of odd sweeps."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from scipy.stats import sem, spearmanr

from infra.errors import UserError
from infra.tracking import DESTINATION
from pipeline.review import charts, effects, filing, groups, page, rows, terminal
from pipeline.review.conditions import matching
from pipeline.review.difference import difference
from pipeline.review.effects import effects_of
from pipeline.review.groups import Aim, Group, aim_of, grouped
from pipeline.review.rows import Row


def row(
    name: str,
    params: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    parent: str | None = "sweep",
    status: str = "FINISHED",
    **tags: str,
) -> Row:
    return Row.of(
        {
            "run_id": f"id-{name}", "experiment_id": "1", "name": name, "identity": name, "parent": parent,
            "status": status, "start": 1_700_000_000_000, "tags": tags, "metrics": metrics or {}, "more": "later",
            "params": {key: str(value) for key, value in (params or {}).items()},
        }
    )  # fmt: skip


def sweep_of(trials: list[Row], metric: str = "", direction: str = "") -> Group:
    (group,) = grouped([row("sweep", parent=None), *trials], trials, "", metric, direction)
    return group


def test_a_changed_parameter_counts_with_its_last_value() -> None:
    one = row("1", {"optim.lr": 0.1, "objective.k": 1}, **{"changed.optim.lr": "0.2"})
    assert one.params == {"optim.lr": "0.2", "objective.k": "1"}
    assert matching([one], ["optim.lr>0.15"]) == [one]


def test_runs_are_compared_by_what_picked_their_checkpoints() -> None:
    params = {"train.best": "val/fid", "train.best_is": "min"}
    trained = row("1", params, {"val/elbo": 1.0, "val/fid": 2.0})
    evaluated = row("2", params, {"val/elbo": 1.0, "val/fid": 2.0, "best/fid": 2.0})
    assert aim_of([evaluated]) == Aim("best/fid", "min")
    assert aim_of([trained, evaluated]) == Aim("val/fid", "min"), "what most runs report"
    assert aim_of([row("3", {}, {"val/elbo": 1.0})]) == Aim("val/elbo", "max")
    assert aim_of([row("4", params, {"val/elbo": 1.0})]) == Aim("val/elbo", "max")
    assert aim_of([row("5", params, {"train/x": 1.0})]) is None
    assert aim_of([evaluated], "test/fid") == Aim("test/fid", "min")
    odd = row("6", {"train.best": "val/odd", "train.best_is": "min"}, {"test/odd": 1.0})
    assert aim_of([odd], "test/odd") == Aim("test/odd", "min")
    assert aim_of([odd], "test/odd", "max") == Aim("test/odd", "max")
    sweep = row("6", parent=None, **{"pairstream.metric": "val/kl", "pairstream.direction": "min"})
    assert aim_of([row("7", params, {"val/kl": 1.0, "val/fid": 2.0})], sweep=sweep) == Aim("val/kl", "min")


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("val/elbo", "max"),
        ("test/accuracy/label_given_top", "max"),
        ("test/perplexity.caption", "min"),
        ("test/frechet", "min"),
        ("test/kl", "min"),
        ("speed/steps_per_second", "max"),
        ("train/loss", "min"),
        ("test/bleu.vi", "max"),
        ("test/blockloss", "max"),
    ],
)
def test_the_direction_of_a_metric_is_guessed_by_its_words(metric: str, direction: str) -> None:
    aim = aim_of([row("1", {}, {metric: 1.0})], metric)
    assert aim == Aim(metric, direction)


def test_a_metric_that_is_not_a_number_is_never_the_best_and_stands_last() -> None:
    trials = [row("1", {}, {"val/elbo": math.nan}), row("2", {}, {}), row("3", {}, {"val/elbo": -3.0})]
    trials.append(row("4", {}, {"val/elbo": -2.0}))
    group = sweep_of(trials)
    assert [one.name for one in group.rows] == ["4", "3", "1", "2"]
    assert group.best is trials[3]
    assert sweep_of(trials, "val/elbo", "min").best is trials[2]
    assert matching(trials, ["val/elbo<1e9"]) == trials[2:]
    assert sweep_of(trials[:2]).best is None
    assert sweep_of(trials[1:2]).sentence == ""


def test_what_changes_nothing_that_is_learnt_is_no_swept_key() -> None:
    same = {"recipe": "digits", "objective.k": 1}
    trials = [
        row("1", {**same, "data": "/a", "engine.device": "cpu", "train.keep": 2, "tracking.uri": "x", "seed": 1}),
        row("2", {**same, "data": "/b", "engine.device": "cuda", "train.keep": 3, "tracking.uri": "y", "seed": 2}),
    ]
    assert rows.varying(trials) == ["seed"]
    trials.append(row("3", {**same, "pairing.fraction": 1, "model.latent": 3}))
    trials.append(row("4", {**same, "pairing.fraction": 2, "model.latent": 4}))
    assert rows.varying(trials) == ["pairing.fraction", "seed", "model.latent"], "the most telling first"


def test_groups_are_the_newest_sweep_first_and_runs_on_their_own_last() -> None:
    def at(one: Row, start: int) -> Row:
        return Row(**{**one.__dict__, "start": start})

    old, new = (at(row(name, parent=None), start) for name, start in (("old", 1), ("new", 2)))
    waiting = at(row("waiting", parent=None, **{rows.SWEEP: "digits"}), 3)  # no trial of it has begun
    trials = [row("t1", parent="old"), row("t2", parent="new"), row("lost", parent="deleted"), row("own", parent=None)]
    everything = [old, new, waiting, *trials]
    found = grouped(everything, everything)
    assert [group.name for group in found] == ["waiting", "new", "old", groups.ALONE]
    assert [[one.name for one in group.rows] for group in found] == [[], ["t2"], ["t1"], ["lost", "own"]]
    assert [group.name for group in grouped(everything, trials[:1])] == ["old"], "the sweep of a trial that matches"
    assert groups.first(found, 2) == [[], [trials[1]], [trials[0]], []]
    assert groups.first(found, 0) == [group.rows for group in found]
    assert groups.runs_of(everything) == trials


def test_sweeps_of_the_same_name_are_told_apart() -> None:
    sweeps = [Row(**{**row("mine", parent=None).__dict__, "identity": name, "run_id": name}) for name in ("one", "two")]
    trials = [row(f"{name}-{k}", {"objective.k": k}, {"val/elbo": k}, name) for name in ("one", "two") for k in (0, 1)]
    found = grouped([*sweeps, *trials], trials)
    assert sorted(group.name for group in found) == ["mine (one)", "mine (two)"]


def test_many_values_of_a_key_are_taken_by_quarters() -> None:
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-3, 0, 41)
    scores = np.log10(values) + rng.normal(size=41) / 10
    pairs = zip(values.tolist(), scores.tolist(), strict=True)
    trials = [row(f"{n}", {"optim.lr": value}, {"val/elbo": score}) for n, (value, score) in enumerate(pairs)]
    (effect,) = effects_of(sweep_of(trials)).effects
    quarters = [np.sort(values)[part] for part in np.array_split(np.arange(41), 4)]
    assert [level.count for level in effect.levels] == [11, 10, 10, 10]
    for level, quarter in zip(effect.levels, quarters, strict=True):
        part = scores[(values >= quarter.min()) & (values <= quarter.max())]
        assert level.value == f"{quarter.min():.3g} to {quarter.max():.3g}"
        assert level.mean == pytest.approx(part.mean())
        assert level.error == pytest.approx(sem(part))
    assert (effect.rank_correlation, effect.p_value) == pytest.approx(tuple(spearmanr(values, scores)))
    assert 0.8 < effect.explained < 1


def test_trials_that_failed_or_say_nothing_are_left_out_of_effects_and_counted() -> None:
    settings = [("a", 1.0), ("a", 3.0), ("b", 10.0), ("b", math.nan), ("c", 5.0)]
    trials = [row(f"{n}", {"model.system": v}, {"val/elbo": s}) for n, (v, s) in enumerate(settings)]
    trials.append(row("5", {"model.system": "a"}, {"val/elbo": 1e6}, status="FAILED"))
    trials.append(row("6", {"model.system": "c"}))
    found = effects_of(sweep_of(trials))
    assert (found.used, found.failed, found.silent) == (4, 1, 2)
    (effect,) = found.effects
    assert [(level.value, level.count, level.mean) for level in effect.levels] == [
        ("a", 2, 2),
        ("b", 1, 10),
        ("c", 1, 5),
    ]
    assert effect.levels[0].error == pytest.approx(1.0)
    assert math.isnan(effect.levels[1].error)
    assert math.isnan(effect.rank_correlation), "names have no rank"
    assert not found.balanced
    told = terminal.remarks(found)
    assert told[0] == "left out: 1 that failed, 2 without a finite val/elbo"
    assert "unequal numbers" in told[1]
    with pytest.raises(UserError, match="1 runs of sweep report val/elbo, and two are the least"):
        effects_of(sweep_of([trials[0], trials[5], trials[6]]))


def test_a_metric_that_does_not_vary_has_no_effect() -> None:
    trials = [row(f"{k}{n}", {"objective.k": k}, {"val/elbo": -1.0}) for k in (0, 1, 2) for n in (0, 1)]
    (effect,) = effects_of(sweep_of(trials)).effects
    assert math.isnan(effect.explained)
    assert math.isnan(effect.rank_correlation)
    assert effects.standard_error(np.array([2.0, 2.0])) == 0


def trials_of(fractions: list[float], others: dict[str, list[Any]]) -> list[Row]:
    cells = list(product(fractions, *others.values()))
    return [
        row(f"{n:03d}-x", dict(zip(["pairing.fraction", *others], cell, strict=True)), {"val/elbo": -float(n)})
        for n, cell in enumerate(cells)
    ]


def test_a_supervision_curve_has_a_line_for_each_setting_and_means_over_seeds() -> None:
    trials = trials_of([0.1, 0.01, 1.0], {"objective.k": [0, 1], "seed": [0, 1, 2]})
    figure = charts.supervision(trials, ["pairing.fraction", "objective.k", "seed"], Aim("val/elbo", "max"), "mine")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["k 0", "k 1"]
    for k, line in enumerate(container.lines[0] for container in axis.containers):
        xs, ys = line.get_data()
        assert list(xs) == [0.01, 0.1, 1.0]
        for x, y in zip(xs, ys, strict=True):
            setting = {"pairing.fraction": str(float(x)), "objective.k": str(k)}
            scores = [one.metrics["val/elbo"] for one in trials if setting.items() <= one.params.items()]
            assert len(scores) == 3
            assert y == pytest.approx(np.mean(scores))
    assert axis.get_xscale() == "log"
    assert "standard errors" in figure.get_suptitle()


def test_too_many_settings_become_a_panel_for_each_key() -> None:
    trials = trials_of([0.1, 1.0], {"objective.k": [0, 1, 2], "objective.lambda.label": [1, 50], "optim.lr": [1, 2]})
    keys = ["pairing.fraction", "objective.k", "objective.lambda.label", "optim.lr"]
    figure = charts.supervision(trials, keys, Aim("val/elbo", "max"), "mine")
    legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]
    assert legends == [["k 0", "k 1", "k 2"], ["lambda.label 1", "lambda.label 50"], ["lr 1", "lr 2"]]
    (mean, _) = figure.axes[1].containers[0].lines[0].get_ydata()
    wanted = {"pairing.fraction": "0.1", "objective.lambda.label": "1"}
    assert mean == np.mean([one.metrics["val/elbo"] for one in trials if wanted.items() <= one.params.items()])


def test_parallel_coordinates_hold_a_line_for_each_run_and_the_best_in_red() -> None:
    trials = trials_of([0.001 * 1.3**n for n in range(12)], {"model.system": ["mvae", "svae"]})
    trials.append(row("odd", {"pairing.fraction": 0.5}, {"val/elbo": -3.5}))  # another key is missing
    figure = charts.parallel(trials, ["pairing.fraction", "model.system"], Aim("val/elbo", "max"), "mine")
    (axis,) = figure.axes
    lines, best = (one for one in axis.collections if isinstance(one, LineCollection))
    paths = [path.vertices for path in lines.get_paths()]
    assert len(paths) == 25
    (red,) = [path.vertices for path in best.get_paths()]
    assert np.array_equal(red, paths[-1])
    assert red[-1][1] == 1.0, "the largest of the metric"
    heights = np.array(paths)[:, :, 1]
    order = np.argsort(heights[:, 2])
    assert [trials[n].metrics["val/elbo"] for n in (0, 24)] == [0.0, -3.5]
    assert len(set(heights[:, 1].tolist())) == 25, "lines that meet at a name are spread"
    assert np.all(np.diff(heights[order, 2]) >= 0)
    labels = {text.get_text() for text in axis.texts}
    assert {"mvae", "svae", "none"} <= labels
    assert {f"{0.001:.3g}", f"{0.5:.3g}"} <= labels
    fractions = sorted(heights[:, 0])
    assert fractions[0] == pytest.approx(0)
    assert fractions[2] == pytest.approx(math.log(1.3) / math.log(500)), "a logarithmic axis"


def test_a_small_metric_is_drawn_best_at_the_bottom_when_less_is_better() -> None:
    trials = [row(f"{k}", {"objective.k": k}, {"train/loss": float(k)}) for k in range(3)]
    figure = charts.parallel(trials, ["objective.k"], Aim("train/loss", "min"), "mine")
    _, best = (one for one in figure.axes[0].collections if isinstance(one, LineCollection))
    (red,) = [path.vertices for path in best.get_paths()]
    assert red[-1][1] == 0.0


def test_nothing_is_drawn_of_what_cannot_be_compared() -> None:
    trials = trials_of([0.1, 1.0], {})
    assert set(charts.pictures(sweep_of(trials))) == {"parallel", "supervision"}
    assert charts.pictures(sweep_of(trials[:1])) == {}
    assert charts.pictures(sweep_of([row("1", {"objective.k": 1}), row("2", {"objective.k": 2})])) == {}
    swept = [row(f"{k}", {"objective.k": k}, {"val/elbo": 1.0}) for k in (0, 1)]
    assert set(charts.pictures(sweep_of(swept))) == {"parallel"}


def test_names_in_a_page_are_text_and_never_markup() -> None:
    trials = [
        row(f"<script>alert({k})</script>&", {"objective.k": k, "recipe": "<b>"}, {"val/elbo": k}) for k in (0, 1)
    ]
    group = sweep_of(trials)
    text = page.page("<i>", ["a < b"], [group], {"sweep": effects_of(group)}, {})
    assert text.count("<script>") == 1, "our own"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp; *" in text
    assert "<b>&lt;" not in text.replace("<b>* ", "")
    assert "<h1>&lt;i&gt;</h1>" in text


def test_columns_are_named_without_sections_as_long_as_they_differ() -> None:
    keys = ["pairing.fraction", "objective.lambda.label", "model.latent", "val/elbo", "pairing.seed", "seed", "name"]
    assert rows.short_names(keys) == ["fraction", "lambda.label", "latent", "val/elbo", "pairing.seed", "seed", "name"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.05", "0.05"), ("12345678", "1.235e+07"), ("[128, 128]", "[128, 128]"), ("0.123456789", "0.1235"),
        (-29.75489, "-29.75"), (0.8264, "0.8264"), (0.0012345, "0.001234"), (123456.0, "1.235e+05"), (math.nan, "nan"),
        (None, ""), (0.0, "0"), ("None", "None"),
    ],
)  # fmt: skip
def test_values_are_written_to_four_digits(value: object, text: str) -> None:
    assert rows.written("some.key", value) == text


def test_a_name_of_several_runs_is_told_from_its_sweep() -> None:
    sweeps = [row(name, parent=None) for name in ("one", "two")]
    trials = [Row(**{**row("000-k0", parent=name).__dict__, "run_id": f"{name}-id"}) for name in ("one", "two")]
    trials[1].params["objective.k"] = "3"
    with pytest.raises(UserError, match=r"2 runs are called '000-k0': one/000-k0 \(one-id, .*two/000-k0"):
        difference([*sweeps, *trials], "000-k0", "one")
    found = difference([*sweeps, *trials], "one/000", "two/000-k0")
    assert found.runs == ("one/000-k0", "two/000-k0")
    assert found.configuration == {"objective.k": (None, "3")}


def test_a_sweep_is_at_home_in_the_folder_of_its_trials(tmp_path: Path) -> None:
    (tmp_path / "sw").mkdir()
    where = {"uri": "sqlite:///x.db", "experiment": "e", "name": "sw", "identity": "sweep"}
    (tmp_path / "sw" / DESTINATION).write_text(json.dumps(where))
    trial = row("000", **{rows.DIRECTORY: str(tmp_path / "sw" / "000")})
    assert filing.home(sweep_of([trial])) == tmp_path / "sw"
    elsewhere = row("000", **{rows.DIRECTORY: str(tmp_path / "gone" / "000")})
    assert filing.home(sweep_of([elsewhere])) is None
    (tmp_path / "sw" / DESTINATION).write_text(json.dumps(where | {"identity": "another"}))
    assert filing.home(sweep_of([trial])) is None
