"""Checkpoints exist whole or not at all (promise 6)."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infra import checkpoint
from infra.checkpoint import Checkpoints
from infra.errors import UserError
from tests.infra.servers import small_disk


def save(checkpoints: Checkpoints, step: int, best: int | None = None) -> Path:
    meta = {"best": {"step": best}} if best else {}
    return checkpoints.save(step, [("model.w", torch.full((3,), float(step)))], meta)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    last, notes = checkpoints.latest()
    assert last is not None
    assert notes == []
    assert last.step == 10
    assert last.tensors("model")["model.w"].tolist() == [10.0, 10.0, 10.0]


def test_nothing_is_visible_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 just before the rename, and at every file before it, leaves the checkpoint before as the newest."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for broken in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, die)
            with pytest.raises(Killed):
                save(checkpoints, 2)
        assert checkpoints.all() == [1]
        last, notes = checkpoints.latest()
        assert last is not None
        assert (last.step, notes) == (1, [])
    save(checkpoints, 2)
    assert checkpoints.all() == [1, 2]


def test_kill_9_in_removing_leaves_only_whole_ones_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that is older than those to be kept, and of the same step of an earlier attempt."""

    class Killed(BaseException):
        pass

    def die(path: Path, **_: object) -> None:
        next(file for file in sorted(Path(path).iterdir()) if file.is_file()).unlink()
        raise Killed

    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    for step in (3, 3, 4):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", die)
            with pytest.raises(Killed):
                save(checkpoints, step)
        assert len(checkpoints.all()) >= 2
        for visible in checkpoints.all():
            checkpoints.load(visible)
        save(checkpoints, step)
        assert {path.name for path in tmp_path.iterdir()} == {f"step_{step - 1}", f"step_{step}"}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty-json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    path = save(checkpoints, 2)
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "remove":
        file.unlink()
    else:
        (path / "COMPLETE.json").write_text("")
    last, notes = checkpoints.latest()
    assert last is not None
    assert last.step == 1
    assert len(notes) == 1
    assert "step_2" in notes[0]
    assert "damaged" in notes[0]


def test_retention_keeps_the_best_and_the_latest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        save(checkpoints, step, best=2 if step >= 2 else None)
    assert checkpoints.all() == [2, 5, 6]
    best = checkpoints.best()
    assert best is not None
    assert best.step == 2


def test_a_disk_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(checkpoints, 2)
    monkeypatch.undo()
    assert checkpoints.all() == [1]


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(1 << 20, tmp_path / "disk") as disk:
        checkpoints = Checkpoints(disk / "checkpoints")
        save(checkpoints, 1)
        with pytest.raises(UserError, match=r"step 2 could not be written to .*No space left on device"):
            checkpoints.save(2, [("model.w", torch.zeros(1 << 18))], {})
        assert checkpoints.latest()[0].step == 1  # type: ignore[union-attr]
        assert [path.name for path in checkpoints.directory.iterdir()] == ["step_1"]


def in_memory() -> int:
    """Bytes of all plain tensors that there are."""
    gc.collect()
    return sum(one.nbytes for one in gc.get_objects() if type(one) is torch.Tensor)  # no fake one of a compiler


def test_a_state_that_memory_cannot_hold_goes_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files of `CHUNK` bytes; what is written is read again, and a damaged one is noticed."""
    monkeypatch.setattr(checkpoint, "CHUNK", 64)
    given = {f"{kind}.{n}": torch.rand(4) for n in range(20) for kind in ("model", "exp_avg")} | {
        "exp_avg.large": torch.rand(40),  # larger than a chunk
        "model.turned": torch.rand(2, 3).T,
        "step": torch.ones(1),
    }
    most = before = in_memory()

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for name, tensor in given.items():
            yield name, tensor.clone()
            most = max(most, in_memory())

    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, tensors(), {})
    assert most - before <= 2 * 160, "more is held than the largest tensor and its copy"
    files = {file.name: file for file in path.glob("*.safetensors")}
    assert {"model.safetensors", "model.2.safetensors", "optimizer.safetensors"} < files.keys()
    weights = {name: sum(one.nbytes for one in load_file(file).values()) for name, file in files.items()}
    assert sorted(weights.values())[-1] == 160
    assert all(size <= 64 for size in weights.values() if size != 160)
    last = checkpoints.load(1)
    both = last.tensors("model", "optimizer")
    assert both.keys() == given.keys()
    assert all(torch.equal(tensor, both[name]) for name, tensor in given.items())
    assert {*last.tensors("model")} == {name for name in given if name.startswith("model.")}
    held = last.tensors("optimizer")
    files["model.2.safetensors"].unlink()
    with pytest.raises(UserError, match=r"model\.2\.safetensors"):
        checkpoints.load(1)
    shutil.rmtree(path)  # by a training that goes on meanwhile
    assert torch.equal(held["exp_avg.large"], given["exp_avg.large"])


def test_every_file_of_weights_tells_models_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK", 16)
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step, (last, moment) in enumerate([(1.0, 0.0), (2.0, 0.0), (1.0, 9.0)]):
        given = {"model.a": torch.ones(4), "model.b": torch.full((4,), last), "exp_avg.a": torch.full((4,), moment)}
        checkpoints.save(step, given.items(), {})
    first, other, same = (checkpoints.load(step).weights for step in checkpoints.all())
    assert first != other
    assert first == same


def test_complete_json_names_every_file(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path), 3)
    meta = json.loads((path / "COMPLETE.json").read_text())
    assert meta["step"] == 3
    assert set(meta["files"]) == {file.name for file in path.iterdir()} - {"COMPLETE.json"}
