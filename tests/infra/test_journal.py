"""The journal survives a kill, and holds every float."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from infra.journal import JOURNAL, Journal, points


def test_a_torn_last_line_is_cut_off_and_the_rest_remembered(tmp_path: Path) -> None:
    def write(start: int, stop: int) -> None:
        journal = Journal(tmp_path)
        for step in range(start, stop):
            journal.metrics(step, {"loss": step / 7})
        journal.close()

    write(0, 3)
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"t":1,"step":3,"metrics":{"lo')
    write(2, 5)
    assert list(points(tmp_path)) == [(step, {"loss": step / 7}) for step in range(5)]
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())


def test_nan_and_infinity_survive_strict_json(tmp_path: Path) -> None:
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "tiny": 5e-324, "third": 1 / 3}
    Journal(tmp_path).metrics(0, values)
    ((step, back),) = points(tmp_path)
    assert step == 0
    assert math.isnan(back.pop("nan"))
    assert back == {name: value for name, value in values.items() if name != "nan"}
    json.loads((tmp_path / JOURNAL).read_text(), parse_constant=pytest.fail)


def test_a_second_evaluation_takes_the_place_of_the_first_and_a_replayed_step_does_not(tmp_path: Path) -> None:
    for again, loss in ((False, 1.0), (False, 2.0), (True, 1.0), (True, 3.0), (True, math.nan), (True, math.nan)):
        journal = Journal(tmp_path)
        journal.metrics(7, {"loss": loss}, again)
        journal.metrics(6, {"loss": 0.0}, again)
        journal.close()
    assert [str(values["loss"]) for _, values in points(tmp_path)] == ["1.0", "3.0", "nan"]
