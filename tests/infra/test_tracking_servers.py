"""MLflow's own server on SQLite and on PostgreSQL: slow, killed in the midst of it, asked by many at once."""

from __future__ import annotations

import random
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from infra import tracking
from infra.store import TROUBLE, connect, prepare_store, runs
from infra.tracking import Delivery, Tracker, sync
from pipeline.benchmarks.servers import mlflow_server, slow_way
from tests.infra.servers import postgres
from tests.infra.test_tracking import DATA, SOON, curve, datasets, destination, history, journal_curve

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[bytes]]
PROCESSES, POINTS = 4, 100
PAGE = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=experiment"
COMPOSE = Path(tracking.__file__).parent / "mlflow" / "compose.yaml"
SHIP = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from infra.tracking import Destination, Tracker
folder, destination, first, count = Path(sys.argv[1]), eval(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
trackers = []
for number in range(first, first + count):
    to = Destination(**destination | {{"identity": f"run-{{number}}", "name": str(number)}})
    trackers.append(Tracker(folder / str(number), to))
    trackers[-1].dataset(*{DATA!r})
for step in range({POINTS}):
    for tracker in trackers:
        tracker.metrics(step, {{"loss": step / 7}})
with ThreadPoolExecutor(count) as pool:
    list(pool.map(lambda tracker: tracker.close("FINISHED", timeout=240), trackers))
assert "torch" not in sys.modules
"""


def delivered(directory: Path) -> Delivery:
    """What there is to deliver, as often as it takes: a server that has just come back may be too busy to answer."""
    deadline = time.monotonic() + 300
    while (delivery := sync(directory)).error and time.monotonic() < deadline:
        time.sleep(1)
    return delivery


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database behind a server."""
    if request.param == "sqlite":
        yield request.getfixturevalue("uri")
    else:
        with postgres() as uri:
            yield uri


def test_six_processes_race_on_a_fresh_postgresql(tmp_path: Path, start_child: Start) -> None:
    """MLflow's clients would make its tables all at once: five of six crashed."""
    code = (
        "import sys; from pathlib import Path\n"
        "from infra.store import prepare_store; from infra.tracking import Destination, Tracker\n"
        "to = Destination(**eval(sys.argv[2]))\n"
        "prepare_store(to.uri, to.experiment, Path(sys.argv[1]) / 'artifacts')\n"
        "tracker = Tracker(Path(sys.argv[1]) / sys.argv[3], to, 60)\n"
        "tracker.metrics(1, {'loss': float(sys.argv[3])})\n"
        "left = tracker.close('FINISHED', timeout=120)\n"
        "assert not left.pending and not left.rejected, left"
    )
    with postgres() as uri:
        children = [start_child(code, tmp_path, asdict(destination(uri)), number) for number in range(6)]
        errors = [child.communicate(timeout=300)[1].decode() for child in children]
        assert errors == [""] * 6
        (run,) = runs(uri, "experiment")  # of one identity: one run
        assert sorted(value for _, value in history(uri, run["run_id"], "loss")) == [0, 1, 2, 3, 4, 5]
        experiment = connect(uri).get_experiment_by_name("experiment")
        assert experiment
        assert experiment.artifact_location == (tmp_path / "artifacts").as_uri()


def test_a_server_killed_in_the_midst_gets_every_point_exactly_once(tmp_path: Path, store: str) -> None:
    server = mlflow_server(store, tmp_path)
    with server:
        prepare_store(server.url, "experiment", None)
        tracker = Tracker(tmp_path / "run", destination(server.url), SOON)
        stopped, step, meanwhile = threading.Event(), 0, []

        def come_and_go() -> None:
            for _ in range(2):
                time.sleep(random.Random(step).uniform(1, 3))
                server.end()
                before = step
                time.sleep(2)
                meanwhile.append(step - before)
                server.start()
            stopped.set()

        breaking = threading.Thread(target=come_and_go)
        breaking.start()
        while not stopped.is_set():
            tracker.metrics(step, {"loss": step / 7})
            step += 1
            time.sleep(0.01)
        breaking.join()
        assert min(meanwhile) > 10, "steps waited for the server"
        tracker.close("FINISHED")
        delivery = delivered(tmp_path / "run")
        assert (delivery.pending, delivery.error, delivery.rejected) == (0, None, 0)
        assert history(server.url, delivery.run_id, "loss") == curve(0, step)
        (run,) = runs(server.url, "experiment")
        assert run["status"] == "FINISHED"
        assert TROUBLE not in run["tags"]


def test_a_slow_server_costs_no_step_and_gets_every_point_exactly_once(tmp_path: Path, uri: str) -> None:
    (tmp_path / "proxy").mkdir()
    with mlflow_server(uri, tmp_path) as server, slow_way(server.url, 2.0, tmp_path / "proxy") as slow:
        tracker = Tracker(tmp_path / "run", destination(slow.url), SOON)
        tracker.dataset(*DATA)
        begin = time.perf_counter()
        journal_curve(tracker.journal, 0, 1000)
        assert time.perf_counter() - begin < 10
        begin = time.perf_counter()
        assert tracker.close("FINISHED", timeout=1).pending > 0
        assert time.perf_counter() - begin < 10
        tracker._thread.join()  # as the next run, or a later --sync, finds it: without a process that delivers
        delivery = delivered(tmp_path / "run")
        assert (delivery.pending, delivery.error, delivery.rejected) == (0, None, 0)
        assert history(server.url, delivery.run_id, "loss") == curve(0, 1000)
        assert [told[:2] for told in datasets(server.url, delivery.run_id)] == [DATA[:2]]


def look(page: str, done: threading.Event) -> None:
    """Ask for a page until all is done. Raises where no answer comes in twenty seconds."""
    while not done.wait(0.5):
        urllib.request.urlopen(page, timeout=20).close()


def test_many_shippers_lose_and_double_nothing(tmp_path: Path, store: str, start_child: Start) -> None:
    """64 of them on PostgreSQL, with the pool of connections that our compose file gives a worker; 16 on SQLite.

    With MLflow's default of 15 connections calls wait for each other, and for half a minute or more nobody is answered.
    """
    shippers = 64 if store.startswith("postgresql") else 16
    ours = yaml.safe_load(COMPOSE.read_text())["services"]["server"]["environment"]
    with mlflow_server(store, tmp_path, ours if store.startswith("postgresql") else None) as server:
        prepare_store(server.url, "experiment", None)
        to, each = asdict(destination(server.url)), shippers // PROCESSES
        children = [start_child(SHIP, tmp_path / "runs", to, first, each) for first in range(0, shippers, each)]
        with ThreadPoolExecutor(1) as pool:  # somebody who looks at a page meanwhile
            done = threading.Event()
            looking = pool.submit(look, f"{server.url}{PAGE}", done)
            try:
                errors = [child.communicate(timeout=500)[1].decode() for child in children]
            finally:
                done.set()
            looking.result()
        assert [child.returncode for child in children] == [0] * PROCESSES, errors
        deadline = time.monotonic() + 300  # a server that is asked too much does not answer in time: ask again, later
        while (waiting := tracking.undelivered(tmp_path / "runs")) and time.monotonic() < deadline:
            for directory in waiting:
                sync(directory)
        told = runs(server.url, "experiment")
        assert sorted(run["name"] for run in told) == sorted(map(str, range(shippers)))
        for run in told:
            assert run["status"] == "FINISHED"
            assert history(server.url, run["run_id"], "loss") == curve(0, POINTS)
            assert [given[:2] for given in datasets(server.url, run["run_id"])] == [DATA[:2]]
        left = [tracking.progress(tmp_path / "runs" / str(number)) for number in range(shippers)]
        assert [(delivery.pending, delivery.rejected) for delivery in left] == [(0, 0)] * shippers
