"""`pairstream submit ray` to a cluster of the test's own: a training, cancelled and gone on with."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from infra.distributed import free_port
from infra.journal import JOURNAL, points
from jobs.cli import main
from tests.jobs.sweeps import COMMAND, drain

SERVER = ("grpc", "aiohttp_cors", "opencensus", "prometheus_client")
"""Of ray[default]: what the job server cannot do without."""
Capture = pytest.CaptureFixture[str]


TOKEN = secrets.token_hex(16)
"""Ray reads it once in a process."""


@pytest.fixture
def gcs() -> str:
    """Where the cluster's head listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def address(gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The job server of a cluster of this machine with a token of its own."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    place, port = tempfile.mkdtemp(prefix="ray"), free_port()  # Ray's sockets need a short path
    command = [
        *COMMAND, "start", "--head", "--block", "--disable-usage-stats",
        "--num-cpus=2", f"--port={gcs.rpartition(':')[2]}", f"--dashboard-port={port}", f"--temp-dir={place}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    with (tmp_path / "ray.out").open("wb") as out:
        head = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while main(["submit", "ray", "--address", f"http://127.0.0.1:{port}", "--", "recipes"]):
            assert time.monotonic() < deadline, (tmp_path / "ray.out").read_text()
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        head.terminate()
        try:
            head.wait(30)
        finally:
            os.killpg(head.pid, signal.SIGKILL) if head.poll() is None else None
        shutil.rmtree(place, ignore_errors=True)


def answer(capsys: Capture, *words: str) -> dict[str, Any]:
    main(["submit", *words])
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def reached(out: Path) -> int:
    return max((step for step, _ in points(out)), default=0) if (out / JOURNAL).exists() else 0


@pytest.mark.cluster
@pytest.mark.skipif(not all(map(find_spec, SERVER)), reason="Ray's job server is not installed (extra `cluster`)")
@pytest.mark.parametrize("how", ["cancelled", "drained"])
def test_it_saves_and_the_same_command_goes_on(
    capsys: Capture, digits_dir: Path, gcs: str, address: str, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "runs" / "mine"
    train = [
        "train", "digits", "--data", str(digits_dir), "--out", str(out), "--steps", "1500", "--train.batch", "20",
        "--train.log-every", "5", "--tracking.no-enabled",
    ]  # fmt: skip
    command = ["ray", "--address", address, "--ranks", "2", "--json", "--", *train]
    job = answer(capsys, *command)
    deadline = time.monotonic() + 120
    while reached(out) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer(capsys, "status", job["job"], "--json")["state"] == "running"
    if how == "cancelled":
        found = answer(capsys, "cancel", job["job"], "--json")
    else:
        drain(gcs, only_node(gcs), {})
        found = ended(capsys, job["job"])
    assert found["state"] == "preempted"
    assert 20 <= reached(out) < 1500
    if how == "cancelled":
        again = answer(capsys, *command)
        found = ended(capsys, again["job"])
        assert (found["state"], found["code"]) == ("finished", 0)
        main(["submit", "logs", again["job"], "--follow"])
        assert "finished at step 1500" in capsys.readouterr().out
    else:  # the only node takes nothing more
        assert main([*train, "--resume"]) == 0
    assert [step for step, values in points(out) if "train/objective" in values] == list(range(5, 1501, 5))


def only_node(gcs: str) -> str:
    """As Ray names it."""
    import ray

    ray.init(gcs, log_to_driver=False)
    node: str = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    return node


def ended(capsys: Capture, job: str) -> dict[str, Any]:
    """What there is to say of a job when it is over."""
    deadline = time.monotonic() + 120
    while (found := answer(capsys, "status", job, "--json"))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(1)
    return found


def test_no_server_and_several_nodes_are_sentences(
    capsys: Capture, tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"http://127.0.0.1:{free_port()}"
    assert main(["submit", "ray", "--address", address, "--", "recipes"]) == 2
    assert "no Ray job server answers at http://127.0.0.1" in capsys.readouterr().err
    train = ["train", "digits", "--data", str(digits_dir)]
    assert main(["submit", "ray", "--nodes", "2", "--", *train]) == 2
    assert "Ray starts a training on one node" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_entry_point_is_shown_whole(
    capsys: Capture, tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["sweep", "digits", "--data", str(digits_dir), "--out", "runs/a b"]
    shown = answer(capsys, "ray", "--dry-run", "--json", "--", *sweep)["submits"]
    assert shown.startswith(f"cd {tmp_path} && exec ")
    assert shown.endswith(f"sweep digits --data {digits_dir} --out 'runs/a b' --ray auto")
    assert main(["submit", "ray", "--dry-run", "--", *sweep, "--join"]) == 2
    assert "leave --pack, --ranks, --ray, --hours and --gpus away" in capsys.readouterr().err
