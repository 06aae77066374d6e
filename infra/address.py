"""The address of a tracking store: what it may be, how it reads from anywhere, and a lock for what is done once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from infra.errors import UserError

RUNS = Path("runs")  # of the working directory: runs and, where no server is named, their record
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
LOCK_SECONDS = 60


class TrackingError(UserError):
    """What was wrong with the tracking store, where, and what to do."""


def default_uri(root: Path = RUNS) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file ROOT/mlflow.db."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def absolute(uri: str) -> str:
    """The URI as it reads from any working directory."""
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for another store."""
    path = uri.partition(":///")[2]
    return Path(path.partition("?")[0]).absolute() if _kind(uri) == "sqlite" and path else None


def artifacts_beside(uri: str) -> Path | None:
    """Where the files of runs go: beside the SQLite file, in runs/ for another database; a server decides by itself."""
    if _kind(uri) in ("http", "https"):
        return None
    path = sqlite_path(uri)  # MLflow's own default is the working directory's ./mlruns
    return ((path.parent if path else RUNS) / "artifacts").resolve()


def check_address(uri: str) -> None:
    """Raise TrackingError for a URI that can never hold runs."""
    hint = "use http(s)://HOST:PORT of an MLflow server, or sqlite:///PATH"
    if _kind(uri) not in SCHEMES:
        raise TrackingError(f"the tracking URI {uri!r} has a scheme that cannot hold runs; {hint}")
    if sqlite_path(uri) is None and (_kind(uri) == "sqlite" or not urlsplit(uri).hostname):
        what = "file" if _kind(uri) == "sqlite" else "host"
        raise TrackingError(f"the tracking URI {uri!r} names no {what}; {hint}")


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Held while a database gets its tables (clients of a fresh one race there), or a run its one row.

    A server makes its tables before it answers: there it holds nothing.
    """
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock"), timeout=LOCK_SECONDS):
            with closing(sqlite3.connect(path, timeout=20)) as database:
                database.execute("BEGIN IMMEDIATE")  # what cannot be used fails here; MLflow would try for 100 s
            yield
    elif _kind(uri) == "postgresql":
        from sqlalchemy import create_engine, text  # MLflow's own way to databases
        from sqlalchemy.pool import NullPool

        with create_engine(uri, poolclass=NullPool).connect() as session:
            session.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
            session.execute(text("SELECT pg_advisory_lock(hashtext('pairstream'))"))  # given back when it is closed
            yield
    else:
        yield


def _kind(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[0]
