"""A run is a value: JSON and back, edited by dotted keys, refused in one sentence where it makes no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from modalities import Image, Label
from pipeline.config import Run, flatten, from_dict, load, override, save, to_dict
from pipeline.recipes import RECIPES, SWEEPS, recipe, sweepable
from pipeline.recipes.sweep import Sweep
from pipeline.settings import Engine, Model, Objective, Optim, Pairing, Tracking, Training

RUN = Run(
    recipe="toy",
    data="some/where",
    modalities={"image": Image(2, 3, levels=16, hidden=(8, 4)), "label": Label(3), "5_o_clock": Label(2)},
    seed=2**40,
    pairing=Pairing("split", 0.25, 1.0, 7, "balanced", 0.75),
    model=Model(3, "svae"),
    objective=Objective(2, {"label": 50.0}, 0.5, 0.1, 0.2, True, 0.3, 0.4, 0.7, 3, "tight", "iwae", 0.8, 0.9),
    optim=Optim(2e-4, (0.8, 0.99), 1.5, 0.6),
    train=Training(12, 34, 5, 6, 7, 3, "val/elbo", "min", 9, 0.01),
    engine=Engine(2, "bf16", 3, "cpu", 1, 2, 30.0, True),
    tracking=Tracking("sqlite:///x.db", "name", False, False),
)
PLAIN = Run(recipe="plain", data="d", modalities={"label": Label(3)})


def sentence(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("run", [RUN, PLAIN, *(make() for make in RECIPES.values())], ids=lambda run: run.recipe)
def test_json_and_back(run: Run, tmp_path: Path) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run
    save(run, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == run
    assert override(run, {}) == run
    assert override(run, {k: v for k, v in flatten(to_dict(run)).items() if v is not None}) == run
    assert list(load(tmp_path / "run.json").modalities) == list(run.modalities)  # the order of the experts


def test_every_field_survives() -> None:
    """RUN differs from the defaults (nearly) everywhere, so the round trip above cannot pass by default values."""
    alike = ("best", "keep")
    for section in (RUN.pairing, RUN.model, RUN.objective, RUN.optim, RUN.train, RUN.engine, RUN.tracking):
        for field in fields(section):
            assert getattr(section, field.name) != getattr(type(section)(), field.name) or field.name in alike


def test_flattened_keys_are_the_command_lines() -> None:
    flat = flatten(to_dict(RUN))
    assert flat["objective.lambda.label"] == 50
    assert flat["modalities.image.hidden"] == [8, 4]
    assert flat["pairing.fraction"] == 0.25
    assert flat["data"] == "some/where"
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("changes", "read", "expected"),
    [
        ({"pairing.fraction": 0.1}, lambda run: run.pairing.fraction, 0.1),
        ({"pairing.fraction": "0.1"}, lambda run: run.pairing.fraction, 0.1),
        ({"objective.lambda.label": 50}, lambda run: run.objective.lambda_, {"label": 50.0}),
        ({"objective.lambda.image": "2"}, lambda run: run.weights(), {"image": 2.0, "label": 50.0, "5_o_clock": 1.0}),
        ({"objective.k": "3", "seed": 4}, lambda run: (run.objective.k, run.seed), (3, 4)),
        ({"objective.shared_noise": "false"}, lambda run: run.objective.shared_noise, False),
        ({"modalities.image.hidden": [5]}, lambda run: run.modalities["image"], Image(2, 3, 16, (5,))),
        ({"modalities.label.classes": "9"}, lambda run: run.modalities["label"], Label(9)),
        ({"pairing.seed": None}, lambda run: run.pairing.seed, None),
        ({"optim.betas": [0.5, 0.6]}, lambda run: run.optim.betas, (0.5, 0.6)),
        ({"data": "else"}, lambda run: run.data, "else"),
    ],
)
def test_override(changes: dict[str, Any], read: Callable[[Run], Any], expected: object) -> None:
    before = to_dict(RUN)
    changed = override(RUN, changes)
    assert read(changed) == expected
    assert to_dict(RUN) == before
    rest = [{k: v for k, v in flatten(to_dict(run)).items() if k not in changes} for run in (RUN, changed)]
    assert rest[0] == rest[1]


def test_weights_name_every_modality() -> None:
    assert RUN.weights() == {"image": 1.0, "label": 50.0, "5_o_clock": 1.0}
    assert list(PLAIN.weights()) == ["label"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairing.fracton": 0.1}, ["pairing.fracton", "toy", "did you mean 'pairing.fraction'"]),
        ({"objective.lambda.lable": 1}, ["objective.lambda.lable", "did you mean 'objective.lambda.label'"]),
        ({"pairing": {}}, ["pairing is no field", "pairing."]),
        ({"pairing.fraction.x": 1}, ["pairing.fraction.x", "'pairing.fraction'"]),
        ({"pairing.fraction": 1.5}, ["pairing.fraction", "1.5", "between 0 and 1"]),
        ({"pairing.fraction": -0.1}, ["pairing.fraction", "-0.1", "between 0 and 1"]),
        ({"pairing.fraction": float("nan")}, ["pairing.fraction", "nan"]),
        ({"pairing.complete_share": 2}, ["pairing.complete_share", "between 0 and 1"]),
        ({"pairing.fraction": "all"}, ["pairing.fraction", "number", "'all'"]),
        ({"pairing.view": "spilt"}, ["pairing.view", "'split'", "'spilt'"]),
        ({"objective.k": 1.5}, ["objective.k", "integer", "1.5"]),
        ({"objective.k": -1}, ["objective.k", "-1"]),
        ({"objective.lambda.label": -1}, ["objective.lambda.label", "-1"]),
        ({"objective.lambda.label": "heavy"}, ["objective.lambda.label", "number", "'heavy'"]),
        ({"objective.lambda.label": float("nan")}, ["objective.lambda.label", "nan"]),
        ({"objective.anneal": 1.1}, ["objective.anneal", "1.1"]),
        ({"objective.beta": -1}, ["objective.beta"]),
        ({"objective.cross": -1}, ["objective.cross"]),
        ({"objective.alpha": -1}, ["objective.alpha", "-1"]),
        ({"objective.mu": 1.5}, ["objective.mu", "1.5"]),
        ({"objective.switch": -0.5}, ["objective.switch", "-0.5"]),
        ({"objective.samples": 0}, ["objective.samples", "at least 1"]),
        ({"objective.bound": "loose"}, ["objective.bound", "'stratified'", "'loose'"]),
        ({"objective.gradient": "reinforce"}, ["objective.gradient", "'dreg'"]),
        ({"engine.compile": True, "engine.zero_stage": 3}, ["engine.compile", "engine.zero_stage 0 to 2"]),
        ({"model.latent": 0}, ["model.latent", "at least 1"]),
        ({"optim.lr": 0}, ["optim.lr", "positive"]),
        ({"optim.clip": -1}, ["optim.clip"]),
        ({"optim.decay": 1.5}, ["optim.decay", "share"]),
        ({"optim.betas": [0.9, 1]}, ["optim.betas", "1.0"]),
        ({"optim.betas": [0.9]}, ["optim.betas", "required"]),
        ({"train.batch": 0}, ["train.batch", "at least one"]),
        ({"train.steps": 0}, ["train.steps"]),
        ({"train.keep": 1}, ["train.keep", "at least two"]),
        ({"train.patience": -1}, ["train.patience"]),
        ({"train.log_every": 0}, ["train.log_every"]),
        ({"engine.accumulate": 0}, ["engine.accumulate"]),
        ({"engine.workers": -1}, ["engine.workers"]),
        ({"engine.zero_stage": 4}, ["engine.zero_stage", "4"]),
        ({"modalities.image.levels": 300}, ["modalities.image:", "levels is 300"]),
        ({"modalities.label.classes": "many"}, ["modalities.label.classes:", "integer", "'many'"]),
        ({"modalities.image.hidden": "64"}, ["modalities.image.hidden:", "tuple", "'64'"]),
        ({"modalities.image.kind": "sound"}, ["modalities.image", "'image'"]),
        ({"modalities.sound.classes": 3}, ["modalities.sound.classes is no field"]),
        ({"data": 3}, ["data", "string"]),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_one_sentence(changes: dict[str, Any], words: list[str]) -> None:
    said = sentence(lambda: override(RUN, changes))
    assert all(word in said for word in words), said
    assert len(said) < 300


def test_a_weight_needs_its_modality() -> None:
    said = sentence(lambda: replace(RUN, objective=Objective(lambda_={"lable": 2.0})))
    assert said == "objective.lambda.lable: there is no modality 'lable'; did you mean 'label'?"
    assert "names no modality" in sentence(lambda: replace(PLAIN, modalities={}))
    for name in ("a.b", "", "two words"):  # they are parts of members' names, keys and metrics
        assert repr(name) in sentence(lambda name=name: replace(PLAIN, modalities={name: Label(2)}))


def test_a_stored_configuration_of_another_version_is_not_bent_to_fit(tmp_path: Path) -> None:
    def stored(edit: Callable[[dict[str, Any]], Any]) -> str:
        values = to_dict(RUN)
        edit(values)
        path = tmp_path / "run.json"
        path.write_text(json.dumps(values))
        said = sentence(lambda: load(path))
        assert str(path) in said
        return said

    assert "objective.kk is no field" in stored(lambda values: values["objective"].update(kk=1))
    assert "did you mean 'objective.lambda" in stored(lambda values: values["objective"].update(lambda_={"label": 3.0}))
    assert "modalities.image.depth is no" in stored(lambda values: values["modalities"]["image"].update(depth=3))
    assert "data: Field required" in stored(lambda values: values.pop("data"))
    assert "modalities.label.classes: Field required" in stored(
        lambda values: values["modalities"]["label"].pop("classes")
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"run"', "\ufeff{}", "\0"])
def test_a_damaged_file_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    assert "not a configuration" in sentence(lambda: load(path))
    path.write_bytes(b"\xff\xfe")
    assert "not a configuration" in sentence(lambda: load(path))
    assert "cannot read" in sentence(lambda: load(tmp_path / "none.json"))
    assert "cannot read" in sentence(lambda: load(tmp_path))


def test_frozen() -> None:
    sections = [RUN, *(getattr(RUN, f.name) for f in fields(RUN) if is_dataclass(getattr(RUN, f.name)))]
    assert len(sections) == 9
    for section in sections:
        with pytest.raises(FrozenInstanceError):
            setattr(section, fields(section)[0].name, None)


def test_names_of_recipes() -> None:
    assert recipe("digits").recipe == "digits"
    assert SWEEPS["digits"]().run == recipe("digits")
    assert set(sweepable()) >= {"digits", "mnist", "files"}
    assert set(SWEEPS) <= set(RECIPES)
    assert sentence(lambda: recipe("digit")) == "no recipe 'digit'; did you mean 'digits' or 'mnist-digits'?"


def test_the_configuration_imports_no_torch() -> None:
    code = "import sys, pipeline.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_grid_is_every_combination() -> None:
    plan = Sweep(RUN, {"objective.k": (0, 1), "objective.lambda.label": (1, 50)}, "val/elbo")
    assert plan.grid_cells() == [
        {"objective.k": k, "objective.lambda.label": weight} for k in (0, 1) for weight in (1, 50)
    ]
    assert [override(RUN, cell).objective.lambda_["label"] for cell in plan.grid_cells()] == [1, 50, 1, 50]


@pytest.mark.parametrize("grid", [{}, {"objective.k": ()}, {"objective.k": (1,), "seed": []}])
def test_an_empty_grid_is_refused(grid: dict[str, Any]) -> None:
    assert "nothing to sweep" in sentence(lambda: Sweep(RUN, grid, "val/elbo"))


def test_a_grid_is_checked_before_anything_runs() -> None:
    assert "did you mean 'objective.k'" in sentence(lambda: Sweep(RUN, {"objective.kk": (1, 2)}, "val/elbo"))
    assert "pairing.fraction is 2" in sentence(lambda: Sweep(RUN, {"pairing.fraction": (0.1, 2)}, "val/elbo"))
    assert "objective.lambda.sound" in sentence(lambda: Sweep(RUN, {"objective.lambda.sound": (1,)}, "val/elbo"))


@pytest.mark.parametrize(
    "key",
    [
        "objective.lambda.label",
        "objective.beta",
        "objective.k",
        "objective.cross",
        "objective.anneal",
        "objective.pseudo",
        "objective.confidence",
    ],
)
def test_a_weighted_metric_is_refused_where_its_weights_are_swept(key: str) -> None:
    for metric in ("train/objective", "val/objective"):
        said = sentence(lambda metric=metric: Sweep(RUN, {"seed": (0, 1), key: (0, 1)}, metric))
        assert "weighted" in said
        assert "val/elbo" in said
    for metric in ("val/elbo", "val/accuracy/label_given_image"):
        Sweep(RUN, {key: (0, 1)}, metric)
    for other in ("pairing.fraction", "seed", "optim.clip"):
        Sweep(RUN, {other: (0, 1)}, "train/objective")


def test_a_kill_while_a_run_is_saved_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 6, of the configuration that a resume begins with."""

    def killed(path: Path, text: str) -> int:
        with path.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    save(PLAIN, tmp_path / "run.json")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            save(RUN, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == PLAIN
