"""A sweep on a Ray cluster of two nodes, of which one is lost or drained."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.journal import JOURNAL
from infra.preemption import REQUEUE
from jobs.tuning.drain import NODE
from jobs.tuning.ledger import Ledger
from tests.jobs.sweeps import (
    KEEPING,
    SAMPLE,
    STEPS,
    SWEEP,
    Cluster,
    Node,
    checkpoints_of,
    finished,
    one_honest_record,
    points_of,
    tags_of,
    until,
)

pytestmark = pytest.mark.cluster
Start = Callable[..., "subprocess.Popen[str]"]
LONG = ["--train.steps", "3000", "--train.batch", "20", "--train.validate-every", "0", "--train.log-every", "5"]


def test_a_lost_node(sweep_digits: Start, cluster: Cluster, tmp_path: Path) -> None:
    """Its trials go on at the other one, from their checkpoints; what had ended is left alone."""
    sweep, head, other = tmp_path / SWEEP, cluster.head.id, cluster.other.id
    driver = sweep_digits(*STEPS, *KEEPING, *SAMPLE, "--trials", "3", "--ray", cluster.address)

    def at_work_there() -> list[Path]:
        entries = Ledger(sweep).entries if sweep.exists() else []
        places = [sweep / entry.name for entry in entries if Ledger(sweep).outcome(entry) is None]
        return [place for place in places if tags_of(place, NODE) == [other] and len(checkpoints_of(place)) >= 2]

    until(lambda: bool(at_work_there()), driver)
    cluster.other.kill()
    ended = {place: (place / JOURNAL).read_bytes() for place in sweep.glob("0*") if (place / "outcome.json").exists()}
    (cut,) = at_work_there()
    before = checkpoints_of(cut)
    result = finished(driver)
    assert [trial["error"] for trial in result["trials"]] == [""] * 3
    assert tags_of(cut, NODE) == [other, head]
    assert before.items() <= checkpoints_of(cut).items(), "it was begun anew from step 0"
    assert {place: (place / JOURNAL).read_bytes() for place in ended} == ended
    children = one_honest_record(tmp_path, 3)
    assert next(run for run in children if run["name"] == cut.name)["tags"][NODE] == head
    assert any(tags_of(place, NODE) == [head] for place in sweep.glob("0*")), "one node has done it all"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_drained_node(sweep_digits: Start, cluster: Cluster, tmp_path: Path, ranks: int) -> None:
    """Its trial saves in the midst of its steps, and goes on elsewhere: on the other node, or, with a rank on each,
    once there is a third. That is no failure: none is allowed here."""
    sweep, head, other = tmp_path / SWEEP, cluster.head.id, cluster.other.id
    options = ["--train.checkpoint-every", "100000", "--retries", "0", "--ranks", str(ranks), "--trials", "2"]
    driver = sweep_digits(*LONG, *SAMPLE, *options, "--ray", cluster.address)

    def at_work_there() -> list[Path]:
        places = [place for place in sweep.glob("0*") if not (place / "outcome.json").exists()]
        there = {other} if ranks == 1 else {other, head}
        return [place for place in places if {*tags_of(place, NODE)} & there and len(points_of(place)) > 5]

    until(lambda: bool(at_work_there()), driver)
    (cut,) = at_work_there()
    cluster.drain()
    until(lambda: bool(checkpoints_of(cut)), driver)
    (saved,) = checkpoints_of(cut)
    if ranks == 1:
        until(lambda: tags_of(cut, NODE) == [other, head], driver)
    cluster.other.kill()
    third = Node(cluster.place, "third", "--address", cluster.address)
    try:
        result = finished(driver)
    finally:
        third.kill()
    assert [trial["error"] for trial in result["trials"]] == [""] * 2
    assert saved in checkpoints_of(cut), "it was begun anew from step 0"
    assert 0 < int(saved.split("_")[1]) < 3000, "it was saved at its end"
    one_honest_record(tmp_path, 2)


def test_a_cluster_that_nobody_has_named_is_left_alone(
    sweep_digits: Start, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --ray a sweep starts Ray itself, also where Ray would go to a cluster."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    finished(sweep_digits(*STEPS, "--grid", "seed=0"))
    (trial,) = (tmp_path / SWEEP).glob("0*")
    (node,) = tags_of(trial, NODE)
    assert node not in (cluster.head.id, cluster.other.id)


def test_a_lost_head(sweep_digits: Start, cluster: Cluster, tmp_path: Path) -> None:
    """The driver says so, and the sweep goes on elsewhere."""
    sweep = tmp_path / SWEEP
    driver = sweep_digits(*STEPS, *KEEPING, *SAMPLE, "--trials", "3", "--ray", cluster.address)
    until(lambda: any(len(checkpoints_of(place)) >= 2 for place in sweep.glob("0*")), driver)
    cluster.head.kill()
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == REQUEUE, said
    assert "pairstream sweep digits --resume --out runs/sw" in said.splitlines()[-1]
    assert "Traceback" not in said
    before = {place: checkpoints_of(place) for place in sweep.glob("0*")}
    cluster.other.kill()  # which has lost its cluster
    assert len(finished(sweep_digits("--resume"))["trials"]) == 3
    for place, known in before.items():
        assert known.items() <= checkpoints_of(place).items(), "it was begun anew from step 0"
    one_honest_record(tmp_path, 3)
