"""Contenders measured in turn, block by block, so that a machine whose speed drifts drifts for all of them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.benchmarks import Progress

NOISY = 0.1
"""Share of all cores kept busy by other processes above which a result is flagged."""
UNTIMED, TIMED = 0.1, 0.4
"""Seconds of a turn. In the first ones what a contender has read ahead is used up, and the one before settles."""

Turn = Callable[[], tuple[int, float]]
"""A contender's part of a block; returns how many units it did in how many seconds."""
Series = dict[str, dict[str, list[float]]]
"""By the name of what was changed, e.g. N: its values (x), and what was measured at each."""


@dataclass(frozen=True)
class Outcome:
    """What a case of a benchmark found. All benchmarks print this, so that they can be read by one script."""

    bench: str
    case: str
    reference: str
    """What the ratios are relative to: of several candidates the one with the highest median; "" where there is none.
    """
    best: str
    """The contender with the highest median, candidates for the reference left aside."""
    unit: str
    """What is counted, e.g. rows."""
    ratios: dict[str, float]
    """Median over the blocks of a contender's throughput divided by the reference's in the same block."""
    spread: dict[str, list[float]]
    """Lower and upper quartile of that ratio."""
    per_second: dict[str, float]
    """Median throughput in units per second, of references and limits too."""
    quartiles: dict[str, list[float]]
    """Lower and upper quartile of that throughput."""
    limits: dict[str, float]
    """Ratios to physical limits or floors measured in the same run (throughput divided by the limit's)."""
    blocks: int
    noisy: bool
    other_cpu: float
    """Share of all cores that other processes kept busy meanwhile; 0 where no times are compared."""
    figures: dict[str, float] = field(default_factory=dict)
    """What else was measured, medians, the unit in the name."""
    series: Series = field(default_factory=dict)
    """What a picture is drawn from, the unit in the name."""


def drawing(units: Iterator[int], untimed: float = UNTIMED, timed: float = TIMED) -> Turn:
    """Turns that draw from an endless iterator, whose items tell how many units each was, for so many seconds."""

    def turn() -> tuple[int, float]:
        _draw(units, untimed)
        return _draw(units, timed)

    return turn


def _draw(units: Iterator[int], seconds: float) -> tuple[int, float]:
    done, started = 0, time.perf_counter()
    while True:
        done += next(units)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return done, elapsed


def repeated(work: Callable[[], int]) -> Iterator[int]:
    """Calls a function that does a few units and returns how many, for ever."""
    while True:
        yield work()


def alternate(
    bench: str,
    case: str,
    unit: str,
    contenders: Mapping[str, Turn],
    blocks: int,
    references: Sequence[str] = (),
    limits: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Give every contender a turn to warm up, then `blocks` turns each, one after the other.

    The better of the `references` is what the others are compared to; those named in `limits` are reported apart.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in contenders.values():
        turn()
    busy, own, wall = _busy_seconds(), _own_seconds(), time.monotonic()
    for block in range(blocks):
        for name, turn in contenders.items():
            units, seconds = turn()
            rates[name].append(units / seconds)
        if progress:
            progress(block + 1, blocks)
    elapsed = time.monotonic() - wall
    other = max(0.0, _busy_seconds() - busy - (_own_seconds() - own)) / (elapsed * (os.cpu_count() or 1))
    median = {name: statistics.median(rate) for name, rate in rates.items()}
    reference = max(references, key=median.__getitem__, default="")
    ours = [name for name in contenders if name not in references and name not in limits]
    compared = [name for name in contenders if name != reference and name not in limits] if reference else []
    ratios = {name: _ratios(rates[name], rates[reference]) for name in compared}
    return Outcome(
        bench=bench,
        case=case,
        reference=reference,
        best=max(ours, key=median.__getitem__),
        unit=unit,
        ratios={name: statistics.median(values) for name, values in ratios.items()},
        spread={name: _quartiles(values) for name, values in ratios.items()},
        per_second=median,
        quartiles={name: _quartiles(rate) for name, rate in rates.items()},
        limits={
            f"{name} / {limit}": statistics.median(_ratios(rates[name], rates[limit]))
            for limit in limits
            for name in rates
            if name not in limits
        },
        blocks=blocks,
        noisy=other > NOISY,
        other_cpu=other,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and OpenCV calculate in the thread that calls them; how many there are, a contender says."""
    import cv2
    import torch

    before, pictures = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(pictures)


def _ratios(rates: list[float], base: list[float]) -> list[float]:
    return [a / b for a, b in zip(rates, base, strict=True)]


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def _busy_seconds() -> float:
    """Seconds that all cores together have been busy since boot; 0 where /proc does not tell."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return 0.0
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Seconds of CPU that this process and its children, ended or running, have used."""
    seconds, this = 0.0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):  # it ended meanwhile: its parent's count has it
            used = process.cpu_times()
            seconds += used.user + used.system + used.children_user + used.children_system
    return seconds


def resident() -> dict[str, float]:
    """Megabytes that this process has in memory, by /proc/self/status; "peak" is the most there ever was."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "file-backed", "VmHWM": "peak"}
    status: dict[str, Any] = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[field].split()[0]) * 1024 / 1e6 for field, name in names.items()}
