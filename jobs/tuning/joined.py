"""A sweep's trials trained by processes that share its directory, without Ray: each takes the next that nobody has.

All trials are written down by who begins the sweep. Of each, `trial.lock` is held from its training to its outcome; a
lock dies with its process, and who looks next goes on from the checkpoint. `attempts` counts how often it was begun.
What all may write, the ledger and the parent run, is written under the sweep's own training lock.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from infra.disk import write_whole
from infra.errors import UserError
from infra.preemption import REQUEUE, StopAtOnce
from infra.store import sentence
from jobs.tuning.ledger import OUTCOME, Entry, Ledger, Outcome, end, outcome_in
from jobs.tuning.parent import Ended, conclude, is_fresh, parent_run
from jobs.tuning.stall import WHY
from jobs.tuning.trial import Setting, work
from jobs.tuning.written import PLAN, load
from pipeline import config
from pipeline.recipes.sweep import Sweep
from pipeline.record import destination, training_lock
from pipeline.settings import check

CLAIM, ATTEMPTS = "trial.lock", "attempts"
CONCLUDED = "concluded"
"""In a sweep's directory: a hash of the outcomes that its table was made of."""
WAIT = -1
"""For a lock that others hold for as long as it takes them to write."""


@dataclass(frozen=True)
class Joined:
    """What a process that has joined has come to."""

    trained: list[str]
    """Trials that ended here."""
    elsewhere: list[str]
    """Trials that others were training when nothing else was left."""
    ended: Ended | None
    """What came of the sweep, where this process has concluded it."""


def begin(plan: Sweep, directory: Path, known: bool) -> Sweep | None:
    """Write a sweep and all of its trials down, unless that is done. Returns it, with its store and its columns; None
    where others have begun it, and the plan was made without knowing theirs.

    Raises UserError where the sweep cannot work, or its directory holds something else.
    """
    with training_lock(directory).acquire(timeout=WAIT):
        begun = (directory / PLAN).is_file()
        if begun and not known:
            return None
        check(begun or is_fresh(directory), f"{directory} holds something else than a sweep: choose another --out")
        ledger = Ledger(directory)
        if len(ledger.entries) < plan.total:
            with parent_run(plan, directory) as parent:
                parent.status, plan = None, parent.plan
            while len(ledger.entries) < plan.total:
                ledger.begin(plan.cell(len(ledger.entries)))
    return plan


def join(plan: Sweep, directory: Path, retries: int, stall: float, command: str) -> Joined:
    """Train trials of a sweep that has begun until none is left that nobody has; who finds all of them over concludes.

    Raises SystemExit(REQUEUE) where it is told to stop: what was being trained is saved.
    """
    identity = destination(plan.run, directory).identity
    setting = Setting(config.to_dict(plan.run), str(directory), identity, plan.metric, session="", stall=stall)
    trials, trained = _Trials(directory, retries), []
    with StopAtOnce() as stop:
        while claimed := trials.claim():
            entry, held = claimed
            with held:
                if _train(config.override(plan.run, entry.cell), directory / entry.name, setting, retries):
                    trained.append(entry.name)
            if stop.asked:  # while a training was saying its last words, in which it is not disturbed
                raise SystemExit(REQUEUE)
        elsewhere, ended = (trials.elsewhere, None) if trials.elsewhere else _conclude(directory, command)
        return Joined(trained, elsewhere, ended)


