"""pairstream bench NAME [--only CASE,CASE] [--blocks 9] [--out DIR] [--json]

Measures speed against a peer or a limit: contenders take turns in one process, and ratios of the same turn are what
counts. A run during which other processes were busy is flagged as noisy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import UserError, nearest
from jobs.arguments import closing_json, parse, split_name

if TYPE_CHECKING:
    from pipeline.benchmarks import Progress
    from pipeline.benchmarks.harness import Outcome


@dataclass(frozen=True)
class Options:
    only: str = ""
    """Cases to measure, with commas between; all where not given."""
    blocks: int = 9
    """Turns of each contender."""
    samples: int = 0
    """Samples to make, where a benchmark makes its data; 0 is the usual number."""
    out: Path | None = None
    """Directory for the pictures of cases that have one (step growth); none is drawn where not given."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    from pipeline.benchmarks import BENCHMARKS, run

    if arguments[:1] in (["-h"], ["--help"]):
        print("benchmarks:")
        for name, bench in BENCHMARKS.items():
            print(f"  {name:<8} {bench.about} Cases: {', '.join(bench.cases)}.")
        parse("bench NAME", Options, arguments, about=__doc__)
    name, rest = split_name("bench", "benchmark", arguments, list(BENCHMARKS))
    options = parse(f"bench {name}", Options, rest, about=__doc__)
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}" + nearest(name, list(BENCHMARKS)))
    if options.blocks < 1 or options.samples < 0:
        raise UserError(f"--blocks {options.blocks} --samples {options.samples}: choose at least 1 block, 0 samples")
    cases = options.only.split(",") if options.only else list(BENCHMARKS[name].cases)
    for case in cases:
        if case not in BENCHMARKS[name].cases:
            raise UserError(f"benchmark {name} has no case {case!r}" + nearest(case, list(BENCHMARKS[name].cases)))
    print(BENCHMARKS[name].about)
    outcomes = []
    for case in cases:
        with _bar(f"{name} {case}") as progress:
            outcomes.append(run(name, case, options.blocks, options.samples, progress))
        _show(outcomes[-1])
        if options.out and outcomes[-1].series:
            _draw(outcomes[-1], options.out)
    if options.json:
        closing_json({"bench": name, "noisy": any(outcome.noisy for outcome in outcomes), "cases": outcomes})
    return 0


def _show(outcome: Outcome) -> None:
    """The outcome of one case as a table."""
    from rich.console import Console
    from rich.table import Table

    compared = ["ratio", "quartiles"] if outcome.reference else []
    relative = f", ratios to {outcome.reference}" if outcome.reference else ""
    table = Table(
        "contender", f"{outcome.unit}/s", "quartiles", *compared, title=f"{outcome.bench} {outcome.case}{relative}"
    )
    for contender, rate in outcome.per_second.items():
        low, high = outcome.quartiles[contender]
        cells = [contender, f"{rate:,.0f}", f"{low:,.0f} - {high:,.0f}"]
        if contender in outcome.ratios:
            low, high = outcome.spread[contender]
            cells += [f"{outcome.ratios[contender]:.2f}", f"{low:.2f} - {high:.2f}"]
        table.add_row(*cells, style="bold" if contender == outcome.best else None)
    Console(width=max(100, Console().width)).print(table)
    ours = {name: share for name, share in outcome.limits.items() if name.startswith(f"{outcome.best} / ")}
    for name, value in (ours | outcome.figures).items():
        print(f"{name}: {value:,.4g}" if abs(value) < 10 else f"{name}: {value:,.2f}")
    if outcome.noisy:
        print(
            f"NOISY: other processes kept {outcome.other_cpu:.0%} of the cores busy; measure again on a quiet machine"
        )


def _draw(outcome: Outcome, directory: Path) -> None:
    from pipeline.benchmarks.growth import picture

    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{outcome.bench}-{outcome.case}.png"
    picture(outcome.series, file)
    print(f"picture: {file}")


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A bar over the blocks on a terminal. It is drawn between them only, so that nothing else runs meanwhile."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(name, total=None)
        bar.refresh()
        yield lambda done, total: bar.update(task, completed=done, total=total, refresh=True)
