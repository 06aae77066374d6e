"""What the tests of jobs share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.reproduce import archive
from tests.jobs.clusters import Place
from tests.jobs.sweeps import Cluster, started


@pytest.fixture
def sweep_digits(tmp_path: Path, digits_dir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `pairstream sweep digits OPTIONS` in the test's directory."""
    processes = []

    def start(*options: str) -> subprocess.Popen[str]:
        processes.append(started(tmp_path, digits_dir, *options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def digits_place(tmp_path: Path, digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the digits as data/digits, no other data, and a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits_dir)
    archive._finished.cache_clear()
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes of Ray, a core each."""
    both = Cluster()
    yield both
    both.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A working directory whose schedulers are stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAIRSTREAM_SITE", raising=False)
    here = Place(tmp_path)
    monkeypatch.setenv("PATH", str(here.commands))  # the machine's own scheduler must not be called by mistake
    return here
