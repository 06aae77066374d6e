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

import functools
import getpass
import json
import logging
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from infra.errors import UserError, nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

log = logging.getLogger(__name__)

JOURNAL, DESTINATION, SHIPPED = "journal.jsonl", "tracking.json", "tracking.shipped.json"
REJECTED, LOCK = "tracking.rejected.jsonl", "tracking.lock"
IDENTITY, PARENT, TROUBLE = "pairstream.id", "pairstream.parent", "pairstream.trouble"  # tags of a run
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
CHUNK_BYTES = 256 * 1024  # of journal, per delivery: bounds memory and what a kill makes us send again
MAX_WAIT = 60.0  # seconds between two attempts while the store does not answer

# MLflow's own defaults block for minutes on a dead server; here the thread is who tries again.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
DENIED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
MISCONFIGURED = DENIED | {"BAD_REQUEST", "ENDPOINT_NOT_FOUND", "NOT_FOUND", "INVALID_PARAMETER_VALUE"}
# The store's fault or the credentials', never the line's: wait.
TRANSIENT = DENIED | {"TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED", "ABORTED"}


class TrackingError(UserError):
    """What was wrong with the tracking store, where, and what to do."""


# ---------------------------------------------------------------------------------------------- journal


class Journal:
    """Append-only JSON-lines file of one run, DIRECTORY/journal.jsonl; one writing process at a time.

    Opening reads the journal once (about 2.5 s per 100 MB), cuts off a last line torn by kill -9, and
    remembers what it holds. Methods raise OSError where the disk does, and leave the journal whole.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(directory / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._last: dict[str, int] = {}  # last step per metric
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        with open(directory / JOURNAL, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(line))
                self._remember(_parse(line))

    def params(self, values: Mapping[str, object]) -> None:
        """Hyper-parameters. The same again is ignored; a changed one becomes the tag `changed.NAME`, since
        MLflow never changes a parameter."""
        given = {name: str(value) for name, value in values.items()}
        if new := {name: value for name, value in given.items() if name not in self._params}:
            self._append({"params": new})
        known = {name: self._tags.get(f"changed.{name}", self._params[name]) for name in given}
        self.tags({f"changed.{name}": value for name, value in given.items() if value != known[name]})

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags; the last value counts, and the same again is ignored."""
        if new := {name: str(value) for name, value in values.items() if self._tags.get(name) != str(value)}:
            self._append({"tags": new})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of one step. A name's point at or before its last step is ignored: a resumed run replays the
        steps since its checkpoint, and they are the same bit for bit."""
        if new := {n: _encode(float(v)) for n, v in values.items() if step > self._last.get(n, -math.inf)}:
            self._append({"step": int(step), "metrics": new})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or directory to upload to `folder` of the run; what it holds at delivery counts."""
        path, home = Path(path).resolve(), self.directory.resolve()
        path = path.relative_to(home) if path.is_relative_to(home) else path  # survives a move of the directory
        self._append({"artifact": str(path), "folder": folder})

    def status(self, status: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED; ValueError for anything else."""
        if status not in STATUSES:
            raise ValueError(f"no run can be {status!r}{nearest(status, list(STATUSES))}")
        self._append({"status": status})

    def points(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, {name: value}) of every line of metrics, as written."""
        return points(self.directory)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _append(self, record: dict[str, Any]) -> None:
        record = {"t": time.time_ns() // 1_000_000, **record}  # ms since the epoch
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        written = os.write(self._fd, line)  # one call: a kill leaves at most a torn last line
        if written != len(line):  # the disk is full: take the torn line back, so that the next starts clean
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(f"no room for a line in {self.directory / JOURNAL}")
        self._remember(record)

    def _remember(self, record: dict[str, Any] | None) -> None:
        if record:
            self._last.update(dict.fromkeys(record.get("metrics", ()), record.get("step", 0)))
            self._params.update(record.get("params", ()))
            self._tags.update(record.get("tags", ()))


def points(directory: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, {name: value}) of every line of metrics in `directory`'s journal, also of a run at work."""
    with open(directory / JOURNAL, "rb") as lines:
        for line in lines:
            record = _parse(line)
            if record and "metrics" in record:
                yield record["step"], {name: float(value) for name, value in record["metrics"].items()}


def _encode(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)  # JSON has no NaN; float("nan") reads it back


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's record; None for a line that is torn or not ours."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and line.endswith(b"\n") else None


# --------------------------------------------------------------------------------------------- delivery


@dataclass(frozen=True)
class Destination:
    """Which store, experiment and run. `identity` (tag pairstream.id) makes resumed processes find their run;
    `parent` is the identity of the run under which this one hangs."""

    uri: str
    experiment: str
    name: str
    identity: str
    parent: str | None = None

    def __post_init__(self) -> None:
        if "'" in self.identity or "'" in (self.parent or ""):
            raise ValueError(f"no quotes in a run's identity, please: {self.identity!r}, {self.parent!r}")


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

    def __init__(self, directory: Path, destination: Destination, ship_every: float = 5.0) -> None:
        self.directory, self.ship_every = directory, ship_every
        self.journal = Journal(directory)
        # An absolute path, so that sync() works from anywhere.
        self.destination = replace(destination, uri=_absolute(destination.uri))
        _write_json(directory / DESTINATION, asdict(self.destination))
        self._disk_error: str | None = None
        self._error: str | None = None
        self._stop, self._deadline = threading.Event(), math.inf
        self._write(self.journal.status, "RUNNING")
        self._thread = threading.Thread(target=self._ship, name="pairstream-tracking", daemon=True)
        self._thread.start()

    def params(self, values: Mapping[str, object]) -> None:
        self._write(self.journal.params, values)

    def tags(self, values: Mapping[str, str]) -> None:
        self._write(self.journal.tags, values)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._write(self.journal.metrics, step, values)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._write(self.journal.artifact, path, folder)

    def close(self, status: str, timeout: float = 30.0) -> Delivery:
        """Journal the status and deliver the rest, for at most `timeout` seconds; `sync` does it later."""
        if not self._stop.is_set():
            self._write(self.journal.status, status)
            self._deadline = time.monotonic() + timeout
            self._stop.set()
            self._thread.join(timeout)
            self.journal.close()
        return _progress(self.directory, self._disk_error or self._error)

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
        error = _sentence(reason)
    return _progress(directory, error)


def _deliver(directory: Path, destination: Destination, deadline: float) -> None:
    shipped = _read_shipped(directory, asdict(destination))
    with open(directory / JOURNAL, "rb") as journal:
        if shipped.offset > os.fstat(journal.fileno()).st_size:  # not the journal that we knew: all again
            shipped = replace(shipped, offset=0, lines=0)
        while lines := _whole_lines(journal, shipped.offset):
            os.fsync(journal.fileno())  # what MLflow has must survive here, or a replay would double it
            try:
                if shipped.run_id is None:
                    started = (_parse(lines[0]) or {}).get("t")
                    shipped = replace(shipped, run_id=ensure_run(destination, started))
                _send(_client(destination.uri), str(shipped.run_id), directory, lines)
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


def _send(client: MlflowClient, run_id: str, directory: Path, lines: list[bytes]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    def log_batch(items: list[Any]) -> None:
        metrics = [item for item in items if isinstance(item, Metric)]
        params = [item for item in items if isinstance(item, Param)]
        tags = {item.key: item for item in items if isinstance(item, RunTag)}  # the last value counts
        client.log_batch(run_id, metrics, params, list(tags.values()))  # splits by MLflow's limits itself

    def act(items: list[Any]) -> None:
        (record,) = items
        if "artifact" in record:
            client.log_artifact(run_id, str(directory / record["artifact"]), record["folder"] or None)
        elif record["status"] == "RUNNING":
            client.update_run(run_id, "RUNNING")
        else:
            client.set_terminated(run_id, record["status"], end_time=record["t"])

    def give(send: Callable[[list[Any]], None], items: list[Any]) -> None:
        """Halve what the store refuses until only the item at fault is left out, and written down."""
        for _ in range(2 if len(items) == 1 else 1):
            try:
                send(items)
                return
            except Exception as error:
                if getattr(error, "error_code", "") in TRANSIENT:
                    raise
                reason = _sentence(error)
                # Is it the item, or is it the store or the run? Those refuse this tag too: raise, all waits.
                client.set_tag(run_id, TROUBLE, reason)
        if len(items) == 1:
            _reject(directory, items[0], reason)
        else:
            give(send, items[: len(items) // 2])
            give(send, items[len(items) // 2 :])

    batch: list[Any] = []
    for line in lines:
        try:
            record = _parse(line) or {}
            items = _entities(record)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            _reject(directory, line, f"not a line of this journal: {error!r}")
            continue
        batch += items
        if not items:  # an artifact or a status, in its place among the points
            give(log_batch, batch)
            batch = []
            give(act, [record])
    give(log_batch, batch)


def _entities(record: dict[str, Any]) -> list[Metric | Param | RunTag]:
    """What MLflow calls the values of a line; empty for an artifact or a status."""
    from mlflow.entities import Metric, Param, RunTag

    if "metrics" in record:
        return [Metric(_name(n), float(v), record["t"], record["step"]) for n, v in record["metrics"].items()]
    if "params" in record:
        return [Param(_name(n), v[:6000]) for n, v in record["params"].items()]
    if "tags" in record:
        return [RunTag(_name(n), v[:5000]) for n, v in record["tags"].items()]
    if record.keys() & {"artifact", "status"}:
        return []
    raise KeyError("it holds nothing that is known")


def _name(name: str) -> str:
    """A name that MLflow takes: letters of any alphabet, digits and `_-./: `, as a relative path."""
    parts = re.sub(r"[^\w.\-/: ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250] or "_"


def _reject(directory: Path, item: object, reason: str) -> None:
    with open(directory / REJECTED, "a") as rejected:
        what = item.decode(errors="replace") if isinstance(item, bytes) else str(item)
        rejected.write(json.dumps({"reason": reason, "item": what}) + "\n")


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


def _progress(directory: Path, error: str | None) -> Delivery:
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
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def _sentence(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    if len(first) > 400:  # an HTTP client's error opens with where, and closes with why
        first = f"{first[:200]} … {first[-200:]}"
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


# ------------------------------------------------------------------------------------------------ store


def default_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file ROOT/mlflow.db."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def prepare_store(uri: str, experiment: str, artifacts: Path | None) -> None:
    """Make database and experiment once, before a fan-out; `artifacts`: where the experiment's files go
    (None: next to the SQLite file, or as the server decides).

    Raises TrackingError for a URI that can never work. A server that is merely down is logged: journals wait.
    """
    try:
        client = _client(uri)
        with _store_lock(uri):
            _experiment_id(client, uri, experiment, artifacts)
    except TrackingError:
        raise
    except Exception as error:
        code = getattr(error, "error_code", "")
        if uri.startswith("http") and code not in MISCONFIGURED:
            log.warning("MLflow at %s does not answer, journals will wait for it: %s", uri, _sentence(error))
            return
        raise TrackingError(
            f"cannot use the MLflow store {uri}: {_sentence(error)}; set MLFLOW_TRACKING_URI to a server "
            "that answers or to sqlite:///PATH in a directory that you may write"
        ) from error


def ensure_run(destination: Destination, started: int | None = None) -> str:
    """The id of the destination's run, found by its identity or made (`started`: ms since the epoch).

    Raises TrackingError while the parent run does not exist (only the parent's own journal makes it), and
    whatever MLflow raises.
    """
    uri, identity, parent = destination.uri, destination.identity, destination.parent
    client = _client(uri)
    with _store_lock(uri):
        experiment = _experiment_id(client, uri, destination.experiment, None)
        if found := _find(client, experiment, identity):
            return str(found.info.run_id)
        tags = {IDENTITY: identity, "mlflow.runName": destination.name, "mlflow.user": _user()}
        if parent is not None:
            above = _find(client, experiment, parent)
            if above is None:
                raise TrackingError(f"the parent run {parent!r} is not yet in {uri}: deliver its journal first")
            tags |= {PARENT: parent, "mlflow.parentRunId": above.info.run_id}
        run = client.create_run(experiment, started, tags, run_name=destination.name)
        return str(run.info.run_id)


def runs(uri: str, experiment: str | None = None) -> list[dict[str, Any]]:
    """All runs of an experiment, or of all, newest first: run_id, name, identity and parent (identities; None
    for runs of others), status, start (ms since the epoch), params, metrics (latest values), tags.

    Raises TrackingError where the store or the experiment cannot be read.
    """
    path = _sqlite_path(uri)
    if path is not None and not path.exists():
        raise TrackingError(f"there is no MLflow database at {path}: train first, or set MLFLOW_TRACKING_URI")
    try:
        client = _client(uri)
        names = {e.name: e.experiment_id for e in _pages(client.search_experiments)}
        if experiment is not None and experiment not in names:
            raise TrackingError(f"no experiment {experiment!r} in {uri}{nearest(experiment, sorted(names))}")
        wanted = list(names.values()) if experiment is None else [names[experiment]]
        search = functools.partial(client.search_runs, wanted, order_by=["attributes.start_time DESC"])
        found = list(_pages(search))
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"cannot read the MLflow store {uri}: {_sentence(error)}") from error
    return [
        {
            "run_id": run.info.run_id,
            "name": run.info.run_name,
            "identity": run.data.tags.get(IDENTITY),
            "parent": run.data.tags.get(PARENT),
            "status": run.info.status,
            "start": run.info.start_time,
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "tags": dict(run.data.tags),
        }
        for run in found
    ]


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        if not (token := page.token):
            return


def _find(client: MlflowClient, experiment: str, identity: str) -> Run | None:
    # The oldest, so that everybody takes the same one should two processes have made it at the same moment.
    query, order = f"tags.`{IDENTITY}` = '{identity}'", ["attributes.start_time ASC"]
    return next(iter(client.search_runs([experiment], query, max_results=1, order_by=order)), None)


def _experiment_id(client: MlflowClient, uri: str, name: str, artifacts: Path | None) -> str:
    path = _sqlite_path(uri)
    if artifacts is None and path is not None:
        artifacts = path.parent / "artifacts"  # MLflow's own default is the working directory's ./mlruns
    for _ in range(2):  # on a server others may make it between our look and our try
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                raise TrackingError(f"the experiment {name!r} in {uri} is deleted: restore it or take another name")
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifacts.resolve().as_uri() if artifacts else None))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
    raise TrackingError(f"the experiment {name!r} in {uri} comes and goes")


@functools.lru_cache
def _client(uri: str) -> MlflowClient:
    """A client whose database has its tables. Importing mlflow takes a second: only here, in the thread."""
    _check(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name, level in {"mlflow": "WARNING", "alembic": "WARNING", "urllib3.connectionpool": "ERROR"}.items():
        logging.getLogger(name).setLevel(level)
    with _store_lock(uri):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    """Held while a SQLite file gets its tables (clients of a fresh file race there), or a run its one row."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock"), timeout=60):
        with closing(sqlite3.connect(path, timeout=20)) as database:
            database.execute("BEGIN IMMEDIATE")  # a file that cannot be used fails here; MLflow would try for 100 s
        yield


def _check(uri: str) -> None:
    parts, path = urlsplit(uri), _sqlite_path(uri)
    scheme = parts.scheme.partition("+")[0]
    hint = "use http(s)://HOST:PORT of an MLflow server, or sqlite:///PATH"
    if scheme not in SCHEMES:
        raise TrackingError(f"the tracking URI {uri!r} has a scheme that cannot hold runs; {hint}")
    if path is None and (scheme == "sqlite" or not parts.hostname):
        raise TrackingError(f"the tracking URI {uri!r} names no {'file' if scheme == 'sqlite' else 'host'}; {hint}")


def _sqlite_path(uri: str) -> Path | None:
    scheme, _, path = uri.partition(":///")
    return Path(path.partition("?")[0]).absolute() if scheme.partition("+")[0] == "sqlite" and path else None


def _absolute(uri: str) -> str:
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return str(os.getuid())
