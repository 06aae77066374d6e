"""Benchmarks of many ranks: what is measured of two, and what is projected for more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from jobs.cli import main
from pipeline.benchmarks import cases, crew, project, scaling
from pipeline.benchmarks.project import Links, projected
from pipeline.train import build

LINKS = Links(gpus=4, within=100.0, between=10.0, delay_within=1.0, delay_between=2.0, storage=1000.0, cores=3)


@pytest.mark.parametrize(
    ("ranks", "seconds"),
    [
        (1, 0.0),
        (2, 2 * (1000 / 2 / 100 + 1)),
        (4, 6 * (1000 / 4 / 100 + 1)),
        (8, 6 * (1000 / 4 / 100 + 1) + 2 * (1000 / 4 / 2 / 10 + 2)),
        (16, 6 * (1000 / 4 / 100 + 1) + 6 * (1000 / 4 / 4 / 10 + 2)),
    ],
)
def test_a_sum_is_a_ring_within_nodes_and_one_between(ranks: int, seconds: float) -> None:
    assert LINKS.summing(1000.0, ranks) == pytest.approx(seconds)


def test_what_is_projected_follows_from_what_is_measured() -> None:
    told = projected(LINKS, np.array([2.0]), 1000.0, 500.0, 8.0, 8)
    step = 2.0 + LINKS.summing(1000.0, 8)
    assert told["at 8 GPUs: step, ms"] == pytest.approx(1e3 * step)
    assert told["at 8 GPUs: of it waiting for the slowest rank, ms"] == 0
    assert told["at 8 GPUs: efficiency"] == pytest.approx(2.0 / step)
    assert told["at 8 GPUs: rows a second"] == pytest.approx(800 / step)
    assert told["at 8 GPUs: share of a node's link to storage"] == pytest.approx(400 / step * 8 / 1000)
    assert told["at 8 GPUs: rows that a node's cores can read, by those it needs"] == pytest.approx(
        500 * 4 * 2 / (400 / step)
    )


def test_more_ranks_wait_longer_for_the_slowest() -> None:
    steps = np.random.default_rng(1).exponential(1.0, 4000)
    waits = [
        projected(LINKS, steps, 0.0, 1.0, 1.0, n)[f"at {n} GPUs: of it waiting for the slowest rank, ms"]
        for n in (1, 8, 64)
    ]
    expected = [sum(1 / k for k in range(1, n + 1)) - np.log(2) for n in (1, 8, 64)]  # of exponential draws
    assert np.array(waits) / 1e3 == pytest.approx(np.array(expected), rel=0.1)


@pytest.mark.slow
def test_two_ranks_are_measured_against_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", "--only", "mnist", "--blocks", "1", "--samples", "2", "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
    assert case["reference"] == scaling.ALONE
    assert set(case["ratios"]) == {scaling.TOGETHER, scaling.SILENT}
    parameters = sum(parameter.numel() for parameter in build(cases.mnist()).parameters())
    assert case["figures"]["gradients that are summed, MB"] == pytest.approx(4e-6 * parameters)
    assert case["figures"]["a checkpoint, s"] > 0


@pytest.mark.slow
def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"a process of the benchmark failed: KeyError: 'nothing'"):
        crew.Crew(scaling.training, ("nothing",), 1, ranks=False)


@pytest.mark.slow
def test_a_projection_says_what_it_was_computed_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "project", "--only", "mnist", "--blocks", "1", "--samples", "300", "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
    assert set(case["per_second"]) == {"steps of one rank", "stream, one thread"}
    efficiency = [case["figures"][f"at {n} GPUs: efficiency"] for n in project.GPUS]
    assert efficiency == sorted(efficiency, reverse=True)
    assert all(0 < one <= 1 for one in efficiency)
