"""What a trial tells the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.tuning.trial import TIME, Reporter, Setting


def test_the_driver_hears_what_it_asks_for_and_each_validation_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps statistics of every number that it hears, as long as the driver lives."""
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", lambda metrics, checkpoint: heard.append(metrics))
    setting = Setting({}, str(tmp_path), "sweep", "val/elbo", "session")
    for step in (10, 20, 10, 20, 30):
        Reporter(setting, tmp_path)(step, {"val/elbo": -1.0 * step, "val/kl": 2.0, "val/recon.top": -7.0})
    Reporter(setting, tmp_path)(40, {"val/kl": 2.0})
    assert heard == [{"val/elbo": -10.0 * n, "step": 10 * n, TIME: n} for n in (1, 2, 3)]
