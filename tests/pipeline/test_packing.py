"""Packed trials are the runs that `train` makes: the same losses, curves and checkpoints, each by itself."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.checkpoint import Checkpoints
from infra.errors import UserError
from infra.journal import JOURNAL, parse, points
from infra.store import prepare_store
from infra.store import runs as runs_in
from infra.tracking import Tracker
from pipeline.config import Run
from pipeline.course import Result
from pipeline.packing import Member, train_packed
from pipeline.packing.seat import Seat
from pipeline.record import destination
from pipeline.train import train
from tests.pipeline.training import a_run

STEPS = 50
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fraction": {"pairing.fraction": 0.05, "objective.k": 2, "pairing.seed": 5},
    "weights": {
        "objective.lambda.label": 50.0,
        "objective.beta": 0.3,
        "objective.anneal": 0.1,
        "optim.lr": 5e-4,
        "optim.decay": 0.75,
    },
    "clipped": {"optim.clip": 0.5, "seed": 3, "objective.k": 0},
    "natural": {"pairing.composition": "natural", "objective.cross": 0.0, "optim.clip": 4.0},
}


def run_of(data: Path, name: str, **changes: Any) -> Run:
    training = {
        "train.steps": STEPS, "train.validate_every": 20, "train.checkpoint_every": 25, "train.log_every": 10,
        "train.keep": 9, "engine.workers": 0, "tracking.enabled": False,
    }  # fmt: skip
    return a_run(data, **{**training, **CHANGES[name], **changes})


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[list[Path]]:
    """They take longer than all else; the directories that they were asked for."""
    asked: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.pictures.illustrate", lambda run, directory, manifest: asked.append(directory) or [])
        yield asked


@pytest.fixture(scope="module")
def alone(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, list[float]]]:
    """Every trial by itself."""
    out, found = tmp_path_factory.mktemp("alone"), {}
    for name in CHANGES:
        losses: list[float] = []
        result = train(run_of(digits_dir, name), out / name, on_step=lambda step, loss, told=losses: told.append(loss))  # type: ignore[misc]
        found[name] = result, losses
    return found


class Losses(dict[str, dict[int, float]]):
    """By the name of a member's directory: the loss of every step that was told."""

    def __call__(self, member: Member, step: int, loss: float) -> None:
        self.setdefault(member.directory.name, {})[step] = loss


def members(data: Path, out: Path, names: list[str], **changes: Any) -> list[Member]:
    return [Member(run_of(data, name, **changes), out / name) for name in names]


def assert_same_run(directory: Path, expected: Result) -> None:
    """Curves, checkpoints and what they say of progress."""
    for ours, theirs in zip(points(directory), points(expected.directory), strict=True):
        assert ours[0] == theirs[0]
        told = [
            {n: v for n, v in p[1].items() if not n.startswith(("speed/", "system/", "train/gradient_norm"))}
            for p in (ours, theirs)
        ]
        assert told[0] == pytest.approx(told[1], rel=1e-4, abs=1e-6)
    steps = Checkpoints(expected.directory / "checkpoints").all()
    assert Checkpoints(directory / "checkpoints").all() == steps
    for step in steps:
        same_checkpoint(*(place / "checkpoints" / f"step_{step}" for place in (directory, expected.directory)))


def same_checkpoint(ours: Path, theirs: Path) -> None:
    metas = [json.loads((place / "COMPLETE.json").read_text()) for place in (ours, theirs)]
    for meta in metas:
        meta["run"].pop("engine")
        best = meta["best"] or {}
        assert metas[0]["progress"].keys() == meta["progress"].keys()
        assert best.get("step") == (metas[1]["best"] or {}).get("step")
    for key in ("run", "fingerprint", "mix", "world_size", "versions", "step"):
        assert metas[0][key] == metas[1][key]
    told = [meta["progress"] for meta in metas]
    assert told[0]["loss"] == pytest.approx(told[1]["loss"], rel=1e-5)
    assert [told[0][key] for key in ("worse", "window_steps")] == [told[1][key] for key in ("worse", "window_steps")]
    assert told[0]["window"].keys() == told[1]["window"].keys()
    for name, both in told[1]["window"].items():
        assert told[0]["window"][name] == pytest.approx(both, rel=1e-4)
    for group in ("model", "optimizer"):
        mine, expected = (load_file(place / f"{group}.safetensors") for place in (ours, theirs))
        assert mine.keys() == expected.keys()
        for name, tensor in expected.items():
            assert mine[name].shape == tensor.shape
            torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-5)


def results(ended: list[Any]) -> list[Result]:
    assert all(isinstance(one, Result) for one in ended), ended
    return ended


