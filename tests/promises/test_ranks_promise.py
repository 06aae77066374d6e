"""Promises 2 and 6 on several ranks: whatever is killed, whenever, and on however many ranks a run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from infra.checkpoint import Checkpoints
from tests.promises.trained import curve, run, start, steps_journaled

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PAIRSTREAM_KILLS", "2"))
"""`make chaos` makes a hundred of them."""
STEPS = 400 + 100 * KILLS
LONG = 200 + STEPS / 10
"""Seconds after which a training of so many steps hangs."""
TWO = [
    "--ranks", "2", "--engine.zero-stage", "2", "--train.checkpoint-every", "10", "--train.validate-every", "200",
    "--steps", str(STEPS),
]  # fmt: skip


def killed(job: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Kill -9 of all at once (a node without power), of one rank, or of who started the ranks."""
    ranks = [child.pid for child in psutil.Process(job.pid).children()]
    victims = chance.choice([[job.pid, *ranks], ranks[:1], ranks[1:], [job.pid]]) or [job.pid]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    job.wait(timeout=60)
    psutil.wait_procs([psutil.Process(pid) for pid in ranks if psutil.pid_exists(pid)], timeout=60)


def test_kill_9_of_whatever_rank_whenever_is_bit_for_bit(tmp_path: Path, digits_dir: Path) -> None:
    """In start-up, in steps, in saving and in renaming: no checkpoint is ever half there, and the curve is the same."""
    whole, out, chance = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    undisturbed = run(*TWO, data=digits_dir, out=whole, timeout=LONG)
    seen = 0
    for number in range(KILLS):
        job = start(digits_dir, out, *TWO, *(["--resume"] if (out / "run.json").exists() else []))
        before = steps_journaled(out)
        while number % 4 and steps_journaled(out) == before and job.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1 if number % 4 else 10))
        assert job.poll() is None, "it ended before it could be killed"
        killed(job, chance)
        checkpoints = Checkpoints(out / "checkpoints")
        for step in checkpoints.all():
            checkpoints.load(step)  # raises where one is not whole
        seen = max([seen, *checkpoints.all()])
    assert seen > 0
    result = run(*TWO, "--resume", data=digits_dir, out=out, timeout=LONG)
    assert curve(out) == curve(whole)
    assert result["loss"] == undisturbed["loss"]
    assert result["metrics"] == undisturbed["metrics"]
    ours, theirs = (
        Checkpoints(place / "checkpoints").load(STEPS).tensors("model", "optimizer") for place in (out, whole)
    )
    assert ours.keys() == theirs.keys()
    assert all((tensor == theirs[name]).all() for name, tensor in ours.items())


CHAIN = [(1, 0), (2, 1), (1, 2), (2, 3), (1, 1)]
"""Ranks and ZeRO stage, one after another."""


def test_a_run_goes_on_with_other_ranks_and_stages(tmp_path: Path, digits_dir: Path) -> None:
    """Losses stay within 1e-4 of the undisturbed run's over twenty steps after each restart."""
    steps = 25 * len(CHAIN)
    options = ["--steps", str(steps), "--train.log-every", "1", "--train.checkpoint-every", "5"]
    whole, out = tmp_path / "whole", tmp_path / "moved"
    run(*options, data=digits_dir, out=whole)
    for number, (ranks, stage) in enumerate(CHAIN):
        place = ["--ranks", str(ranks), "--engine.zero-stage", str(stage)] + (["--resume"] if number else [])
        if number == len(CHAIN) - 1:
            run(*options, *place, data=digits_dir, out=out)
            break
        job = start(digits_dir, out, *options, *place)
        while steps_journaled(out) < 25 * (number + 1) and job.poll() is None:
            time.sleep(0.005)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 75
    ours, theirs = (dict(curve(place)) for place in (out, whole))
    assert list(ours) == list(range(1, steps + 1))
    for step, values in theirs.items():
        for name in (name for name in values if name.startswith("train/")):
            assert ours[step][name] == pytest.approx(values[name], rel=1e-4, abs=1e-5), f"{name} at step {step}"
