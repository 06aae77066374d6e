"""MLflow through a local journal: a tracking server that is down costs no step and loses no metric.

Training appends lines to DIRECTORY/journal.jsonl and never waits for more. A daemon thread (`Tracker`), or
anybody later (`sync`), delivers the journal to MLflow. Every point arrives exactly once: lines go in order,
the position up to which they were taken is saved after each chunk, and a chunk sent twice (killed in between)
does no harm, since a point's timestamp is the journal's and MLflow keeps equal rows once.

In a run's directory: journal.jsonl (the truth), tracking.json (where it goes), tracking.shipped.json (how far
it went; delete it to deliver all again), tracking.rejected.jsonl (what MLflow refused, and why) and
tracking.lock. A run deleted in MLflow is not made again: its journal waits until it is restored there.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from infra.address import TrackingError, absolute
from infra.disk import write_whole
from infra.journal import JOURNAL, Journal, parse
from infra.store import Destination, ensure_run, send, sentence

log = logging.getLogger(__name__)

DESTINATION, SHIPPED = "tracking.json", "tracking.shipped.json"
REJECTED, LOCK = "tracking.rejected.jsonl", "tracking.lock"
CHUNK_BYTES = 256 * 1024  # of journal, per delivery: bounds memory and what a kill makes us send again
MAX_WAIT = 60.0  # seconds between two attempts while the store does not answer


@dataclass(frozen=True)
class Delivery:
    """Lines of the journal that the store has taken and that still wait; entries that it refused for good."""

    delivered: int
    pending: int
    run_id: str | None
    error: str | None  # what stopped the delivery; None with pending > 0 means that time was up
    rejected: int = 0


@dataclass(frozen=True)
class _Shipped:
    """How far the journal went, and to which run: another destination, or another run, starts at 0 again."""

    destination: dict[str, Any]
    run_id: str | None = None
    offset: int = 0  # bytes of the journal
    lines: int = 0


class Tracker:
    """Journal first; a daemon thread delivers. No method waits for the store, or raises because of it or the
    disk; of the disk's trouble a log line and `close` tell. The directory is this process's alone.

    `ship_every`: seconds between deliveries, doubled up to a minute while the store does not answer.
    """

    def __init__(
        self, directory: Path, destination: Destination, ship_every: float = 5.0, running: bool = True
    ) -> None:
        """`running`: the run is at work from now on; False adds to a run that has ended, whose status stays."""
        self.directory, self.ship_every = directory, ship_every
        self.journal = Journal(directory)
        # An absolute path, so that sync() works from anywhere.
        self.destination = replace(destination, uri=absolute(destination.uri))
        _write_json(directory / DESTINATION, asdict(self.destination))
        self._disk_error: str | None = None
        self._error: str | None = None
        self._stop, self._deadline = threading.Event(), math.inf
        if running:
            self._write(self.journal.status, "RUNNING")
        self._thread = threading.Thread(target=self._ship, name="pairstream-tracking", daemon=True)
        self._thread.start()

    def params(self, values: Mapping[str, object]) -> None:
        self._write(self.journal.params, values)

    def tags(self, values: Mapping[str, str]) -> None:
        self._write(self.journal.tags, values)

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, object]) -> None:
        self._write(self.journal.dataset, name, digest, source, profile)

    def metrics(self, step: int, values: Mapping[str, float], again: bool = False) -> None:
        self._write(self.journal.metrics, step, values, again)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._write(self.journal.artifact, path, folder)

    def close(self, status: str | None = None, timeout: float = 30.0) -> Delivery:
        """Journal the status (None: it stays) and deliver the rest, at most `timeout` seconds; `sync` does it later."""
        if not self._stop.is_set():
            if status is not None:
                self._write(self.journal.status, status)
            self._deadline = time.monotonic() + timeout
            self._stop.set()
            self._thread.join(timeout)
            self.journal.close()
        return progress(self.directory, self._disk_error or self._error)

    def _write(self, write: Callable[..., None], *args: object) -> None:
        try:
            write(*args)
        except OSError as error:  # a full disk must not end the training; say it once, and again in close()
            if self._disk_error is None:
                log.error("cannot write the journal of %s: %s", self.directory, error)
            self._disk_error = f"points were lost, the journal could not be written: {error}"

    def _ship(self) -> None:
        wait = self.ship_every
        while not self._stop.wait(wait):
            error = sync(self.directory).error
            if error and not self._error:
                log.warning("tracking waits, the journal of %s keeps all: %s", self.directory, error)
            self._error = error
            wait = min(2 * wait, max(MAX_WAIT, self.ship_every)) if error else self.ship_every
        for _ in range(3):  # another process, or a parent run about to appear, may need a moment
            self._error = sync(self.directory, max(0.0, self._deadline - time.monotonic())).error
            if not self._error or time.monotonic() + 1 > self._deadline:
                return
            time.sleep(1)


def sync(directory: Path, timeout: float = math.inf) -> Delivery:
    """Deliver all that was not yet delivered of the run in `directory`, for about `timeout` seconds.

    Never raises: what went wrong is in `Delivery.error`. Does nothing while another process delivers it.
    """
    error = None
    try:
        destination = _read_destination(directory)
        with FileLock(directory / LOCK, timeout=0):
            _deliver(directory, destination, time.monotonic() + timeout)
    except Timeout as held:
        error = f"another process is delivering: it holds {held.lock_file}"
    except Exception as reason:  # whatever a store or its client raises: the journal keeps the lines
        log.debug("delivery of %s stopped", directory, exc_info=True)
        error = sentence(reason)
    return progress(directory, error)


def undelivered(root: Path) -> list[Path]:
    """Directories below `root` whose journals hold lines that MLflow has not taken, parents before their children."""

    def is_child(directory: Path) -> bool:
        try:
            return _read_destination(directory).parent is not None
        except TrackingError:  # `sync` says what is wrong with it
            return True

    waiting = [file.parent for file in root.rglob(DESTINATION) if progress(file.parent).pending]
    return sorted(waiting, key=lambda directory: (is_child(directory), directory))


def _deliver(directory: Path, destination: Destination, deadline: float) -> None:
    shipped = _read_shipped(directory, asdict(destination))
    with open(directory / JOURNAL, "rb") as journal:
        if shipped.offset > os.fstat(journal.fileno()).st_size:  # not the journal that we knew: all again
            shipped = replace(shipped, offset=0, lines=0)
        while lines := _whole_lines(journal, shipped.offset):
            os.fsync(journal.fileno())  # what MLflow has must survive here, or a replay would double it
            try:
                if shipped.run_id is None:
                    started = (parse(lines[0]) or {}).get("t")
                    shipped = replace(shipped, run_id=ensure_run(destination, started))
                send(destination.uri, str(shipped.run_id), directory, lines, partial(_reject, directory))
            except Exception as error:
                if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":  # a new store: a new run
                    (directory / SHIPPED).unlink(missing_ok=True)
                raise
            offset, count = shipped.offset + sum(map(len, lines)), shipped.lines + len(lines)
            shipped = replace(shipped, offset=offset, lines=count)
            _write_json(directory / SHIPPED, asdict(shipped))
            if time.monotonic() > deadline:
                return


def _whole_lines(journal: IO[bytes], offset: int) -> list[bytes]:
    journal.seek(offset)  # anew each time: the last line may be half written
    return [line for line in journal.readlines(CHUNK_BYTES) if line.endswith(b"\n")]


def _reject(directory: Path, item: object, reason: str) -> None:
    with open(directory / REJECTED, "a") as rejected:
        what = item.decode(errors="replace") if isinstance(item, bytes) else str(item)
        rejected.write(json.dumps({"reason": reason, "item": what}) + "\n")


def destination_in(directory: Path) -> Destination | None:
    """Where the record of the run in a directory goes; None where it is not tracked. Raises TrackingError where that
    cannot be read."""
    return _read_destination(directory) if (directory / DESTINATION).exists() else None


def _read_destination(directory: Path) -> Destination:
    try:
        return Destination(**json.loads((directory / DESTINATION).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise TrackingError(f"{directory} is no directory of a tracked run: {error}") from error


def _read_shipped(directory: Path, destination: dict[str, Any]) -> _Shipped:
    try:
        shipped = _Shipped(**json.loads((directory / SHIPPED).read_text()))
    except (OSError, TypeError, ValueError):  # none yet, or not ours: sending all again does no harm
        return _Shipped(destination)
    return shipped if shipped.destination == destination else _Shipped(destination)


def progress(directory: Path, error: str | None = None) -> Delivery:
    """How far the journal in `directory` went, without a look at the store."""
    try:
        shipped = _read_shipped(directory, asdict(_read_destination(directory)))
    except TrackingError as reason:
        return Delivery(0, _count_lines(directory / JOURNAL), None, error or str(reason))
    pending, rejected = _count_lines(directory / JOURNAL, shipped.offset), _count_lines(directory / REJECTED)
    return Delivery(shipped.lines, pending, shipped.run_id, error, rejected)


def _count_lines(path: Path, offset: int = 0) -> int:
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(offset)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")
