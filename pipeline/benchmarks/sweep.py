"""What Ray Tune and its driver cost a trial: a sweep against the same trainings in a plain loop.

Each turn is a process of its own, as people start them: the loop imports once and trains one after the other, the sweep
starts Ray and gives each trial all cores, so that its trials too come one after the other. Both train, record to MLflow
(a fresh SQLite file), draw pictures and evaluate.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from infra.distributed import cores
from infra.errors import UserError
from pipeline.benchmarks import Progress
from pipeline.benchmarks.harness import Outcome, Turn, alternate

TRIALS, STEPS = 8, 4000
"""The usual sweep: a trial of the digits recipe then takes about a minute of one core."""
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
    """`samples`: optimizer steps of each trial, STEPS for 0. Seconds a trial beside the ratio."""
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
    took = {name: statistics.median(times) / TRIALS for name, times in seconds.items()}
    figures = {f"{name}, seconds a trial": value for name, value in took.items()}
    return replace(
        found, figures=figures | {"overhead, seconds a trial": took["pairstream sweep"] - took["plain loop"]}
    )


def _process(arguments: list[str], seconds: list[float]) -> Turn:
    """Turns of a process in a fresh directory, which all do TRIALS trials; how long each took goes into `seconds`."""

    def turn() -> tuple[int, float]:
        with tempfile.TemporaryDirectory() as place:
            environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
            path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *arguments], cwd=place, env=environment | {"PYTHONPATH": path}, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            took = time.perf_counter() - started
        if done.returncode:
            raise UserError(f"a trial of this benchmark failed: {(done.stderr or done.stdout).strip()[-400:]}")
        seconds.append(took)
        return TRIALS, took

    return turn
