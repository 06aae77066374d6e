"""pairstream bench NAME [--blocks 9] [--json]

Measures speed against a peer or a limit: contenders take turns in one process, and ratios of the same turn are what
counts. A run during which other processes were busy is flagged as noisy.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import UserError, nearest
from jobs.arguments import closing_json, parse, split_name


@dataclass(frozen=True)
class Options:
    blocks: int = 9
    """Turns of each contender."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    from pipeline.benchmarks import BENCHMARKS

    if arguments[:1] in (["-h"], ["--help"]):
        print("benchmarks:\n" + "\n".join(f"  {name:<8} {bench.__doc__}" for name, bench in BENCHMARKS.items()))
        parse("bench NAME", Options, arguments, about=__doc__)
    name, rest = split_name("bench", "benchmark", arguments, list(BENCHMARKS))
    options = parse(f"bench {name}", Options, rest, about=__doc__)
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}" + nearest(name, list(BENCHMARKS)))
    if options.blocks < 1:
        raise UserError(f"--blocks {options.blocks}: choose at least 1")
    outcome = BENCHMARKS[name](options.blocks)
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "contender", f"{outcome.unit}/s", f"x {outcome.reference}", "quartiles", title=BENCHMARKS[name].__doc__
    )
    for contender, rate in outcome.per_second.items():
        ratio = f"{outcome.ratios[contender]:.2f}" if contender in outcome.ratios else ""
        low, high = outcome.spread.get(contender, [0.0, 0.0])
        table.add_row(contender, f"{rate:,.0f}", ratio, f"{low:.2f} - {high:.2f}" if ratio else "")
    Console().print(table)
    for limit, share in outcome.limits.items():
        print(f"{limit}: {share:.2f}")
    if outcome.noisy:
        print(
            f"NOISY: other processes kept {outcome.other_cpu:.0%} of the cores busy; measure again on a quiet machine"
        )
    if options.json:
        closing_json(outcome)
    return 0