def test_packed_trials_equal_the_same_trials_alone(
    digits_dir: Path, tmp_path: Path, alone: dict[str, tuple[Result, list[float]]], no_pictures: list[Path]
) -> None:
    losses = Losses()
    for name, ended in zip(
        CHANGES, results(train_packed(members(digits_dir, tmp_path, list(CHANGES)), 8, on_step=losses)), strict=True
    ):
        result, expected = alone[name]
        assert list(losses[name]) == list(range(1, STEPS + 1))
        assert list(losses[name].values()) == pytest.approx(expected, rel=1e-5)
        assert (ended.directory, ended.status, ended.step) == (tmp_path / name, "finished", STEPS)
        assert ended.rows == result.rows
        assert ended.metrics == pytest.approx(result.metrics, rel=1e-4)
        assert ended.best is not None
        assert result.best is not None
        assert ended.best["step"] == result.best["step"]
        assert_same_run(tmp_path / name, result)
    assert len({losses[name][STEPS] for name in CHANGES}) == len(CHANGES)
    assert {tmp_path / name for name in CHANGES} <= set(no_pictures)


def test_each_is_clipped_by_its_own_norm(digits_dir: Path, tmp_path: Path) -> None:
    train_packed(members(digits_dir, tmp_path, ["clipped", "natural", "plain"]), 3)
    norms = {
        name: [
            values["train/gradient_norm"] for _, values in points(tmp_path / name) if "train/gradient_norm" in values
        ]
        for name in ("clipped", "natural", "plain")
    }
    assert not norms["plain"]
    assert len(norms["clipped"]) == len(norms["natural"]) == STEPS // 10
    assert all(norm > 0.5 for norm in norms["clipped"]), "it is the norm before clipping"
    assert norms["clipped"] != norms["natural"]


def test_an_early_stopped_member_frees_its_slot(
    digits_dir: Path, tmp_path: Path, alone: dict[str, tuple[Result, list[float]]]
) -> None:
    """The next takes it in the midst of the others' training."""
    order: list[tuple[str, int]] = []
    losses, ended_in_turn = Losses(), []

    def on_step(member: Member, step: int, loss: float) -> None:
        losses(member, step, loss)
        order.append((member.directory.name, step))

    def report(member: Member, step: int, metrics: dict[str, float]) -> bool:
        assert "val/elbo" in metrics
        return member.directory.name == "plain" and step == 20

    ended = results(
        train_packed(
            iter(members(digits_dir, tmp_path, ["plain", "fraction", "weights"])), 2, report=report, on_step=on_step,
            on_result=lambda member, result: ended_in_turn.append((member.directory.name, result.status)),  # type: ignore[union-attr]
        )
    )  # fmt: skip
    assert [(one.status, one.step) for one in ended] == [("stopped early", 20), ("finished", 50), ("finished", 50)]
    assert ended_in_turn == [("plain", "stopped early"), ("fraction", "finished"), ("weights", "finished")]
    assert order.index(("weights", 1)) == order.index(("fraction", 21)) + 1
    assert Checkpoints(tmp_path / "plain" / "checkpoints").all() == [20]
    for name in ("fraction", "weights"):
        assert list(losses[name].values()) == pytest.approx(alone[name][1], rel=1e-5)
        assert_same_run(tmp_path / name, alone[name][0])


def test_patience_is_each_members_own(digits_dir: Path, tmp_path: Path) -> None:
    """Of a metric that is to be as small as possible, none gets better here but by chance: both stop as alone."""
    changes = {"train.patience": 1, "train.validate_every": 5, "train.best": "val/kl", "train.best_is": "min"}
    names = ["plain", "clipped"]
    ended = results(train_packed(members(digits_dir, tmp_path, names, **changes), 3))
    for name, one in zip(names, ended, strict=True):
        expected = train(run_of(digits_dir, name, **changes), tmp_path / f"{name} alone")
        assert (one.status, one.step) == (expected.status, expected.step)
    assert "stopped early" in {one.status for one in ended}


def stopping(at: int) -> Callable[..., None]:
    def on_step(*told: Any) -> None:
        if told[-2] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def test_a_pack_that_is_told_to_stop_saves_all_and_goes_on(
    digits_dir: Path, tmp_path: Path, alone: dict[str, tuple[Result, list[float]]]
) -> None:
    """One of them goes on alone, and one that began alone in the pack; a member that waited leaves nothing."""
    names = ["plain", "weights", "clipped"]
    three = members(digits_dir, tmp_path, [*names, "natural"])
    cut = results(train_packed(three, 3, resume=True, on_step=stopping(13)))
    assert {one.status for one in cut} == {"preempted"}
    assert 13 <= cut[0].step <= 16
    assert [one.step for one in cut] == [cut[0].step] * 3 + [0]
    assert not (tmp_path / "natural").exists()
    for name in names:
        assert Checkpoints(tmp_path / name / "checkpoints").all() == [cut[0].step]
    train(run_of(digits_dir, "natural"), tmp_path / "natural", on_step=stopping(31))
    by_itself = train(three[0].run, three[0].directory, resume=True)
    assert by_itself.status == "finished"
    together = results(train_packed(three[1:], 3, resume=True))
    assert {one.status for one in together} == {"finished"}
    for name in (*names, "natural"):
        result, losses = alone[name]
        mine = tmp_path / name
        last = [
            {n for n in dict(points(place))[STEPS] if not n.startswith("system/")} for place in (mine, result.directory)
        ]
        assert last[0] == last[1]
        same_checkpoint(*(place / "checkpoints" / f"step_{STEPS}" for place in (mine, result.directory)))
        told = {step: values["train/objective"] for step, values in points(mine) if "train/objective" in values}
        assert told == pytest.approx(
            {step: v["train/objective"] for step, v in points(result.directory) if "train/objective" in v}, rel=1e-5
        )
        assert losses
    again = results(train_packed(three, 2, resume=True))
    assert [(one.status, one.step) for one in again] == [("finished", STEPS)] * 4


