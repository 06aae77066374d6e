"""Benchmarks: what the harness makes of rates, and every case run once on little data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from jobs.cli import main
from modalities import Image
from pipeline.benchmarks import BENCHMARKS, growth, harness, multivae, pack, serve, step, sweep
from pipeline.benchmarks.data import TOKENS, corpus
from pipeline.benchmarks.harness import Turn, alternate, drawing, repeated


def at(*rates: float) -> Turn:
    """A contender with these units per second, one turn after the other; the first one is its warm-up."""
    turns = iter([1.0, *rates])
    return lambda: (int(next(turns) * 10), 10.0)


def test_ratios_are_of_the_same_block() -> None:
    seen: list[tuple[int, int]] = []
    contenders = {
        "old": at(100, 200, 300), "older": at(1, 500, 2), "new": at(300, 400, 1200), "newer": at(100, 100, 100),
        "floor": at(1000, 1000, 2000),
    }  # fmt: skip
    outcome = alternate("b", "c", "rows", contenders, 3, ("old", "older"), ("floor",), lambda *done: seen.append(done))
    assert outcome.reference == "old"  # by the median: 200 against 2
    assert outcome.best == "new"
    assert outcome.ratios == pytest.approx({"older": 0.01, "new": 3, "newer": 0.5})
    assert outcome.spread["new"] == pytest.approx([2.5, 3.5])
    assert outcome.per_second["old"] == 200
    assert outcome.quartiles["old"] == [150, 250]
    assert outcome.limits["new / floor"] == pytest.approx(0.4)
    assert set(outcome.limits) == {f"{name} / floor" for name in ("old", "older", "new", "newer")}
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_without_a_reference_only_limits_are_compared() -> None:
    outcome = alternate("b", "c", "rows", {"it": at(50), "floor": at(100)}, 1, limits=("floor",))
    assert (outcome.reference, outcome.best, outcome.ratios) == ("", "it", {})
    assert outcome.limits == {"it / floor": 0.5}
    assert outcome.spread == {}


def test_what_is_drawn_first_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def units() -> Iterator[int]:
        nonlocal now
        for taken in cycle([0.1] * 10 + [0.5] * 10):  # the first ten were read ahead
            now += taken
            yield 3

    monkeypatch.setattr(harness.time, "perf_counter", lambda: now)
    turn = drawing(units(), untimed=0.95, timed=2.0)
    assert turn() == (12, pytest.approx(2.0))
    assert next(repeated(lambda: 7)) == 7


def test_a_server_that_a_benchmark_started_is_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    spins = """
import sys, time
for line in sys.stdin:
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
    print(flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", spins], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        busy = iter([0.0, 0.3])  # nothing but the server
        monkeypatch.setattr(harness, "_busy_seconds", lambda: next(busy))

        def turn() -> tuple[int, float]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(b"\n")
            server.stdin.flush()
            server.stdout.readline()
            return 1, 0.3

        assert alternate("b", "c", "rows", {"it": turn}, 1).other_cpu == pytest.approx(0, abs=0.05)


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["bench", *arguments, "--blocks", "1", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == arguments[0]
    for outcome in result["cases"]:
        assert set(outcome["spread"]) == set(outcome["ratios"])
        assert all(ratio > 0 for ratio in [*outcome["ratios"].values(), *outcome["limits"].values()])
        assert outcome["limits"] or outcome["series"] or outcome["figures"]
        assert outcome["best"] in outcome["per_second"]
        assert isinstance(outcome["noisy"], bool)
    return result


@pytest.mark.parametrize(
    ("name", "case", "ours"),
    [("step", "digits", "pairstream (DeepSpeed, ZeRO 0)"), ("stream", "raw", "pairstream, 0 threads")],
)
def test_a_benchmark_ends_with_its_object(
    name: str, case: str, ours: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    (outcome,) = bench(capsys, name, "--only", case, "--samples", "900")["cases"]
    assert outcome["case"] == case
    assert ours in outcome["ratios"]


@pytest.mark.parametrize("peer", [True, False])
def test_a_step_is_compared_to_multivae_where_that_is_installed(
    peer: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    monkeypatch.setitem(step.STEPS, "mnist-half", 1)
    if not peer:
        monkeypatch.setattr(multivae, "available", lambda: False)
    (outcome,) = bench(capsys, "step", "--only", "mnist-half")["cases"]
    assert set(outcome["limits"]) >= {f"{name} / {step.FLOOR}" for name in (step.OURS, step.DEEPSPEED)}
    peers = {step.PEER_FUSED, step.OURS, step.DEEPSPEED} if multivae.available() else set()
    assert set(outcome["ratios"]) == peers


def test_growth_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(growth, "COUNTS", (2, 3, 8))
    monkeypatch.setattr(growth, "SUBSETS", (0, 1))
    monkeypatch.setattr(growth, "_memory", lambda count, k: float(count + k))
    (outcome,) = bench(capsys, "step", "--only", "growth", "--out", str(tmp_path / "out"))["cases"]
    assert outcome["series"]["N"]["decoded rows per step"] == [400, 600, 1600]
    assert outcome["series"]["k"]["x"] == [0, 1]
    assert outcome["figures"]["N, MB for each"] == pytest.approx(1)
    assert outcome["figures"]["k, MB, R²"] == pytest.approx(1)
    assert outcome["figures"]["N, ms for each"] == pytest.approx(0, abs=1e-6)  # each turn was said to take as long
    assert (tmp_path / "out" / "step-growth.png").is_file()


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of one draw."""
    monkeypatch.setattr(harness, "_draw", lambda units, seconds: (next(units), 0.1))


def test_the_manifests_memory_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = bench(capsys, "manifest", "--samples", "20000")["cases"]
    assert outcome["figures"]["samples"] == 20_000
    assert outcome["figures"]["seconds"] > 0
    assert outcome["figures"]["resident, MB"] > outcome["figures"]["resident, grown, MB"]
    assert outcome["ratios"] == {}


@pytest.mark.slow
def test_every_case_of_the_stream(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    outcomes = bench(capsys, "stream", "--samples", "1100")["cases"]
    assert [outcome["case"] for outcome in outcomes] == list(BENCHMARKS["stream"].cases)
    assert all(len(outcome["ratios"]) == 4 for outcome in outcomes)


def test_a_server_that_is_gone_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"the server at 127\.0\.0\.1:9 gave no answer: .*refused"):
        serve.Client("http://127.0.0.1:9").correct()


@pytest.mark.parametrize("case", BENCHMARKS["stream"].cases)
def test_the_data_are_what_the_case_says(case: str) -> None:
    made = corpus(case, 30)
    entries = made.entries(None)
    assert len({entry.key for entry in entries}) == 30
    for name, modality in made.modalities.items():
        members = [modality.encode(made.load(entry)[name]) for entry in entries]
        batch = modality.decode(members)
        assert batch.shape == (30, *modality.shape)
        assert len(np.unique(batch.reshape(30, -1), axis=0)) > 5
        assert modality.decode([]).shape == (0, *modality.shape)
        np.testing.assert_array_equal(batch[7], modality.decode(members[7:8])[0])
        if not isinstance(modality, Image) and case == "text":
            assert 5 < (batch > 0).sum(1).mean() < TOKENS


@pytest.mark.slow
def test_a_served_model_answers_many_at_once_and_refuses_requests_of_any_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "ASKED", 20)
    (outcome,) = bench(capsys, "serve", "--samples", "500")["cases"]
    statuses = {int(name.split()[-1]): count for name, count in outcome["figures"].items() if "status" in name}
    assert sum(statuses.values()) == 500
    assert set(statuses) <= {200, 400, 415}
    assert statuses[400] > 300
    assert 0 < outcome["figures"]["an answer, ms"] <= outcome["figures"]["99 of 100 answers, ms"]


@pytest.mark.slow
def test_a_pack_is_compared_to_its_trials(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(pack, "TRIALS", 2)
    (outcome,) = bench(capsys, "pack", "--only", "digits", "--samples", "2")["cases"]
    assert len(outcome["ratios"]) == 2
    figures = outcome["figures"]
    assert figures["imports of a process, s"] > 0
    assert figures["whole trials, packed over one after another"] > 0


@pytest.mark.slow
def test_what_a_sweep_costs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "TRIALS", 1)
    (outcome,) = bench(capsys, "sweep", "--only", "overhead", "--samples", "10", "--blocks", "1")["cases"]
    took = outcome["figures"]
    loop, ours = took["plain loop, seconds a trial"], took["pairstream sweep, seconds a trial"]
    assert outcome["ratios"]["pairstream sweep"] == pytest.approx(loop / ours)
    assert took["overhead, seconds a trial"] == pytest.approx(ours - loop)


@pytest.mark.slow
def test_the_memory_of_a_sweeps_driver(capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = bench(capsys, "sweep", "--only", "memory", "--samples", "3")["cases"]
    first, half, last, growth = outcome["figures"].values()
    assert 100 < first < 5000
    assert growth == pytest.approx(100 * (last - half), abs=1e-6), "two points are left to draw the line through"


def test_imputing_is_compared_to_the_networks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "impute", "--only", "mnist,celeba", "--samples", "128", "--blocks", "1", "--json"]) == 0
    for outcome in json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]:
        assert outcome["reference"] == "encoders and decoders alone"
        assert outcome["ratios"]["pairstream impute"] > 0


@pytest.mark.slow
def test_imputing_is_measured_on_two_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = json_of(capsys, "--only", "ranks", "--samples", "1024")["cases"]
    assert outcome["reference"] == "2 processes on their own"
    assert outcome["ratios"]["2 ranks"] > 0


@pytest.mark.slow
def test_imputing_more_takes_no_more_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """A process's peak differs by some MB from one start to the next: a third of the data's growth is far above."""
    (outcome,) = json_of(capsys, "--only", "memory", "--samples", "8192")["cases"]
    figures = outcome["figures"]
    assert figures["shards, grown, MB"] > 60
    assert figures["8,192 samples, peak, MB"] > 100
    assert figures["memory, grown, MB"] < figures["shards, grown, MB"] / 3, figures


def json_of(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["bench", "impute", *options, "--blocks", "1", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def test_cases_that_there_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "stream", "--only", "raw,jpg"]) == 2
    assert "no case 'jpg'" in capsys.readouterr().err
    assert main(["bench", "stream", "--blocks", "0"]) == 2
