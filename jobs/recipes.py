"""pairstream recipes [--json]

One line for each recipe and sweep that can be run.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.arguments import closing_json, parse


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print one JSON object as the last line."""


def first_line(function: object) -> str:
    """The first line of a docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]


def main(arguments: list[str]) -> int:
    options = parse("recipes", Options, arguments, about=__doc__)
    from rich.console import Console
    from rich.table import Table

    from pipeline.recipes import OF_DATA, RECIPES, SWEEPS

    recipes = {name: first_line(function) for name, function in (RECIPES | OF_DATA).items()}
    sweeps = {name: first_line(function) for name, function in SWEEPS.items()}
    table = Table("command", "what it is")
    for name, about in recipes.items():
        table.add_row(f"pairstream train {name}", about)
    for name, about in sweeps.items():
        table.add_row(f"pairstream sweep {name}", about)
    Console().print(table)
    if options.json:
        closing_json({"recipes": recipes, "sweeps": sweeps})
    return 0
