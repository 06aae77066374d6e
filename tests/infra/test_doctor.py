"""The doctor finds what would spoil a long run, and says on which node."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from infra.allocation import join_srun
from infra.distributed import World, free_port, start
from infra.doctor import Finding, checks, everywhere
from infra.errors import UserError
from infra.preemption import LOST
from jobs.cli import main
from jobs.doctor import check_data
from tests.pipeline.tiny import make
from tests.ranks import Ranks

TRUE_VERSION, TRUE_TIME = checks.version, time.time


@contextmanager
def on_rank_1(world: World, target: Any, name: str, value: Any) -> Iterator[None]:
    """There, something is another."""
    if world.rank == 1:
        with patch.object(target, name, value), patch.object(platform, "node", lambda: "node7"):
            yield
    else:
        yield


def findings(folder: Path) -> list[Finding]:
    world = start("cpu", 1)
    return [
        checks.check_versions(world, ["torch"]), checks.check_devices(world), checks.check_sums(world),
        checks.check_folder(world, folder), checks.check_clock(world),
    ]  # fmt: skip


def test_two_ranks_that_are_well(ranks: Ranks, tmp_path: Path) -> None:
    first, second = ranks.run(findings, tmp_path)
    assert [(finding.name, finding.well) for finding in first] == [(finding.name, True) for finding in second]
    versions, devices, sums, folder, clock = first
    assert versions.text == f"python {platform.python_version()}, torch {TRUE_VERSION('torch')}"
    assert devices.text.startswith(f"2 ranks on {platform.node()}: CPU, ")
    assert 0.001 < sums.figures["bus bandwidth, GB/s"] < 1000
    assert folder.figures["write, MB/s"] > 0
    assert clock.figures["skew, s"] < 1
    assert list(tmp_path.iterdir()) == [], "it cleans up"


def other_version() -> Finding:
    world = start("cpu", 1)
    with on_rank_1(world, checks, "version", lambda package: "1.0" if package == "torch" else TRUE_VERSION(package)):
        return checks.check_versions(world, ["torch", "numpy"])


def test_another_version_on_a_node(ranks: Ranks) -> None:
    found = ranks.run(other_version)[0]
    mine = TRUE_VERSION("torch")
    assert found.problem == f"rank 1 on node7 has torch 1.0 (rank 0: {mine}): install the same versions on every node"


def test_a_package_that_is_missing_is_no_traceback() -> None:
    found = checks.check_versions(World(0, 1, 0, torch.device("cpu")), ["nothing-of-this-name"])
    assert "nothing-of-this-name missing" in found.text
    assert "pip install" in found.problem


def test_tasks_of_srun_are_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
            "SLURM_JOB_ID": "20007", "SLURM_STEP_NODELIST": "node[7-8]", "PATH": str(tmp_path)}  # fmt: skip
    with patch.dict(os.environ, step, clear=True):
        with pytest.raises(UserError, match=r"which hosts node\[7-8\] are .* MASTER_ADDR"):
            join_srun()
        (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7; echo node8\n")
        (tmp_path / "scontrol").chmod(0o755)
        join_srun()
        joined = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        assert joined == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node7", "20007")
    with patch.dict(os.environ, step | {"SLURM_STEP_NUM_TASKS": "1"}, clear=True):
        join_srun()
        assert "RANK" not in os.environ, "a batch script, or a shell in an allocation"


def late_clock() -> Finding:
    world = start("cpu", 1)
    with on_rank_1(world, time, "time", lambda: TRUE_TIME() - 30):
        return checks.check_clock(world)


def test_a_clock_that_is_late(ranks: Ranks) -> None:
    found = ranks.run(late_clock)[0]
    assert found.problem == "rank 1 on node7 is 30 s behind: set its clock (chrony, ntpd)"
    assert found.figures["skew, s"] == pytest.approx(30, abs=1)


def folder_of_its_own(places: list[Path]) -> Finding:
    world = start("cpu", 1)
    return checks.check_folder(world, places[world.rank])


def test_a_folder_that_is_not_shared(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = ranks.run(folder_of_its_own, [tmp_path / "a", tmp_path / "b"])[0]
    assert "does not see what other ranks write" in found.problem
    assert not list(tmp_path.glob("*/.doctor*"))
    found = ranks.run(folder_of_its_own, [tmp_path / "a", tmp_path / "file" / "b"])[0]
    assert found.problem.startswith("rank 1 on ")
    assert "Not a directory" in found.problem


def wrong_sums() -> Finding:
    import torch.distributed as dist

    world = start("cpu", 1)
    true = dist.all_reduce
    with on_rank_1(world, dist, "all_reduce", lambda values: (true(values), values.add_(1))):
        return checks.check_sums(world)


def test_sums_that_are_wrong(ranks: Ranks) -> None:
    assert ranks.run(wrong_sums)[0].problem == "rank 1 on node7 got wrong sums: the network or a GPU is broken"


def data_of_its_own(places: list[str]) -> Finding:
    world = start("cpu", 1)
    return check_data(world, places[world.rank])


def test_other_data_on_a_node(ranks: Ranks, digits_dir: Path, tmp_path: Path) -> None:
    same = ranks.run(data_of_its_own, [str(digits_dir)] * 2)[0]
    assert same.well
    assert same.figures["samples/s"] > 0
    make(tmp_path / "less", 40, shard_bytes=16_000)
    found = ranks.run(data_of_its_own, [str(digits_dir), str(tmp_path / "less")])[0]
    assert "rank 1 on" in found.problem
    assert "has other data" in found.problem
    found = ranks.run(data_of_its_own, [str(digits_dir), str(tmp_path / "none")])[0]
    assert found.problem.startswith("rank 1 on")
    shard = sorted((tmp_path / "less").glob("*.tar"))[0]
    shard.write_bytes(bytes(shard.stat().st_size))
    found = ranks.run(data_of_its_own, [str(tmp_path / "less")] * 2)[0]
    assert found.problem.startswith("rank 0 and 1 more on")
    assert "are damaged" in found.problem


def look_that_fails() -> list[str]:
    def look() -> int:
        raise OSError("no such thing")

    return [one.failure for one in everywhere(start("cpu", 1), look)]


def test_a_rank_that_cannot_look_says_so_and_stays(ranks: Ranks) -> None:
    assert ranks.run(look_that_fails) == [["no such thing"] * 2] * 2


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_the_job(tmp_path: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = ["doctor", "--out", str(tmp_path), "--tracking", uri, "--device", "cpu", "--json"]
    assert main([*command, "--data", str(digits_dir)]) == 0
    found = told(capsys)
    assert found["well"]
    assert [one["check"] for one in found["checks"]] == [
        "versions", "devices", "sums over ranks", "folder of the runs", "clock", "tracking", "data",
    ]  # fmt: skip
    command[command.index(uri)] = f"http://127.0.0.1:{free_port()}"
    assert main([*command, "--data", str(tmp_path / "none")]) == 2
    found = told(capsys)
    problems = {one["check"]: one["problem"] for one in found["checks"] if not one["well"]}
    assert list(problems) == ["tracking", "data"]
    assert "does not answer" in problems["tracking"]
    assert "start its server" in problems["tracking"]


@pytest.mark.slow
def test_ranks_that_do_not_come_are_missed_with_a_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "doctor", "--timeout", "2"], cwd=tmp_path, env=environment, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == LOST
    assert "rank 0 of 2 has not met the others at 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_ranks_of_one_machine(tmp_path: Path, digits_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "doctor", "--ranks", "2", "--data", str(digits_dir), "--json"],
        cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    problems = [check["problem"] for check in found["checks"] if check["problem"]]
    scarce = shutil.disk_usage(tmp_path).free < 1.1 * checks.SCARCE  # of which it is right to complain
    assert [problem for problem in problems if not (scarce and "GB free" in problem)] == []
    assert (found["ranks"], found["well"], done.returncode) == (2, not problems, 2 * bool(problems)), done.stderr
    assert found["checks"][2]["figures"]["bus bandwidth, GB/s"] > 0