def test_a_loss_that_is_not_finite_fails_alone(
    digits_dir: Path, tmp_path: Path, alone: dict[str, tuple[Result, list[float]]]
) -> None:
    bad = Member(run_of(digits_dir, "plain", **{"optim.lr": 1e19}), tmp_path / "bad")
    with pytest.raises(UserError) as said:
        train(bad.run, tmp_path / "bad alone")
    good = members(digits_dir, tmp_path, ["fraction", "natural"])
    first, failed, last = train_packed([good[0], bad, good[1]], 3)
    assert isinstance(failed, UserError)
    assert str(failed) == str(said.value)
    assert re.match(r"the loss of step \d+ is not finite", str(failed))
    assert not Checkpoints(bad.directory / "checkpoints").all()
    for one, name in ((first, "fraction"), (last, "natural")):
        assert isinstance(one, Result)
        assert_same_run(one.directory, alone[name][0])


def test_rows_that_cannot_be_read_fail_their_member_alone(
    digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: dict[str, tuple[Result, list[float]]]
) -> None:
    read = Seat.read

    def broken(seat: Seat, step: int) -> Any:
        if seat.member.directory.name == "plain" and step == 7:
            raise UserError("the disk is gone")
        return read(seat, step)

    monkeypatch.setattr(Seat, "read", broken)
    failed, good = train_packed(members(digits_dir, tmp_path, ["plain", "natural"], **{"engine.workers": 1}), 2)
    assert isinstance(failed, UserError)
    assert str(failed) == "the disk is gone"
    assert isinstance(good, Result)
    assert good.loss == pytest.approx(alone["natural"][0].loss, rel=1e-5)


def test_a_member_that_cannot_begin_leaves_its_slot_to_the_next(digits_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / JOURNAL).write_text("")
    other = Member(run_of(digits_dir, "natural", **{"model.latent": 5}), tmp_path / "other")
    held, shape, good = train_packed(
        [*members(digits_dir, tmp_path, ["plain"]), other, *members(digits_dir, tmp_path, ["weights"])], 1
    )
    assert isinstance(held, UserError)
    assert "holds a run already" in str(held)
    assert isinstance(shape, UserError)
    assert "model.latent" in str(shape)
    assert isinstance(good, Result)


def test_each_member_has_its_own_run_in_mlflow(digits_dir: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = {"tracking.enabled": True, "tracking.uri": uri, "train.steps": 20}
    good = members(digits_dir, tmp_path, ["plain", "weights"], **tracked)
    bad = Member(run_of(digits_dir, "plain", **tracked, **{"optim.lr": 1e19}), tmp_path / "bad")
    where = destination(good[0].run, tmp_path / "sweep", "sweep")
    prepare_store(where.uri, where.experiment, None)
    Tracker(tmp_path / "sweep", where).close("FINISHED")
    named = [Member(one.run, one.directory, f"sweep/{n}", "sweep") for n, one in enumerate([*good, bad])]
    train_packed(named, 3)
    told = {one["identity"]: one for one in runs_in(uri) if one["parent"] == "sweep"}
    assert {identity: one["status"] for identity, one in told.items()} == {
        "sweep/0": "FINISHED", "sweep/1": "FINISHED", "sweep/2": "FAILED",
    }  # fmt: skip
    assert told["sweep/0"]["params"]["objective.beta"] == "1.0"
    assert told["sweep/1"]["params"]["objective.beta"] == "0.3"
    assert {"val/elbo", "train/objective"} <= set(told["sweep/1"]["metrics"])
    assert told["sweep/0"]["metrics"]["val/elbo"] != told["sweep/1"]["metrics"]["val/elbo"]
    lines = [parse(line) for line in (tmp_path / "bad" / JOURNAL).read_bytes().splitlines(keepends=True)]
    assert [line["status"] for line in lines if line and "status" in line][-1] == "FAILED"
