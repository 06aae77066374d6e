"""What Ray Tune and its driver cost a trial, and what the driver of many trials keeps in memory.

The first is a sweep against the same trainings in a plain loop. Each turn is a process of its own, as people start
them: the loop imports once and trains one after the other, the sweep starts Ray and gives each trial all cores, so that
its trials too come one after the other. Both train, record to MLflow (a fresh SQLite file), draw pictures and evaluate.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from infra.distributed import cores
from infra.errors import UserError
from pipeline.benchmarks import Progress
from pipeline.benchmarks.harness import Outcome, Turn, alternate

TRIALS, STEPS = 8, 4000
"""The usual sweep: a trial of the digits recipe then takes about a minute of one core."""
MANY = 500
"""Trials of which the driver's memory is watched."""
LOOP = """
import sys
from pathlib import Path
from pipeline.config import override
from pipeline.evaluate.run import evaluate_run
from pipeline.recipes import recipe
from pipeline.train import train

data, trials, steps, threads = sys.argv[1:]
for seed in range(int(trials)):
    run = override(
        recipe("digits"), {"data": data, "seed": seed, "train.steps": int(steps), "engine.threads": int(threads)}
    )
    train(run, Path("loop", str(seed)))
    evaluate_run(Path("loop", str(seed)), "test", run, studies=())
"""


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """`samples`: of `overhead` the optimizer steps of each trial, STEPS for 0; of `memory` the trials, MANY for 0."""
    return _memory(case, samples or MANY, progress) if case == "memory" else _overhead(case, blocks, samples, progress)


def _overhead(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Seconds a trial beside the ratio."""
    from pipeline.corpora import prepare

    steps = str(samples or STEPS)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        prepare("digits", data)
        seconds: dict[str, list[float]] = {"plain loop": [], "pairstream sweep": []}
        seeds = ",".join(map(str, range(TRIALS)))
        sweep = [
            "-m", "jobs.cli", "sweep", "digits", "--data", str(data), "--grid", f"seed={seeds}", "--train.steps", steps,
            "--cpus", str(cores()), "--out", "sweep",
        ]  # fmt: skip
        loop = ["-c", LOOP, str(data), str(TRIALS), steps, str(cores())]
        found = alternate(
            "sweep",
            case,
            "trials",
            {
                "plain loop": _process(loop, seconds["plain loop"]),
                "pairstream sweep": _process(sweep, seconds["pairstream sweep"]),
            },
            blocks,
            ["plain loop"],
            progress=progress,
        )
    took = {name: statistics.median(times[1:]) / TRIALS for name, times in seconds.items()}  # the first was to warm up
    figures = {f"{name}, seconds a trial": value for name, value in took.items()}
    return replace(
        found, figures=figures | {"overhead, seconds a trial": took["pairstream sweep"] - took["plain loop"]}
    )


def _process(arguments: list[str], seconds: list[float]) -> Turn:
    """Turns of a process in a fresh directory, which all do TRIALS trials; how long each took goes into `seconds`."""

    def turn() -> tuple[int, float]:
        with tempfile.TemporaryDirectory() as place:
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *arguments], cwd=place, env=_environment(), capture_output=True, text=True, check=False
            )
            took = time.perf_counter() - started
        if done.returncode:
            raise UserError(f"a trial of this benchmark failed: {(done.stderr or done.stdout).strip()[-400:]}")
        seconds.append(took)
        return TRIALS, took

    return turn


def _environment() -> dict[str, str]:
    """For processes of this code that track into a store of their own."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return environment | {"PYTHONPATH": path}


def _memory(case: str, trials: int, progress: Progress) -> Outcome:
    """The driver's resident memory while a sweep of so many trials, each of a step, goes on: its growth is that of the
    straight line through the points of the later half, since Ray and MLflow settle in the first."""
    import psutil

    from pipeline.corpora import prepare

    sampled, over = [], 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare("digits", place / "data")
        log, began = place / "log", time.perf_counter()
        with log.open("w") as stream:
            driver = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", "sweep", "digits", "--data", "data", "--out", "sweep",
                 "--sample", "optim.lr=loguniform:1e-5:1e-2", "--trials", str(trials), "--train.steps", "1",
                 "--train.batch", "10", "--train.validate-every", "1", "--retries", "0"],
                cwd=place, env=_environment(), stdout=stream, stderr=stream,
            )  # fmt: skip
        process = psutil.Process(driver.pid)
        while driver.poll() is None:
            ended = sum(1 for _ in place.glob("sweep/*/outcome.json"))
            if ended > over:
                over = ended
                with contextlib.suppress(psutil.NoSuchProcess):
                    sampled.append((over, process.memory_info().rss / 1e6))
                progress(over, trials)
            time.sleep(0.5)
        took = time.perf_counter() - began
        if driver.returncode:
            raise UserError(f"the sweep of this benchmark failed: {log.read_text().strip()[-400:]}")
    count, resident = np.array(sampled).T
    half = count >= min(trials / 2, count[-1])
    slope = float(np.polyfit(count[half], resident[half], 1)[0]) if half.sum() > 1 else 0.0
    name, rate = "pairstream sweep", trials / took
    return Outcome(
        "sweep", case, "", name, "trials", {}, {}, {name: rate}, {name: [rate, rate]}, {}, 1, False, 0.0,
        {
            "driver's memory after the first trial, MB": float(resident[0]),
            "after half of them, MB": float(resident[half][0]),
            "after the last, MB": float(resident[-1]),
            "growth in the later half, MB per 100 trials": 100 * slope,
        },
    )  # fmt: skip
