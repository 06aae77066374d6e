"""Contenders measured in turn, block by block, so that a machine whose speed drifts drifts for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

NOISY = 0.1
"""Share of all cores kept busy by other processes above which a result is flagged."""


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found. All benchmarks print this, so that they can be read by one script."""

    bench: str
    reference: str
    unit: str
    """What is counted, e.g. rows."""
    ratios: dict[str, float]
    """Median over the blocks of a contender's throughput divided by the reference's in the same block."""
    spread: dict[str, list[float]]
    """Lower and upper quartile of that ratio."""
    per_second: dict[str, float]
    """Median throughput in units per second, of the reference too."""
    limits: dict[str, float]
    """Ratios to physical limits or floors measured in the same run (throughput divided by the limit's)."""
    blocks: int
    noisy: bool
    other_cpu: float
    """Share of all cores that other processes kept busy meanwhile."""


def alternate(
    bench: str,
    unit: str,
    contenders: Mapping[str, Callable[[], int]],
    reference: str,
    blocks: int,
    limits: tuple[str, ...] = (),
) -> Outcome:
    """Run every contender once to warm up, then `blocks` times in turn. Each call does a block and returns its units.

    Contenders named in `limits` are floors, reported apart.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    busy, own, wall = _busy_seconds(), time.process_time(), time.monotonic()
    for _ in range(blocks):
        for name, contender in contenders.items():
            started = time.perf_counter()
            units = contender()
            rates[name].append(units / (time.perf_counter() - started))
    elapsed = time.monotonic() - wall
    other = max(0.0, _busy_seconds() - busy - (time.process_time() - own)) / (elapsed * _cores())
    ratios = {n: [r / base for r, base in zip(v, rates[reference], strict=True)] for n, v in rates.items()}
    return Outcome(
        bench=bench,
        reference=reference,
        unit=unit,
        ratios={n: statistics.median(v) for n, v in ratios.items() if n != reference and n not in limits},
        spread={n: _quartiles(v) for n, v in ratios.items() if n != reference and n not in limits},
        per_second={n: statistics.median(v) for n, v in rates.items()},
        limits={
            f"{name} / {limit}": statistics.median([a / b for a, b in zip(rates[name], rates[limit], strict=True)])
            for limit in limits
            for name in rates
            if name not in limits
        },
        blocks=blocks,
        noisy=other > NOISY,
        other_cpu=other,
    )


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    lower, _, upper = statistics.quantiles(values, n=4)
    return [lower, upper]


def _busy_seconds() -> float:
    """Seconds that all cores together have been busy since boot; 0 where /proc does not tell."""
    import os

    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return 0.0
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _cores() -> int:
    import os

    return os.cpu_count() or 1
