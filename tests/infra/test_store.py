"""A store that cannot work says so in one sentence; one that is merely down is waited for."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from infra import store
from infra.store import Destination, TrackingError
from infra.tracking import Tracker, sync


def test_four_processes_prepare_one_fresh_store(
    tmp_path: Path, start_child: Callable[..., subprocess.Popen[bytes]]
) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = "import sys; from infra.store import prepare_store; prepare_store(sys.argv[1], 'experiment', None)"
    children = [start_child(code, uri) for _ in range(4)]
    errors = [child.communicate(timeout=60)[1].decode() for child in children]
    assert errors == [""] * 4  # no crash, and none of MLflow's chatter
    assert [child.returncode for child in children] == [0] * 4
    experiment = store.connect(uri).get_experiment_by_name("experiment")
    assert experiment
    assert experiment.artifact_location.startswith(f"file://{tmp_path}/new/")
    assert store.runs(uri, "experiment") == []


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("htp://localhost:5000", "scheme"),
        ("file:///tmp/mlruns", "scheme"),
        ("mlflow.db", "scheme"),
        ("", "scheme"),
        ("http://", "names no host"),
        ("sqlite://", "names no file"),
        ("sqlite:///{tmp}/file/mlflow.db", "cannot use"),
        ("sqlite:///{tmp}/file", "not a database"),
    ],
)
def test_a_uri_that_can_never_work_is_one_clear_sentence(uri: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database" * 100)
    uri = uri.format(tmp=tmp_path)
    with pytest.raises(TrackingError, match=sentence) as caught:
        store.prepare_store(uri, "experiment", None)
    message = str(caught.value)
    assert uri in message
    assert "sqlite:///PATH" in message
    assert "\n" not in message
    tracker = Tracker(tmp_path / "run", Destination(uri, "experiment", "name", "identity"), ship_every=60)
    assert tracker.close("FINISHED", timeout=0.1).pending == 2  # still no step lost


def test_a_server_that_is_merely_down_is_no_error_of_the_uri(nobody: str) -> None:
    store.prepare_store(nobody, "experiment", None)


def test_the_default_store_is_a_database_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store.default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert store.default_uri(tmp_path) == "http://host:5000"


def test_review_says_what_it_cannot_find(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match="no MLflow database"):
        store.runs(f"sqlite:///{tmp_path}/none.db", None)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(TrackingError, match="did you mean 'Default'"):
        store.runs(uri, "defalt")
    assert "no directory of a tracked run" in str(sync(tmp_path / "nowhere").error)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_of_an_older_mlflow_is_a_sentence_that_names_the_way_out(uri: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(TrackingError, match=r"out-of-date database schema .* 'mlflow db upgrade"):
        store.prepare_store(uri, "experiment", None)
