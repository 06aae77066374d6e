"""The tables of faces: what they have of the papers' figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.reproduce.faces import celeba_drop
from pipeline.reproduce.table import Extent


def test_of_figure_9_the_drawn_attributes_stand_beside_the_likelier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no data
    metrics = [cell.metric for cell in celeba_drop(Extent(columns=("p = 0.1",)))]
    assert metrics == [
        "sampled/attributes_given_image",
        "accuracy/attributes_given_image",
        "log_p/all",
        "log_p/image",
        "log_p/image_given_others.by_image",
    ]