class _Trials:
    """The trials of a sweep, as one of its processes sees them."""

    def __init__(self, directory: Path, retries: int) -> None:
        self.directory, self.retries = directory, retries
        self.elsewhere: list[str] = []
        """Those that others had at the last look."""
        self._finished: set[str] = set()

    def claim(self) -> tuple[Entry, AcquireReturnProxy] | None:
        """The next trial that nobody has, and what holds it; what has failed before comes last."""
        with training_lock(self.directory).acquire(timeout=WAIT):
            entries = Ledger(self.directory).entries
        left = [entry for entry in entries if self._is_left(entry)]
        self.elsewhere = []
        for entry in sorted(left, key=lambda entry: (self.directory / entry.name / OUTCOME).exists()):
            place = self.directory / entry.name
            place.mkdir(exist_ok=True)
            lock = FileLock(place / CLAIM)
            try:
                held = lock.acquire(timeout=0)
            except Timeout:
                self.elsewhere.append(entry.name)
                continue
            if not self._is_left(entry):  # now that nobody else can change it
                lock.release()
            elif not _is_free(place):
                lock.release()
                self.elsewhere.append(entry.name)
            else:
                return entry, held
        return None

    def _is_left(self, entry: Entry) -> bool:
        if entry.name in self._finished:
            return False
        place = self.directory / entry.name
        outcome = outcome_in(place)
        if outcome and outcome.ending != "failed":
            self._finished.add(entry.name)
        return outcome is None or (outcome.ending == "failed" and _attempts(place) <= self.retries)


def _train(run: config.Run, directory: Path, setting: Setting, retries: int) -> bool:
    """Train one trial, which this process holds, and write down what came of it. Returns whether it has finished."""
    attempts, outcome = _attempts(directory), outcome_in(directory)
    if attempts > retries:  # as often as it may, its process was gone before it could say anything
        why = (directory / WHY).read_text().strip() if (directory / WHY).is_file() else "was lost with its process"
        end(directory, Outcome("failed", 0, error=f"{why}, {attempts} times"))
        return _say(directory, "failed")
    (directory / OUTCOME).unlink(missing_ok=True)  # first: who saw no attempt left, and this, would call it the end
    try:
        write_whole(directory / ATTEMPTS, f"{attempts + 1}\n")
        if attempts:
            _say(directory, f"{'has failed' if outcome else 'was lost with its process'}: begun anew")
        outcome = _outcome(run, directory, setting)
        end(directory, outcome)
    except SystemExit:  # told to stop, which is nobody's failure
        write_whole(directory / ATTEMPTS, f"{attempts}\n")
        raise
    return _say(directory, "failed" if outcome.error else "done")


def _outcome(run: config.Run, directory: Path, setting: Setting) -> Outcome:
    """How a training ended. Raises SystemExit where it was told to stop."""
    try:
        outcome = work(run, directory, setting)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        return Outcome("failed", 0, error=sentence(error))
    if outcome is None:
        raise SystemExit(REQUEUE)
    return outcome


def _conclude(directory: Path, command: str) -> tuple[list[str], Ended | None]:
    """Make the sweep's table, unless somebody has made it of what there is. Returns the trials that somebody has begun
    since all were over, and what came of the sweep."""
    with training_lock(directory).acquire(timeout=WAIT):
        names = [entry.name for entry in Ledger(directory).entries]
        outcomes = {name: outcome_in(directory / name) for name in names}
        begun = [name for name, outcome in outcomes.items() if outcome is None]
        if begun:
            return begun, None
        digest = hashlib.sha256(repr(outcomes).encode()).hexdigest()
        known = directory / CONCLUDED
        if known.is_file() and known.read_text().strip() == digest:
            return [], None
        with parent_run(load(directory), directory) as parent:
            ended = conclude(parent, command)
        write_whole(known, digest + "\n")
        return [], ended


def _is_free(directory: Path) -> bool:
    """Whether no worker trains there that has lost its driver, and is about to end."""
    try:
        with training_lock(directory):
            return True
    except Timeout:
        return False


def _attempts(directory: Path) -> int:
    """How often a trial was begun, but for when it was told to stop."""
    file = directory / ATTEMPTS
    return int(file.read_text()) if file.is_file() else 0


def _say(directory: Path, how: str) -> bool:
    print(f"trial {directory.name} {how}", file=sys.stderr, flush=True)
    return how == "done"
