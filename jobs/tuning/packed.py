"""A sweep's trials trained side by side as one program, in this process: for trials that differ in numbers only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from infra.errors import UserError
from jobs.tuning.ledger import Entry, Ledger, Outcome, end
from jobs.tuning.trial import finished
from pipeline import config
from pipeline.course import Result
from pipeline.packing import Member, train_packed
from pipeline.recipes.sweep import Sweep


def run_packed(sweep: Sweep, directory: Path, identity: str, slots: int) -> Ledger:
    """All trials that have not ended, `slots` at a time; one that ends frees its slot for the next.

    Raises UserError where trials differ in more than numbers.
    """
    ledger = Ledger(directory)
    left = [entry for entry in ledger.entries if not ledger.over(entry)]
    remaining = len(left) + sweep.total - len(ledger.entries)

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
            else:
                end(one.directory, finished(one.run, ended))
            bar.advance(task)
            if not sys.stderr.isatty():
                print(f"trial {one.directory.name} done", file=sys.stderr, flush=True)

        train_packed(members(), slots, resume=True, on_result=on_result)
    return Ledger(directory)
