"""System metrics: true numbers, bounded in number, and no harm where they cannot be told."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import psutil
import pytest
import torch

from infra import usage
from infra.usage import Usage, pause
from tests.infra.servers import until


def samples(watch: Usage, count: int = 2) -> dict[str, float]:
    until(lambda: min([len(values) for values in watch._samples.values()], default=0) >= count)
    return watch.take()


def test_what_is_told_is_of_this_process_and_its_machine() -> None:
    watch, stop = Usage(every=0.1), threading.Event()

    def work() -> None:
        while not stop.is_set():
            sum(range(1000))

    try:
        samples(watch)
        idle = samples(watch, 3)
        threading.Thread(target=work, daemon=True).start()
        held = bytearray(os.urandom(1)) * 200_000_000
        samples(watch)
        busy = samples(watch, 3)
    finally:
        stop.set()
        watch.close()
    del held
    cores = psutil.cpu_count() or 1
    assert set(busy) == {
        "system/cpu_utilization_percentage",
        "system/process_cpu_utilization_percentage",
        "system/system_memory_usage_percentage",
        "system/process_memory_usage_megabytes",
    }
    share = "system/process_cpu_utilization_percentage"
    assert idle[share] < busy[share] <= 100 / cores * 1.5
    assert busy["system/process_memory_usage_megabytes"] - idle["system/process_memory_usage_megabytes"] > 150
    assert 0 <= busy["system/cpu_utilization_percentage"] <= 100
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert idle["system/process_memory_usage_megabytes"] == pytest.approx(rss, rel=0.5)


def test_the_process_s_share_is_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda self: 150.0)  # of one core
    watch = Usage(every=0.01)
    told = samples(watch)
    watch.close()
    assert told["system/process_cpu_utilization_percentage"] == 37.5


def test_a_point_is_the_mean_of_the_samples_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([100.0, 1.0, 2.0, 6.0])  # the first is thrown away: of no time at all

    def sample(*_: object) -> dict[str, float]:
        number = next(numbers, None)
        if number is None:
            watch._stop.wait()
            return {}
        return {"cpu": number}

    monkeypatch.setattr(usage, "_sample", sample)
    watch = Usage(every=0.001)
    until(lambda: len(watch._samples["cpu"]) == 3)
    assert watch.take() == {"system/cpu": 3.0}
    assert watch.take() == {}
    watch.close()


def test_a_week_has_a_few_thousand_samples() -> None:
    moment, count = 0.0, 0
    while moment < 7 * 86400:
        moment, count = moment + pause(2.0, moment), count + 1
        if moment < 600:
            assert count == round(moment / 2)
    assert 3000 < count < 4500


def test_a_driver_that_fails_ends_the_samples_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(device: torch.device) -> int:
        raise RuntimeError("GPU is lost")

    monkeypatch.setattr(torch.cuda, "memory_reserved", lost)
    with caplog.at_level(logging.WARNING):
        watch = Usage(torch.device("cuda", 0), every=0.001)
        watch._thread.join(10)
    assert not watch._thread.is_alive()
    assert "no more system metrics: RuntimeError: GPU is lost" in caplog.text
    assert watch.take() == {}


def test_of_a_gpu_torch_counts_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def reserved(device: torch.device) -> int:
        asked.append(device)
        return 3_000_000

    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 7)
    monkeypatch.setattr(usage, "find_spec", lambda name: name == "pynvml")
    watch = Usage(torch.device("cuda", 1), every=0.01)
    told = samples(watch)
    watch.close()
    assert told["system/process_gpu_memory_usage_megabytes"] == 3.0
    assert told["system/gpu_utilization_percentage"] == 7.0
    assert set(asked) == {torch.device("cuda", 1)}


def test_taking_never_waits_for_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(*_: object) -> dict[str, float]:
        hanging.set()
        go_on.wait(20)
        ended.set()
        return {}

    monkeypatch.setattr(usage, "_sample", hang)
    watch = Usage(every=0.001)
    hanging.wait()
    assert watch.take() == {}
    assert not ended.is_set(), "it has waited"
    go_on.set()
    watch.close()
