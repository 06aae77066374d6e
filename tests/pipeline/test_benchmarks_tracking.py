"""The benchmark of tracking measures each way to the server, and leaves nothing running."""

from __future__ import annotations

import threading

import pytest

from pipeline.benchmarks import BENCHMARKS, run, tracking


@pytest.mark.slow
def test_every_way_to_the_server_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SLOW", 0.1)
    (case,) = BENCHMARKS["tracking"].cases
    outcome = run("tracking", case, 2, 20, lambda done, total: None)
    ways = {tracking.UP, tracking.LATE, tracking.DOWN}
    assert outcome.reference == tracking.JOURNAL
    assert outcome.ratios.keys() == ways
    for name in ways | {tracking.JOURNAL}:
        median, longest = (outcome.figures[f"{what} step, {name} (ms)"] for what in ("median", "longest"))
        assert 0 < median <= longest
        assert median == pytest.approx(1e3 / outcome.per_second[name], rel=2)
    beyond = outcome.figures[f"longest step beyond the reference's, {tracking.UP} (ms)"]
    longest = {name: outcome.figures[f"longest step, {name} (ms)"] for name in (tracking.UP, tracking.JOURNAL)}
    assert beyond == pytest.approx(longest[tracking.UP] - longest[tracking.JOURNAL])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pairstream-")]
