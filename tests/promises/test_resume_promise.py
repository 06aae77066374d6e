"""Promise 2: kill -9 at any moment and resume gives the same metrics, step by step, as an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.promises.trained import STEPS, curve, run, start, steps_journaled


@pytest.fixture(scope="module")
def undisturbed(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return out, run(data=digits_dir, out=out)


def test_kill_9_and_resume_is_bit_for_bit(digits_dir: Path, tmp_path: Path, undisturbed: tuple[Path, dict]) -> None:
    """Killed twice, after different points of the curve; the journal holds every point once, all equal."""
    out = tmp_path / "killed"
    for number, wanted in enumerate((14, 35)):
        worker = start(digits_dir, out, *(["--resume"] if number else []))
        deadline = time.monotonic() + 100
        while steps_journaled(out) < wanted and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL, "it ended before it could be killed"
    result = run("--resume", data=digits_dir, out=out)
    assert result["steps"] == STEPS
    assert curve(out) == curve(undisturbed[0])
    assert result["loss"] == undisturbed[1]["loss"]
    assert result["metrics"] == undisturbed[1]["metrics"]
    assert result["best"] == undisturbed[1]["best"]


def test_a_stop_signal_saves_and_asks_to_be_requeued(
    digits_dir: Path, tmp_path: Path, undisturbed: tuple[Path, dict]
) -> None:
    """TERM at a step that is no multiple of anything: exit code 75, and the curve goes on as if nothing happened."""
    out = tmp_path / "stopped"
    worker = start(digits_dir, out)
    while steps_journaled(out) < 14 and worker.poll() is None:
        time.sleep(0.005)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 75
    run("--resume", data=digits_dir, out=out)
    assert curve(out) == curve(undisturbed[0])


@pytest.mark.slow
def test_kill_9_at_random_moments(digits_dir: Path, tmp_path: Path, undisturbed: tuple[Path, dict]) -> None:
    """Six kills at random moments, start-up and saving among them."""
    out, chance = tmp_path / "random", random.Random(0)
    for _ in range(6):
        worker = start(digits_dir, out, *(["--resume"] if (out / "run.json").exists() else []))
        while steps_journaled(out) == 0 and worker.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 3))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    run("--resume", data=digits_dir, out=out)
    assert curve(out) == curve(undisturbed[0])


def test_a_damaged_last_checkpoint_is_made_again(
    digits_dir: Path, tmp_path: Path, undisturbed: tuple[Path, dict]
) -> None:
    """One more byte in the newest checkpoint: the one before it serves, and the newest is whole again."""
    from infra.checkpoint import Checkpoints

    out = tmp_path / "damaged"
    shutil.copytree(undisturbed[0], out)
    file = out / "checkpoints" / f"step_{STEPS}" / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"!")
    result = run("--resume", data=digits_dir, out=out)
    assert result["loss"] == undisturbed[1]["loss"]
    assert curve(out) == curve(undisturbed[0])
    last, notes = Checkpoints(out / "checkpoints").latest()
    assert last is not None
    assert (last.step, notes) == (STEPS, [])


def test_borrowed_weights_survive_a_kill_before_the_first_checkpoint(
    digits_dir: Path, tmp_path: Path, undisturbed: tuple[Path, dict]
) -> None:
    options = ["--from", str(undisturbed[0]), "--weights", "--train.checkpoint-every", "0"]
    whole = run(*options, data=digits_dir, out=tmp_path / "whole")
    out = tmp_path / "killed"
    worker = start(digits_dir, out, *options)
    while steps_journaled(out) < 7 and worker.poll() is None:
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert run("--resume", "--train.checkpoint-every", "0", data=digits_dir, out=out)["loss"] == whole["loss"]
