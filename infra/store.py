"""MLflow's store, and nobody else here knows MLflow: make experiments and runs, send a journal's lines, read runs.

Importing this file does not import mlflow, which takes a second; the first client does.
"""

from __future__ import annotations

import functools
import getpass
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.address import RUNS as RUNS
from infra.address import TrackingError, artifacts_beside, check_address, sqlite_path, store_lock
from infra.address import default_uri as default_uri
from infra.errors import UserError, nearest
from infra.journal import parse

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag

log = logging.getLogger(__name__)

IDENTITY, PARENT, TROUBLE = "pairstream.id", "pairstream.parent", "pairstream.trouble"  # tags of a run
ABOVE = "mlflow.parentRunId"

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


def prepare_store(uri: str, experiment: str, artifacts: Path | None) -> None:
    """Make database and experiment once, before a fan-out; `artifacts`: where the experiment's files go
    (None: next to the SQLite file, or as the server decides).

    Raises TrackingError for a URI that can never work. A server that is merely down is logged: journals wait.
    """
    try:
        client = connect(uri)
        with store_lock(uri):
            _experiment_id(client, uri, experiment, artifacts)
    except TrackingError:
        raise
    except Exception as error:
        code = getattr(error, "error_code", "")
        if uri.startswith("http") and code not in MISCONFIGURED:
            log.warning("MLflow at %s does not answer, journals will wait for it: %s", uri, sentence(error))
            return
        raise TrackingError(
            f"cannot use the MLflow store {uri}: {sentence(error)}; set MLFLOW_TRACKING_URI to a server "
            "that answers or to sqlite:///PATH in a directory that you may write"
        ) from error


def check_store(uri: str) -> None:
    """Raise TrackingError where the store does not answer now; a new database gets its tables."""
    try:
        connect(uri).search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"the MLflow store {uri} does not answer: {sentence(error)}; start its server, or set MLFLOW_TRACKING_URI "
            "to one that answers or to sqlite:///PATH"
        ) from error


def ensure_run(destination: Destination, started: int | None = None) -> str:
    """The id of the destination's run, found by its identity or made (`started`: ms since the epoch).

    Raises TrackingError while the parent run does not exist (only the parent's own journal makes it), and
    whatever MLflow raises.
    """
    uri, identity, parent = destination.uri, destination.identity, destination.parent
    client = connect(uri)
    with store_lock(uri):
        experiment = _experiment_id(client, uri, destination.experiment, None)
        if found := _find(client, experiment, identity):
            return str(found.info.run_id)
        tags = {IDENTITY: identity, "mlflow.runName": destination.name, "mlflow.user": _user()}
        if parent is not None:
            above = _find(client, experiment, parent)
            if above is None:
                raise TrackingError(f"the parent run {parent!r} is not yet in {uri}: deliver its journal first")
            tags |= {PARENT: parent, ABOVE: above.info.run_id}
        run = client.create_run(experiment, started, tags, run_name=destination.name)
        return str(run.info.run_id)


