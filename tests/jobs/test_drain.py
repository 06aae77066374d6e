"""A node that Ray drains, without a cluster: who hears of it, and what a training in another thread makes of it. With
one: tests/jobs/test_sweep_cluster.py and test_submit_ray.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.preemption import StopRequest
from jobs.submitting.ray import ending_on_drain
from jobs.tuning import drain
from jobs.tuning.stall import WHY
from pipeline.recipes import recipe
from pipeline.train import train
from tests.jobs.sweeps import points_of


class Head:
    """What Ray's head answers, one look after the other; the last answer from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: dict[str, int] | Exception) -> None:
        self.answers, self.looks = list(answers), 0
        self.looked = threading.Event()
        monkeypatch.setattr(drain, "EVERY", 0.01)
        monkeypatch.setattr("ray._private.state.state", self)
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "mine"))

    def get_draining_nodes(self) -> dict[str, int]:
        answer = self.answers[min(self.looks, len(self.answers) - 1)]
        self.looks += 1
        if self.looks > len(self.answers):
            self.looked.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_only_who_is_on_the_node_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()
    times: list[int] = []

    def hear() -> bool:
        times.append(1)
        if len(times) == 3:
            heard.set()
        return heard.is_set()

    gone = RuntimeError("no head answers")
    head = Head(monkeypatch, {}, {"other": 0}, gone)
    with drain.on_drain(hear):
        assert head.looked.wait(20)
    assert not times
    head = Head(monkeypatch, {}, gone, {"other": 0, "mine": 0})
    with drain.on_drain(hear):
        assert heard.wait(20), "one look without an answer was the last"
        time.sleep(0.1)
    assert (len(times), head.looks) == (3, 5), "it goes on when it was heard"


def test_a_training_in_a_thread_saves_where_it_is(
    digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no signal reaches it. It goes on as any other."""
    answers: list[dict[str, int]] = [{}]
    Head(monkeypatch, *answers).answers = answers
    run = recipe("digits")
    run = replace(
        run,
        data=str(digits_dir),
        train=replace(run.train, steps=400, batch=20, checkpoint_every=0, validate_every=0, log_every=5),
        tracking=replace(run.tracking, enabled=False),
    )

    def on_step(step: int, loss: float) -> None:
        if step == 20:
            answers.append({"mine": 0})

    results: list[Any] = []

    def trial() -> None:
        with drain.stopping_on_drain(tmp_path):
            results.append(train(run, tmp_path, resume=True, on_step=on_step))

    thread = threading.Thread(target=trial)
    thread.start()
    thread.join(120)
    (result,) = results
    assert result.status == "preempted"
    assert 20 <= result.step < 400
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == [f"step_{result.step}"]
    assert (tmp_path / WHY).read_text() == "its node is drained\n"
    assert StopRequest._entered == []
    assert train(run, tmp_path, resume=True).status == "finished"
    assert points_of(tmp_path) == list(range(5, 401, 5))


@pytest.mark.parametrize("refuses", [False, True])
def test_a_job_is_told_once_and_keeps_its_signals(
    refuses: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where Ray does not let it in: the job runs all the same, and says what it does not hear."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        if refuses:
            raise RuntimeError("Version mismatch: Python 3.11.9 there\nand more")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    head = Head(monkeypatch, {"mine": 0})
    try:
        with ending_on_drain():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    if refuses:
        assert said == "this job is not told when its node is drained: Version mismatch: Python 3.11.9 there\n"
        assert (len(told), head.looks) == (1, 0)
    else:
        assert said == ""
        assert (len(told), head.looks) == (2, 1)
