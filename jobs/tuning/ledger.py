"""What a sweep knows of its trials, on disk: it outlives the driver, so that a sweep goes on where it was cut.

DIRECTORY/trials.jsonl has a line for each trial that was begun, in order; a trial's own directory has outcome.json
once it has ended, and trial.json with what it told the driver and, under population-based training, what became of its
settings. Ray's own state is written at intervals and holds nothing of its schedulers: it is not read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from infra.disk import write_whole
from infra.journal import JOURNAL, points

TRIALS, OUTCOME, TRIAL = "trials.jsonl", "outcome.json", "trial.json"
Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Entry:
    """A trial that was begun."""

    number: int
    name: str
    """Of its directory and its MLflow run."""
    cell: Mapping[str, Any]
    """The dotted keys that make it differ from the sweep's run."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    ending: Ending
    """Finished, stopped by the scheduler, or failed."""
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The validation metric at its best step, and the test metrics of that checkpoint; test metrics only of those
    that finished."""
    pairs: int = 0
    """Complete rows that the training view showed."""
    error: str = ""


class Ledger:
    """The trials of one sweep, in the order in which they were begun. One process writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        file = directory / TRIALS
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        self.entries = [Entry(**json.loads(line)) for line in lines if line.endswith(b"\n")]
        if lines and not lines[-1].endswith(b"\n"):  # torn by a kill: the trial was not begun
            write_whole(file, b"".join(lines[:-1]).decode())

    def begin(self, cell: Mapping[str, Any]) -> Entry:
        """Write down the next trial, before anything of it is done."""
        entry = Entry(len(self.entries), name_of(len(self.entries), cell), dict(cell))
        with (self.directory / TRIALS).open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)
        return entry

    def outcome(self, entry: Entry) -> Outcome | None:
        """How a trial ended; None where it has not."""
        return outcome_in(self.directory / entry.name)

    def over(self, entry: Entry) -> bool:
        """Whether nothing is left to be done; what failed is tried again."""
        outcome = self.outcome(entry)
        return outcome is not None and outcome.ending != "failed"


def outcome_in(directory: Path) -> Outcome | None:
    """What a trial's directory says of its end."""
    try:
        return Outcome(**json.loads((directory / OUTCOME).read_text()))
    except FileNotFoundError:  # asked first, it might be gone by now: another process tries a failed trial again
        return None


def end(directory: Path, outcome: Outcome) -> None:
    """Write down how a trial ended."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / OUTCOME, json.dumps(asdict(outcome)) + "\n")


def best_so_far(directory: Path, metric: str, direction: str) -> Mapping[str, float]:
    """The best value of the sweep's metric that a trial has come to; nothing where it has not been validated."""
    if not (directory / JOURNAL).is_file():
        return {}
    values = [metrics[metric] for _, metrics in points(directory) if metric in metrics]
    return {metric: (max if direction == "max" else min)(values)} if values else {}


def name_of(number: int, cell: Mapping[str, Any]) -> str:
    """003-fraction0.05-k1"""
    shown = {
        key.rpartition(".")[2]: f"{value:.4g}" if isinstance(value, float) else value for key, value in cell.items()
    }
    return f"{number:03d}-{'-'.join(f'{key}{value}' for key, value in shown.items())}".replace("/", "_")[:120]
