"""Trainings of a minute and less as processes of their own, which a test may kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from infra.journal import points

STEPS = 60
COMMAND = [
    sys.executable, "-m", "jobs.cli", "train", "digits", "--json", "--steps", str(STEPS), "--train.log-every", "7",
    "--train.validate-every", "20", "--train.checkpoint-every", "10", "--engine.threads", "1", "--objective.k", "1",
    "--pairing.fraction", "0.2", "--tracking.no-enabled", "--train.batch", "20",
]  # fmt: skip


def curve(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """Everything in the journal but speed and load of the machine; a point journaled twice would show."""
    return [
        (step, {name: value for name, value in values.items() if not name.startswith(("speed/", "system/"))})
        for step, values in points(directory)
    ]


def run(*options: str, data: Path, out: Path, timeout: float = 200) -> dict:
    done = subprocess.run(
        [*COMMAND, "--data", str(data), "--out", str(out), *options], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    result: dict = json.loads(done.stdout.splitlines()[-1])
    return result


def start(data: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "--data", str(data), "--out", str(out), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def steps_journaled(out: Path) -> int:
    return max((step for step, _ in points(out)), default=0) if (out / "journal.jsonl").exists() else 0
