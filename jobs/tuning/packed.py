"""A sweep's trials trained side by side as one program, in this process: for trials that differ in numbers only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.progress import Progress

from infra.errors import UserError
from infra.journal import JOURNAL, points
from jobs.tuning.ledger import Entry, Ledger, Outcome, end
from jobs.tuning.trial import TIME, finished
from pipeline import config
from pipeline.course import Result
from pipeline.packing import Member, train_packed
from pipeline.recipes.sweep import Sweep


def run_packed(sweep: Sweep, directory: Path, identity: str, slots: int) -> None:
    """All trials that have not ended, `slots` at a time; one that ends frees its slot for the next.

    Raises UserError where trials differ in more than numbers.
    """
    ledger = Ledger(directory)
    left = [entry for entry in ledger.entries if not ledger.over(entry)]
    remaining = len(left) + sweep.total - len(ledger.entries)
    rungs = Rungs(sweep, ledger) if sweep.scheduler == "asha" else None

    def members() -> Iterator[Member]:
        for entry in left:
            yield member(entry)
        while len(ledger.entries) < sweep.total:
            yield member(ledger.begin(sweep.cell(len(ledger.entries))))

    def member(entry: Entry) -> Member:
        run = config.override(sweep.run, entry.cell)
        return Member(run, directory / entry.name, f"{identity}/{entry.name}", identity)

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{sweep.total} trials, {slots} at a time", total=remaining)

        def on_result(one: Member, ended: Result | UserError) -> None:
            if isinstance(ended, UserError):
                end(one.directory, Outcome("failed", 0, error=str(ended)))
            elif ended.status == "preempted":
                return
            elif rungs and one.directory.name in rungs.fallen:
                end(one.directory, Outcome("stopped", ended.step))
            else:
                end(one.directory, finished(one.run, ended))
            bar.advance(task)
            if not sys.stderr.isatty():
                print(f"trial {one.directory.name} done", file=sys.stderr, flush=True)

        train_packed(members(), slots, resume=True, report=rungs, on_result=on_result)


class Rungs:
    """Ray's ASHA, asked without Ray: of a trial it wants to know nothing but its name.

    Called after each validation of a member; returns whether that one is to stop.
    """

    def __init__(self, sweep: Sweep, ledger: Ledger) -> None:
        """What trials said in an earlier process is said again; who was to go on by then, goes on."""
        from jobs.tuning.plan import scheduler  # imports Ray

        self.metric = sweep.metric
        self.asha = scheduler(sweep)
        self.asha.set_search_properties(sweep.metric, sweep.direction)
        self.fallen: set[str] = set()
        self._heard: dict[str, tuple[int, int]] = {}
        """Of each trial: its last step, and the number of its validations."""
        for entry in ledger.entries:
            place = ledger.directory / entry.name
            for step, metrics in points(place) if (place / JOURNAL).is_file() else ():
                self._tell(entry.name, step, metrics)

    def __call__(self, member: Member, step: int, metrics: dict[str, float]) -> bool:
        name = member.directory.name
        if self._tell(name, step, metrics):
            self.fallen.add(name)
        return name in self.fallen

    def _tell(self, name: str, step: int, metrics: dict[str, float]) -> bool:
        if self.metric not in metrics:
            return False
        trial = SimpleNamespace(trial_id=name)
        if name not in self._heard:
            self.asha.on_trial_add(None, trial)
        last, count = self._heard.get(name, (-1, 0))
        if step <= last:  # taken again after a checkpoint
            return False
        self._heard[name] = step, count + 1
        said = {TIME: count + 1, self.metric: metrics[self.metric]}
        return bool(self.asha.on_trial_result(None, trial, said) == self.asha.STOP)
