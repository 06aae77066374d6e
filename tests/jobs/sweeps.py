"""What the tests of sweeps share: a sweep as a process of its own, a cluster of Ray, and what a record must hold."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from infra.distributed import free_port
from infra.journal import JOURNAL, parse, points
from infra.store import connect, runs
from jobs.tuning.ledger import Ledger

SWEEP = "runs/sw"
COMMAND = [sys.executable, "-m", "ray.scripts.scripts"]
"""`ray`, of this environment."""
SAMPLE = ["--sample", "objective.lambda.label=loguniform:0.1:100", "optim.lr=loguniform:1e-5:1e-2"]
KEEPING = ["--train.checkpoint-every", "20", "--train.keep", "20"]
STEPS = ["--train.steps", "120", "--train.batch", "20", "--train.validate-every", "20", "--train.log-every", "5"]
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_health_check_period_ms": "500"}
"""The last: how soon a cluster knows that a node is gone."""


def started(place: Path, data: Path, *options: str) -> subprocess.Popen[str]:
    """`pairstream sweep digits` in `place`."""
    if "--resume" not in options:
        options = ("--data", str(data), *options)
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "sweep", "digits", *options, "--out", SWEEP, "--json"],
        cwd=place, env=environment | RAY | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a sweep that went well has said."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f"{process.returncode}\n{out}\n{err}"
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for it while the process is at work."""
    for _ in range(2400):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it never came to that")


def points_of(directory: Path) -> list[int]:
    """Steps of a trial's points, as often as they are in its journal."""
    return [step for step, values in points(directory) if "train/elbo" in values]


def checkpoints_of(directory: Path) -> dict[str, int]:
    """A trial's checkpoints, and the inode of each: one that is written again has another."""
    return {path.name: path.stat().st_ino for path in directory.glob("checkpoints/step_*[0-9]")}


def tags_of(directory: Path, name: str) -> list[str]:
    """The values that a tag has had in a trial's journal."""
    file = directory / JOURNAL
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    found = [(parse(line) or {}).get("tags", {}) for line in lines]
    return [tags[name] for tags in found if name in tags]


def one_honest_record(place: Path, trials: int, jumps: bool = False) -> list[dict[str, Any]]:
    """One parent, a child per trial, every child's curve whole, each step once; `jumps`: weights come from others that
    were further. Returns the children."""
    sweep, uri = place / SWEEP, f"sqlite:///{place / 'runs' / 'mlflow.db'}"
    store = runs(uri)
    (parent,) = [run for run in store if run["parent"] is None]
    children = [run for run in store if run["parent"] == parent["identity"]]
    ledger = Ledger(sweep)
    assert sorted(run["name"] for run in children) == [entry.name for entry in ledger.entries]
    assert len(children) == trials
    assert {run["tags"]["mlflow.parentRunId"] for run in children} == {parent["run_id"]}
    assert {run["status"] for run in store} == {"FINISHED"}
    for entry in ledger.entries:
        outcome = ledger.outcome(entry)
        assert outcome is not None
        assert not outcome.error
        steps = points_of(sweep / entry.name)
        assert steps == sorted(set(steps))
        assert jumps or steps == list(range(5, steps[-1] + 1, 5)), "a point is missing"
        (child,) = [run for run in children if run["name"] == entry.name]
        delivered = connect(uri).get_metric_history(child["run_id"], "train/elbo")
        assert sorted(point.step for point in delivered) == steps
        pictures = (sweep / entry.name / JOURNAL).read_text().count('"folder":"pictures"')
        assert bool(pictures) == (outcome.ending == "finished"), "pictures are of trials that have ended by themselves"
    return children


def drain(address: str, node: str, environment: Mapping[str, str]) -> None:
    """Say of a node of Ray's that it is to go, as a cloud's autoscaler does before it takes a machine away."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    subprocess.run(
        [*COMMAND, "drain-node", "--address", address, "--node-id", node, *reason],
        env=os.environ | environment, check=True, capture_output=True,
    )  # fmt: skip


class Node:
    """One of a Ray cluster's, on this machine, with a core of its own; to be killed with everything that runs on it."""

    def __init__(self, place: Path, name: str, *options: str) -> None:
        log = place / f"{name}.log"
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*COMMAND, "start", "--block", "--num-cpus", "1",
                 "--object-store-memory", "80000000", *options],
                env=os.environ | RAY, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        try:
            until(lambda: "Ray runtime started" in log.read_text(), self.process)
        except AssertionError:
            self.kill()
            raise AssertionError(log.read_text()) from None

    @property
    def id(self) -> str:
        """As Ray names it."""
        words = [word for one in self.processes() for word in one.cmdline()]
        return next(word.partition("=")[2] for word in words if word.startswith("--node_id="))

    def processes(self) -> list[psutil.Process]:
        """Ray's own and its workers: all are of the session that was begun here."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(one.pid) == self.process.pid:
                    found.append(one)
        return found

    def kill(self) -> None:
        """As a machine that loses power: all at once."""
        while left := [one for one in self.processes() if one.status() != psutil.STATUS_ZOMBIE]:
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            self.process.wait(30)


class Cluster:
    """A head and another node, on a port of their own."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path has to be short
        self.address = f"127.0.0.1:{free_port()}"
        head = ["--head", "--port", self.address.rpartition(":")[2], "--include-dashboard=false"]
        self.head = Node(self.place, "head", *head, "--temp-dir", str(self.place))
        try:
            self.other = Node(self.place, "other", "--address", self.address)
        except AssertionError:
            self.close()
            raise

    def drain(self) -> None:
        """Say of the other node that it is to go."""
        drain(self.address, self.other.id, RAY)

    def close(self) -> None:
        """End what was begun here, and nothing else."""
        for node in (self.other, self.head):
            node.kill()
        shutil.rmtree(self.place, ignore_errors=True)
