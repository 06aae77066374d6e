"""Trials that fail, each in its way, and a server that is gone for a while leave the others and the record whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.store import connect, runs
from jobs.tuning.ledger import Ledger
from pipeline.benchmarks.servers import mlflow_server
from tests.jobs.sweeps import RAY, STEPS, points_of

pytestmark = pytest.mark.slow
FAULTS = """
import resource, sys, time
from importlib.util import find_spec

def hurt(course):
    whole = course.Course.pause

    def pause(self, gauges):
        if self.progress.step == 40 and self.run.seed == 1:
            raise RuntimeError("boom")
        if self.progress.step == 40 and self.run.seed == 2:
            import psutil, torch
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**26, limits[1]))
            try:
                torch.zeros(2**28)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
        if self.progress.step == 40 and self.run.seed == 3:
            time.sleep(1e6)
        return whole(self, gauges)

    course.Course.pause = pause

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "pipeline.course":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            hurt(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize.py: every process of the sweep has it."""


def begun(place: Path, data: Path, out: str, seeds: str, *options: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "sweep", "digits", "--data", str(data), *STEPS, "--grid", f"seed={seeds}",
         *options, "--out", f"runs/{out}", "--json"],
        cwd=place, env=os.environ | RAY | {"OMP_NUM_THREADS": "1"} | more, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_trials_that_raise_run_out_of_memory_or_hang(tmp_path: Path, digits_dir: Path) -> None:
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    paths = os.pathsep.join([str(tmp_path / "faults"), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    environment = {"PYTHONPATH": paths, "MLFLOW_TRACKING_URI": uri}
    sweep = begun(tmp_path, digits_dir, "sw", "0,1,2,3,4", "--retries", "0", "--stall", "0.6", **environment)
    out, err = sweep.communicate(timeout=600)
    assert sweep.returncode == 1, err
    told = json.loads(out.splitlines()[-1])
    errors = {trial["cell"]["seed"]: trial["error"] for trial in told["trials"]}
    assert [seed for seed, error in errors.items() if not error] == [0, 4]
    assert "boom" in errors[1]
    assert "allocate memory" in errors[2]
    assert errors[3] == "has taken no step for 0.6 minutes (--stall)"
    for trial in told["trials"]:
        steps = points_of(Path(trial["directory"]))
        assert steps == list(range(5, steps[-1] + 1, 5))
        assert (steps[-1] == 120) == (not trial["error"])
    status = {run["params"]["seed"]: run["status"] for run in runs(uri) if run["parent"]}
    assert status == {"0": "FINISHED", "1": "FAILED", "2": "FAILED", "3": "FAILED", "4": "FINISHED"}
    assert [run["status"] for run in runs(uri) if not run["parent"]] == ["FAILED"]


def test_two_sweeps_on_one_server_that_is_gone_for_a_while(tmp_path: Path, digits_dir: Path) -> None:
    (tmp_path / "server").mkdir()
    chance = random.Random(time.time_ns())
    with mlflow_server(f"sqlite:///{tmp_path}/server/mlflow.db", tmp_path / "server") as server:
        sweeps = {name: begun(tmp_path, digits_dir, name, seeds, MLFLOW_TRACKING_URI=server.url) for name, seeds in
                  (("a", "0,1,2"), ("b", "3,4,5"))}  # fmt: skip

        def come_and_go() -> None:
            while not any((tmp_path / "runs").glob("?/0*/journal.jsonl")):
                time.sleep(0.1)
            time.sleep(chance.uniform(0, 10))
            server.end()
            time.sleep(30)
            server.start()

        breaking = threading.Thread(target=come_and_go)
        breaking.start()
        for sweep in sweeps.values():
            out, err = sweep.communicate(timeout=600)
            assert sweep.returncode == 0, f"{out}\n{err}"
        breaking.join()
        subprocess.run(
            [sys.executable, "-m", "jobs.cli", "review", "--sync"], cwd=tmp_path, check=True, timeout=200,
            env=os.environ | {"MLFLOW_TRACKING_URI": server.url}, capture_output=True,
        )  # fmt: skip
        store = runs(server.url)
        assert {run["status"] for run in store} == {"FINISHED"}
        parents = {run["name"]: run for run in store if not run["parent"]}
        assert sorted(parents) == ["a", "b"]
        for name, parent in parents.items():
            children = {run["name"]: run for run in store if run["parent"] == parent["identity"]}
            assert sorted(children) == [entry.name for entry in Ledger(tmp_path / "runs" / name).entries]
            for child in children.values():
                points = connect(server.url).get_metric_history(child["run_id"], "train/elbo")
                assert sorted(point.step for point in points) == list(range(5, 121, 5))
