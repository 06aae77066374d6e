"""No silent hang: a rank that dies or hangs is named within a minute, and the others end with a code that says so."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infra.distributed import World, free_port
from infra.heartbeat import Heartbeat, Pulse
from infra.journal import JOURNAL, points
from infra.preemption import LOST
from pipeline import config
from pipeline.config import override
from pipeline.recipes import recipe

PATIENCE = 6


def test_one_rank_needs_none() -> None:
    def work() -> None:
        with Heartbeat(World(0, 1, 0, torch.device("cpu")), 1.0) as heart:
            heart.beat(1, "working")
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        work()


def test_a_node_that_goes_down_is_told_by_a_rank_of_another() -> None:
    def speakers(lost: list[int]) -> list[int]:
        found = []
        for rank in range(4):
            heart = Heartbeat(World(rank, 4, rank % 2, torch.device("cpu")), 1.0)
            heart._heard = {n: Pulse(f"node{n // 2}") for n in range(4)}
            heart.mine = heart._heard[rank]
            found += [rank] if rank not in lost and heart._speaks(lost) else []
        return found

    assert speakers([0]) == [1, 2], "rank 0 keeps the store; whether rank 1 died with it cannot be known"
    assert speakers([2, 3]) == [0]
    assert speakers([3]) == [0]


def test_patience_is_no_part_of_what_a_run_is() -> None:
    run = recipe("digits")
    assert config.identity(run) == config.identity(override(run, {"engine.patience": 5}))


@pytest.fixture
def two(tmp_path: Path, digits_dir: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks that train, with nobody who looks after them."""
    command = [
        sys.executable, "-m", "jobs.cli", "train", "digits", "--data", str(digits_dir), "--steps", "100000",
        "--train.log-every", "5", "--train.batch", "20", "--engine.device", "cpu", "--engine.threads", "1",
        "--tracking.no-enabled", "--out", str(tmp_path / "run"), "--engine.patience", str(PATIENCE),
    ]  # fmt: skip
    port = str(free_port())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            command, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    yield started
    for one in started:
        one.kill()
        one.communicate()


def trained(tmp_path: Path, ranks: list[subprocess.Popen[str]]) -> None:
    """Wait until they have taken steps."""
    for _ in range(900):
        if (tmp_path / "run" / JOURNAL).exists() and any(step >= 20 for step, _ in points(tmp_path / "run")):
            return
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
        time.sleep(0.1)
    pytest.fail("no steps")


@pytest.mark.slow
@pytest.mark.parametrize("hurt", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_is_named(
    tmp_path: Path, two: list[subprocess.Popen[str]], hurt: int, how: signal.Signals
) -> None:
    trained(tmp_path, two)
    two[hurt].send_signal(how)
    began = time.monotonic()
    _, said = two[1 - hurt].communicate(timeout=60 + PATIENCE)
    assert two[1 - hurt].returncode == LOST, said
    assert time.monotonic() - began < 60
    assert f"pairstream: rank {hurt} on {platform.node()} (step " in said
    assert ("is gone" in said) == (how == signal.SIGKILL)
    assert (f"has said nothing for {PATIENCE} s" in said) == (how == signal.SIGSTOP)
    assert "Traceback" not in said


@pytest.mark.slow
def test_ranks_that_were_lost_are_started_again(tmp_path: Path, digits_dir: Path) -> None:
    command = [
        sys.executable, "-m", "jobs.cli", "train", "digits", "--data", str(digits_dir), "--ranks", "2",
        "--steps", "400", "--train.log-every", "5", "--train.batch", "20", "--train.checkpoint-every", "20",
        "--engine.device", "cpu", "--tracking.no-enabled", "--out", str(tmp_path / "run"), "--restarts", "1", "--json",
    ]  # fmt: skip
    job = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    trained(tmp_path, [job])
    ranks = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    out, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert "restart 1 of 1" in said
    assert json.loads(out.splitlines()[-1])["steps"] == 400
    steps = [step for step, _ in points(tmp_path / "run")]
    assert sorted(set(steps)) == list(range(5, 401, 5))
