"""Warnings come when their signs last, once each, and say what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.alarms import Alarms
from pipeline.config import Run, override
from pipeline.recipes import recipe
from pipeline.settings import Training

IMAGE = "val/accuracy/label_given_image"


def mnist(**changes: object) -> Run:
    return override(recipe("mnist"), {"objective.lambda.label": 50, **changes})


def looks(run: Run, *validations: dict[str, float], first: int = 1000) -> list[list[str]]:
    alarms = Alarms(run)
    return [alarms.look(first * (number + 1), metrics) for number, metrics in enumerate(validations)]


def active(**units: float) -> dict[str, float]:
    return {f"val/latents/active.{name}": count for name, count in units.items()}


def shares(image: float, label: float, accuracy: float = 0.5) -> dict[str, float]:
    return {"val/precision.image": image, "val/precision.label": label, IMAGE: accuracy}


def test_a_run_that_learns_is_warned_of_nothing() -> None:
    healthy = [active(image=10, label=9, all=12) | shares(0.4, 0.35, accuracy) for accuracy in (0.1, 0.6, 0.9, 0.85)]
    assert looks(mnist(), *healthy) == [[]] * 4


def test_collapse_is_told_once_when_it_lasts() -> None:
    gone, back = active(image=0, label=0, all=0), active(image=1, label=1, all=1)
    told = looks(mnist(), gone, back, gone, gone, gone)
    assert told[:3] == [[], [], []]
    (warning,) = told[3]
    assert warning.startswith("step 4000: posterior collapse")
    assert "objective.anneal is 0.4" in warning
    assert "objective.beta (1)" in warning
    assert told[4] == []


def test_one_modality_s_posterior_may_collapse_alone() -> None:
    (warning,) = looks(mnist(), *[active(image=0, label=3, all=3)] * 2)[1]
    assert "depends on image alone; raise objective.lambda.image (1)" in warning


def test_modalities_that_collapse_together_share_a_sentence() -> None:
    alarms, both = Alarms(mnist()), active(image=0, label=0, all=3)
    (warning,) = [one for step in (1000, 2000, 3000) for one in alarms.look(step, both)]
    assert "depends on image or label alone; raise objective.lambda.image (1), objective.lambda.label (50), " in warning
    assert alarms.warnings == [warning]

    alarms = Alarms(mnist())
    points = (1000, active(image=0, all=3)), (2000, both), (3000, both)
    told = [alarms.look(step, metrics) for step, metrics in points]
    for warnings, name in zip(told[1:], ("image", "label"), strict=True):
        (warning,) = warnings
        assert f"depends on {name} alone; raise objective.lambda.{name} (" in warning
    assert alarms.warnings == [*told[1], *told[2]]


def test_what_is_fitted_later_has_not_collapsed_before() -> None:
    run = replace(recipe("mnist"), train=Training(steps=10_000, batch=100))
    run = override(run, {"model.system": "telbo"})
    told = looks(run, *[active(image=0, label=0, all=3)] * 7)
    assert told[:6] == [[]] * 6
    (warning,) = told[6]
    assert "depends on image or label alone" in warning


@pytest.mark.parametrize(("label", "warned"), [(0.9, False), (0.91, True)])
def test_an_overdominant_expert(label: float, warned: bool) -> None:
    told = looks(mnist(), *[shares(0.05, label)] * 2)
    assert told[0] == []
    assert bool(told[1]) == warned
    if warned:
        assert "the expert of label has 91%" in told[1][0]
        assert "lower objective.lambda.label (50)" in told[1][0]


def test_the_course_of_lambda_50_on_mnist_is_warned_of() -> None:
    """The label's share of the precision grows from 0.35 to 0.58, and the accuracy from the image falls to chance."""
    course = [shares(0.6, 0.35, 0.61), shares(0.5, 0.45, 0.5), shares(0.45, 0.5, 0.4), shares(0.35, 0.58, 0.18)]
    told = looks(mnist(), *course)
    assert told[:3] == [[], [], []]
    (warning,) = told[3]
    assert "accuracy of label from image has fallen to 0.180, it was 0.610" in warning
    assert "the expert of label may have become too sure; lower objective.lambda.label (50)" in warning


def test_the_loudest_expert_is_the_one_that_has_grown() -> None:
    course = [shares(0.7, 0.2, 0.9), shares(0.6, 0.35, 0.3), shares(0.6, 0.35, 0.3)]
    assert "the expert of label" in looks(mnist(), *course)[2][0]


def test_a_passing_dip_is_no_loss() -> None:
    assert looks(mnist(), *[shares(0.5, 0.4, accuracy) for accuracy in (0.9, 0.5, 0.8, 0.6, 0.9)]) == [[]] * 5


def test_systems_without_a_product_are_told_of_too() -> None:
    run = mnist(**{"model.system": "mvae-moe"})
    told = looks(run, {IMAGE: 0.9}, {IMAGE: 0.2}, {IMAGE: 0.2})
    assert "lower objective.lambda.label (50)" in told[2][0]


def test_guesses_that_get_worse_are_no_loss() -> None:
    assert looks(mnist(), *[shares(0.5, 0.4, accuracy) for accuracy in (0.112, 0.05, 0.082, 0.04)]) == [[]] * 4
