"""An empty MLflow store, processes and ports for the tests of the record."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.store import prepare_store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare_store(f"sqlite:///{path}", "Default", None)  # makes the tables: a second, so only once
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'store' / 'mlflow.db')}"


@pytest.fixture
def start_child() -> Callable[..., subprocess.Popen[bytes]]:
    def start(code: str, *args: object) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        environment = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-c", code, *map(str, args)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    return start


@pytest.fixture
def nobody() -> str:
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
