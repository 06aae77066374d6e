"""A sweep on a Ray cluster of two nodes, of which one is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.journal import JOURNAL
from infra.preemption import REQUEUE
from jobs.tuning.ledger import Ledger
from jobs.tuning.trial import NODE
from tests.jobs.sweeps import (
    KEEPING,
    SAMPLE,
    STEPS,
    SWEEP,
    Cluster,
    checkpoints_of,
    finished,
    one_honest_record,
    tags_of,
    until,
)

pytestmark = pytest.mark.cluster
Start = Callable[..., "subprocess.Popen[str]"]


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