def runs(uri: str, experiment: str | None = None) -> list[dict[str, Any]]:
    """All runs of an experiment, or of all, newest first: run_id, experiment_id, name, identity and parent (identities;
    None for runs of others), status, start (ms since the epoch), params, metrics (latest values), tags.

    Raises TrackingError where the store or the experiment cannot be read.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise TrackingError(f"there is no MLflow database at {path}: train first, or set MLFLOW_TRACKING_URI")
    try:
        client = connect(uri)
        names = {e.name: e.experiment_id for e in _pages(client.search_experiments)}
        if experiment is not None and experiment not in names:
            raise TrackingError(f"no experiment {experiment!r} in {uri}{nearest(experiment, sorted(names))}")
        wanted = list(names.values()) if experiment is None else [names[experiment]]
        search = functools.partial(client.search_runs, wanted, order_by=["attributes.start_time DESC"])
        found = list(_pages(search))
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"cannot read the MLflow store {uri}: {sentence(error)}") from error
    return [
        {
            "run_id": run.info.run_id,
            "experiment_id": run.info.experiment_id,
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


def send(uri: str, run_id: str, directory: Path, lines: list[bytes], reject: Callable[[object, str], None]) -> None:
    """Lines of the journal in `directory` to a run. `reject(item, reason)` hears of what is wrong for good.

    Raises whatever MLflow raises where the store or the run is at fault: all lines wait.
    """
    client = connect(uri)
    from mlflow.entities import Metric, Param, RunTag

    def log_batch(items: list[Any]) -> None:
        metrics = [item for item in items if isinstance(item, Metric)]
        params = [item for item in items if isinstance(item, Param)]
        tags = {item.key: item for item in items if isinstance(item, RunTag)}  # the last value counts
        client.log_batch(run_id, metrics, params, list(tags.values()))  # splits by MLflow's limits itself

    def act(items: list[Any]) -> None:
        (record,) = items
        if "dataset" in record:
            client.log_inputs(run_id, [_dataset(**record["dataset"])])  # one of this name and digest it has once
        elif "artifact" in record:
            client.log_artifact(run_id, str(directory / record["artifact"]), record["folder"] or None)
        elif record["status"] == "RUNNING":
            client.update_run(run_id, "RUNNING")
        else:
            client.set_terminated(run_id, record["status"], end_time=record["t"])
            _delete_doubles(client, run_id)

    def give(write: Callable[[list[Any]], None], items: list[Any]) -> None:
        """Halve what the store refuses until only the item at fault is left out, and written down."""
        for _ in range(2 if len(items) == 1 else 1):
            try:
                write(items)
                return
            except Exception as error:
                if getattr(error, "error_code", "") in TRANSIENT:
                    raise
                reason = sentence(error)
                # Is it the item, or is it the store or the run? Those refuse this tag too: raise, all waits.
                client.set_tag(run_id, TROUBLE, reason)
        if len(items) == 1:
            reject(items[0], reason)
        else:
            give(write, items[: len(items) // 2])
            give(write, items[len(items) // 2 :])

    batch: list[Any] = []
    for line in lines:
        try:
            record = parse(line) or {}
            items = _entities(record)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reject(line, f"not a line of this journal: {error!r}")
            continue
        batch += items
        if not items:  # data, an artifact or a status, in its place among the points
            give(log_batch, batch)
            batch = []
            give(act, [record])
    give(log_batch, batch)


def _entities(record: dict[str, Any]) -> list[Metric | Param | RunTag]:
    """What MLflow calls the values of a line; empty for data, an artifact or a status."""
    from mlflow.entities import Metric, Param, RunTag

    if "metrics" in record:
        return [Metric(_name(n), float(v), record["t"], record["step"]) for n, v in record["metrics"].items()]
    if "params" in record:
        return [Param(_name(n), v[:6000]) for n, v in record["params"].items()]
    if "tags" in record:
        return [RunTag(_name(n), v[:5000]) for n, v in record["tags"].items()]
    if record.keys() & {"dataset", "artifact", "status"}:
        return []
    raise KeyError("it holds nothing that is known")


def _dataset(name: str, digest: str, source: str, profile: dict[str, Any]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    told = json.dumps({"uri": source})
    where = "local" if "://" not in source else source.partition("://")[0]
    dataset = Dataset(name[:500], digest[:36], where, told, profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _name(name: str) -> str:
    """A name that MLflow takes: letters of any alphabet, digits and `_-./: `, as a relative path."""
    parts = re.sub(r"[^\w.\-/: ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250] or "_"


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


def _delete_doubles(client: MlflowClient, run_id: str) -> None:
    """Delete the empty runs of this run's identity: a server that is asked too much makes a run after all when the
    call has long counted as failed, and was made again. Their children become this run's."""
    run = client.get_run(run_id)
    query = f"tags.`{IDENTITY}` = '{run.data.tags.get(IDENTITY)}'"
    for other in client.search_runs([run.info.experiment_id], query):
        if other.info.run_id != run_id and not other.data.metrics and not other.data.params:
            below = f"tags.`{ABOVE}` = '{other.info.run_id}'"
            for child in list(_pages(functools.partial(client.search_runs, [run.info.experiment_id], below))):
                client.set_tag(child.info.run_id, ABOVE, run_id)
            client.delete_run(other.info.run_id)


def _experiment_id(client: MlflowClient, uri: str, name: str, artifacts: Path | None) -> str:
    artifacts = artifacts.resolve() if artifacts else artifacts_beside(uri)
    for _ in range(2):  # on a server others may make it between our look and our try
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                raise TrackingError(f"the experiment {name!r} in {uri} is deleted: restore it or take another name")
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifacts.as_uri() if artifacts else None))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
    raise TrackingError(f"the experiment {name!r} in {uri} comes and goes")


@functools.lru_cache
def connect(uri: str) -> MlflowClient:
    """A client whose database has its tables. Importing mlflow takes a second: only here, in the thread."""
    check_address(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name, level in {"mlflow": "WARNING", "alembic": "WARNING", "urllib3.connectionpool": "ERROR"}.items():
        logging.getLogger(name).setLevel(level)
    with store_lock(uri):
        return MlflowClient(tracking_uri=uri)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return str(os.getuid())


def sentence(error: BaseException) -> str:
    """What an error says, on one line of bounded length."""
    first = str(error).strip().partition("\n")[0]
    if len(first) > 400:  # an HTTP client's error opens with where, and closes with why
        first = f"{first[:200]} … {first[-200:]}"
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
