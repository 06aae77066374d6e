"""Promise 7: a tracking server that is down costs no step and loses no metric."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from infra import tracking
from infra.journal import JOURNAL, Journal, points
from infra.store import IDENTITY, TROUBLE, Destination, connect, runs
from infra.tracking import Delivery, Tracker, sync
from pipeline.benchmarks.servers import mlflow_server

Start = Callable[..., subprocess.Popen[bytes]]  # of a fixture
SOON = 0.02  # seconds between deliveries, so that tests meet the thread at work


def destination(uri: str, identity: str = "run-1", parent: str | None = None) -> Destination:
    return Destination(uri, "experiment", f"name of {identity}", identity, parent)


def history(uri: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    rows = connect(uri).get_metric_history(str(run_id), name)
    return sorted((row.step, row.value) for row in rows)


def curve(start: int, stop: int) -> list[tuple[int, float]]:
    return [(step, step / 7) for step in range(start, stop)]


def journal_curve(journal: Journal, start: int, stop: int) -> None:
    for step, value in curve(start, stop):
        journal.metrics(step, {"loss": value})


def rejected(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / tracking.REJECTED).read_text().splitlines()]


def test_a_full_disk_neither_raises_nor_tears_the_journal(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(fd: int, data: bytes) -> int:
        return os_write(fd, data[: len(data) // 2])

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    os_write = os.write
    tracker = Tracker(tmp_path, destination(uri), ship_every=60)
    for step, write in enumerate((os_write, half, full, os_write)):
        monkeypatch.setattr(os, "write", write)
        tracker.metrics(step, {"loss": 1.0})
    assert [step for step, _ in points(tmp_path)] == [0, 3]
    assert "points were lost" in str(tracker.close("FINISHED", timeout=9).error)


def test_importing_the_module_imports_no_mlflow(start_child: Start) -> None:
    child = start_child("import sys, infra.tracking; sys.exit('mlflow' in sys.modules)")
    assert child.wait(timeout=30) == 0


def test_a_killed_and_resumed_run_is_one_curve_without_doubled_points(
    tmp_path: Path, uri: str, start_child: Start
) -> None:
    to = destination(uri)
    code = (
        "import sys, time; from pathlib import Path; from infra.tracking import Destination, Tracker\n"
        "tracker = Tracker(Path(sys.argv[1]), Destination(**eval(sys.argv[2])), 0.02)\n"
        "step = 0\n"
        "while True: tracker.metrics(step, {'loss': step / 7}); step += 1; time.sleep(0.002)"
    )
    child = start_child(code, tmp_path, asdict(to))
    shipped = tmp_path / tracking.SHIPPED
    deadline = time.monotonic() + 30
    while not shipped.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert shipped.exists(), child.stderr and child.stderr.read()
    reached = max(step for step, _ in points(tmp_path))

    tracker = Tracker(tmp_path, to, SOON)  # from a checkpoint 20 steps before the end
    for step, value in curve(reached - 20, reached + 20):
        tracker.metrics(step, {"loss": value})
    delivery = tracker.close("FINISHED")
    assert (delivery.pending, delivery.error, delivery.rejected) == (0, None, 0)
    expected = curve(0, reached + 20)
    assert [(step, values["loss"]) for step, values in points(tmp_path)] == expected
    assert history(uri, delivery.run_id, "loss") == expected

    shipped.unlink()  # as if killed between a delivery and the note of it, for every chunk
    again = sync(tmp_path)
    assert again == delivery
    assert history(uri, delivery.run_id, "loss") == expected
    (run,) = runs(uri, "experiment")
    assert run["status"] == "FINISHED"


def run_while_the_server_is_down(directory: Path, uri: str) -> None:
    tracker = Tracker(directory, destination(uri), SOON)
    tracker.params({"lr": 1e-3})
    begin = time.perf_counter()
    for step, value in curve(0, 1000):
        tracker.metrics(step, {"loss": value, "nan": math.nan, "inf": -math.inf})
    assert time.perf_counter() - begin < 10
    begin = time.perf_counter()
    delivery = tracker.close("FINISHED", timeout=0.5)
    assert time.perf_counter() - begin < 10
    assert (delivery.delivered, delivery.pending) == (0, 1003)  # RUNNING, parameters, points, FINISHED
    assert "refused" in str(sync(directory).error)


def assert_all_delivered_once(delivery: Delivery, uri: str) -> None:
    assert (delivery.delivered, delivery.pending, delivery.error, delivery.rejected) == (1003, 0, None, 0)
    assert history(uri, delivery.run_id, "loss") == curve(0, 1000)
    assert [step for step, _ in history(uri, delivery.run_id, "inf")] == list(range(1000))
    nans = history(uri, delivery.run_id, "nan")
    assert len(nans) == 1000
    assert all(math.isnan(value) for _, value in nans)
    (run,) = runs(uri, "experiment")
    assert run["params"] == {"lr": "0.001"}
    assert run["status"] == "FINISHED"


def test_a_server_down_for_the_whole_run_costs_no_step_and_loses_no_metric(
    tmp_path: Path, uri: str, nobody: str
) -> None:
    run_while_the_server_is_down(tmp_path, nobody)
    (tmp_path / tracking.DESTINATION).write_text(json.dumps(asdict(destination(uri))))
    assert_all_delivered_once(sync(tmp_path), uri)


def test_a_server_that_hangs_costs_no_step_and_close_is_bounded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # connects, and never answers
        tracker = Tracker(tmp_path, destination(f"http://127.0.0.1:{mute.getsockname()[1]}"), SOON)
        begin = time.perf_counter()
        journal_curve(tracker.journal, 0, 1000)
        assert time.perf_counter() - begin < 10
        begin = time.perf_counter()
        assert tracker.close("FINISHED", timeout=0.5).pending == 1002
        assert time.perf_counter() - begin < 10


@pytest.mark.slow
def test_a_server_that_comes_back_gets_every_point_exactly_once(tmp_path: Path, uri: str) -> None:
    server = mlflow_server(uri, tmp_path)
    run_while_the_server_is_down(tmp_path, server.url)
    with server:
        delivery = sync(tmp_path)
        assert_all_delivered_once(delivery, server.url)
        (tmp_path / tracking.SHIPPED).unlink()
        assert_all_delivered_once(sync(tmp_path), server.url)
        refuse_one_line(tmp_path, server.url, delivery)


def refuse_one_line(tmp_path: Path, address: str, delivery: Delivery) -> None:
    with open(tmp_path / JOURNAL, "a") as journal:  # refused by the server, not by the client
        journal.write(json.dumps({"t": 1, "step": 5, "metrics": {"x" * 249: 1.0, "late": 2.0}}) + "\n")
        journal.write(json.dumps({"t": 1, "step": -(2**70), "metrics": {"bad": 1.0}}) + "\n")
    artifact = tmp_path / "note.txt"
    artifact.write_text("hello")
    Journal(tmp_path).artifact(artifact)
    after = sync(tmp_path)
    assert (after.pending, after.rejected, after.error) == (0, 1, None)
    assert history(address, delivery.run_id, "late") == [(5, 2.0)]
    assert [file.path for file in connect(address).list_artifacts(str(delivery.run_id))] == ["note.txt"]


def test_one_bad_line_does_not_block_the_lines_after_it(tmp_path: Path, uri: str) -> None:
    tracker = Tracker(tmp_path, destination(uri), ship_every=60)
    tracker.metrics(0, {"loss": 1.0})
    tracker.metrics(2**70, {"too/far": 1.0})  # no store holds this step
    tracker.artifact(tmp_path / "missing.txt")
    with open(tmp_path / JOURNAL, "a") as file:
        file.write('not JSON\n[]\n{"t": 1}\n{"t": 1, "metrics": 5}\n')
    tracker.metrics(1, {"loss": 2.0, "80% [odd] name//λ": 3.0})
    delivery = tracker.close("FINISHED")

    assert (delivery.pending, delivery.error, delivery.rejected) == (0, None, 6)
    assert history(uri, delivery.run_id, "loss") == [(0, 1.0), (1, 2.0)]
    assert history(uri, delivery.run_id, "80_ _odd_ name/λ") == [(1, 3.0)]
    reasons = {entry["item"][:8]: entry["reason"] for entry in rejected(tmp_path)}
    assert "too large" in reasons["<Metric:"]
    assert "not a line" in reasons["not JSON"]
    (run,) = runs(uri, "experiment")
    assert run["status"] == "FINISHED"
    assert "missing.txt" in run["tags"][TROUBLE]


def test_the_journal_is_delivered_in_chunks_with_artifacts_in_their_folder(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CHUNK_BYTES", 300)
    (tmp_path / "plot.txt").write_text("a plot")
    tracker = Tracker(tmp_path, destination(uri), ship_every=60)
    tracker.params({f"p{i}": "x" * 7000 for i in range(120)})  # longer and more than MLflow takes at once
    journal_curve(tracker.journal, 0, 20)
    tracker.artifact(tmp_path / "plot.txt", "plots")
    delivery = tracker.close("FINISHED")
    assert (delivery.delivered, delivery.pending, delivery.rejected) == (24, 0, 0)
    assert history(uri, delivery.run_id, "loss") == curve(0, 20)
    (run,) = runs(uri, "experiment")
    assert len(run["params"]) == 120
    assert [f.path for f in connect(uri).list_artifacts(run["run_id"], "plots")] == ["plots/plot.txt"]
    assert json.loads((tmp_path / JOURNAL).read_text().splitlines()[-2])["artifact"] == "plot.txt"


def test_a_journal_is_delivered_by_one_process_at_a_time(tmp_path: Path, uri: str) -> None:
    with FileLock(tmp_path / tracking.LOCK):
        delivery = Tracker(tmp_path, destination(uri), SOON).close("FINISHED", timeout=0.3)
        assert (delivery.delivered, delivery.pending) == (0, 2)
        assert "another process is delivering" in str(sync(tmp_path).error)
    assert sync(tmp_path).pending == 0


def test_a_parameter_changed_on_resume_becomes_a_tag(tmp_path: Path, uri: str) -> None:
    for lr in (0.1, 0.1, 0.2, 0.2):
        tracker = Tracker(tmp_path, destination(uri), ship_every=60)
        tracker.params({"lr": lr, "seed": 1})
        tracker.tags({"git": "abc"})
        delivery = tracker.close("FINISHED")
    assert (delivery.pending, delivery.rejected) == (0, 0)
    (run,) = runs(uri, "experiment")
    assert run["params"] == {"lr": "0.1", "seed": "1"}
    assert run["tags"]["changed.lr"] == "0.2"
    assert run["tags"]["git"] == "abc"
    assert (tmp_path / JOURNAL).read_text().count("git") == 1


def test_another_store_gets_the_whole_curve(tmp_path: Path, uri: str, empty_store: Path) -> None:
    tracker = Tracker(tmp_path, destination(uri), ship_every=60)
    journal_curve(tracker.journal, 0, 5)
    assert tracker.close("KILLED").pending == 0
    other = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    tracker = Tracker(tmp_path, destination(other), ship_every=60)
    journal_curve(tracker.journal, 3, 8)
    assert history(other, tracker.close("FINISHED").run_id, "loss") == curve(0, 8)


DATA = ("mnist", "9e0fe4e332cf9d986fc5b1150f245fc0", "/data/mnist", {"samples": {"train": 5, "val": 2}})


def datasets(uri: str, run_id: str | None) -> list[tuple[str, str, str, str, list[str]]]:
    inputs = connect(uri).get_run(str(run_id)).inputs.dataset_inputs
    return [
        (i.dataset.name, i.dataset.digest, i.dataset.source, i.dataset.profile, [tag.value for tag in i.tags])
        for i in inputs
    ]


def test_data_are_mlflow_datasets_delivered_exactly_once(tmp_path: Path, uri: str) -> None:
    other = ("more", "0" * 32, "s3://bucket/more", {})
    for _ in range(2):  # a resumed run says it again
        tracker = Tracker(tmp_path, destination(uri), ship_every=60)
        tracker.dataset(*DATA)
        tracker.dataset(*other)
        delivery = tracker.close("FINISHED")
    assert (delivery.pending, delivery.error, delivery.rejected) == (0, None, 0)
    (tmp_path / tracking.SHIPPED).unlink()
    assert sync(tmp_path) == delivery
    assert (tmp_path / JOURNAL).read_text().count('"dataset"') == 2
    assert sorted(datasets(uri, delivery.run_id)) == [
        ("mnist", DATA[1], '{"uri": "/data/mnist"}', '{"samples": {"train": 5, "val": 2}}', ["training"]),
        ("more", "0" * 32, '{"uri": "s3://bucket/more"}', "{}", ["training"]),
    ]
    assert TROUBLE not in runs(uri)[0]["tags"]


def test_runs_of_one_sweep_share_their_data(tmp_path: Path, uri: str) -> None:
    trackers = [Tracker(tmp_path / str(i), destination(uri, f"run-{i}"), ship_every=60) for i in range(6)]
    for tracker in trackers:
        tracker.dataset(*DATA)
    with ThreadPoolExecutor() as pool:
        deliveries = list(pool.map(lambda tracker: tracker.close("FINISHED", timeout=120), trackers))
    assert [(d.pending, d.error, d.rejected) for d in deliveries] == [(0, None, 0)] * 6
    assert [[told[:2] for told in datasets(uri, d.run_id)] for d in deliveries] == [[DATA[:2]]] * 6
    assert [run["tags"].get(TROUBLE) for run in runs(uri)] == [None] * 6


def test_a_run_deleted_in_mlflow_stays_deleted_and_its_journal_waits(tmp_path: Path, uri: str) -> None:
    tracker = Tracker(tmp_path, destination(uri), ship_every=60)
    run_id = str(tracker.close("KILLED").run_id)
    connect(uri).delete_run(run_id)
    journal_curve(Journal(tmp_path), 0, 5)
    delivery = sync(tmp_path)
    assert (delivery.pending, delivery.rejected) == (5, 0)
    assert "deleted" in str(delivery.error)
    connect(uri).restore_run(run_id)
    assert sync(tmp_path).pending == 0
    assert history(uri, run_id, "loss") == curve(0, 5)


def test_a_child_waits_for_its_parent_and_hangs_under_it(tmp_path: Path, uri: str) -> None:
    child = Tracker(tmp_path / "child", destination(uri, "child", parent="sweep"), ship_every=60)
    journal_curve(child.journal, 0, 3)
    waiting = child.close("FINISHED", timeout=0.5)
    assert waiting.pending == 5
    assert "'sweep'" in str(waiting.error)

    parent = Tracker(tmp_path / "parent", destination(uri, "sweep"), ship_every=60).close("FINISHED")
    assert sync(tmp_path / "child").pending == 0
    by_identity = {run["identity"]: run for run in runs(uri, "experiment")}
    assert by_identity.keys() == {"child", "sweep"}
    assert by_identity["child"]["parent"] == "sweep"
    assert by_identity["sweep"]["parent"] is None
    assert by_identity["child"]["tags"]["mlflow.parentRunId"] == parent.run_id
    assert by_identity["child"]["name"] == "name of child"
    assert by_identity["child"]["metrics"] == {"loss": 2 / 7}
    first = json.loads((tmp_path / "child" / JOURNAL).read_text().splitlines()[0])
    assert by_identity["child"]["start"] == first["t"]  # not the time of the delivery


def test_a_run_that_a_server_made_twice_is_there_once_at_the_end(tmp_path: Path, uri: str) -> None:
    tracker = Tracker(tmp_path, destination(uri), ship_every=60)
    journal_curve(tracker.journal, 0, 5)
    run_id = str(sync(tmp_path).run_id)
    client = connect(uri)
    experiment = client.get_run(run_id).info.experiment_id
    late = client.create_run(experiment, 1, {IDENTITY: "run-1"}).info.run_id  # of a call that had timed out
    full = client.create_run(experiment, 2, {IDENTITY: "run-1"}).info.run_id
    client.log_metric(full, "loss", 1.0)
    other = client.create_run(experiment, 3, {IDENTITY: "run-2"}).info.run_id
    delivery = tracker.close("FINISHED")
    assert (delivery.run_id, delivery.pending, delivery.rejected) == (run_id, 0, 0)
    assert {run["run_id"] for run in runs(uri)} == {run_id, full, other}, "what holds something is kept"
    assert client.get_run(late).info.lifecycle_stage == "deleted"


def test_the_children_of_a_run_that_a_server_made_twice_stay_its_children(tmp_path: Path, uri: str) -> None:
    parent = Tracker(tmp_path / "parent", destination(uri, "sweep"), ship_every=60)
    run_id = str(sync(tmp_path / "parent").run_id)
    client = connect(uri)
    experiment = client.get_run(run_id).info.experiment_id
    late = client.create_run(experiment, 1, {IDENTITY: "sweep"}).info.run_id  # the older one, which others find
    first = Tracker(tmp_path / "first", destination(uri, "first", parent="sweep"), ship_every=60).close("FINISHED")
    assert client.get_run(first.run_id).data.tags["mlflow.parentRunId"] == late
    parent.close("FINISHED")
    assert client.get_run(late).info.lifecycle_stage == "deleted"
    second = Tracker(tmp_path / "second", destination(uri, "second", parent="sweep"), ship_every=60).close("FINISHED")
    for child in (first, second):
        assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == run_id


def test_two_trackers_of_one_identity_find_one_run(tmp_path: Path, uri: str) -> None:
    trackers = [Tracker(tmp_path / str(i), destination(uri), SOON) for i in range(3)]
    with ThreadPoolExecutor() as pool:
        deliveries = list(pool.map(lambda tracker: tracker.close("FINISHED"), trackers))
    assert len({delivery.run_id for delivery in deliveries}) == 1
    assert len(runs(uri)) == 1
