"""A sweep in writing: KEY=VALUE,VALUE and KEY=KIND:NUMBER:NUMBER of a command line, and a directory's sweep.json."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from infra.disk import write_whole
from infra.errors import UserError
from pipeline import config
from pipeline.recipes.sweep import Draw, Sweep
from pipeline.settings import check

PLAN = "sweep.json"


def save(plan: Sweep, directory: Path) -> None:
    """Write down a sweep. Raises OSError."""
    values = {one.name: getattr(plan, one.name) for one in fields(plan)} | {
        "run": config.to_dict(plan.run),
        "grid": {key: list(values) for key, values in plan.grid.items()},
        "sample": {key: str(draw) for key, draw in plan.sample.items()},
    }
    write_whole(directory / PLAN, json.dumps(values, indent=2) + "\n")


def load(directory: Path) -> Sweep:
    """The sweep that a directory began with. Raises UserError where there is none."""
    try:
        values = json.loads((directory / PLAN).read_text())
        values["run"] = config.from_dict(values["run"], str(directory / PLAN))
        values["columns"] = tuple(values["columns"])
        values["sample"] = {key: _draw(f"{key}={text}", text) for key, text in values["sample"].items()}
        return Sweep(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"there is no sweep to resume in {directory} ({error})") from None


def grid_of(items: tuple[str, ...]) -> dict[str, list[Any]]:
    """KEY=VALUE,VALUE … as a grid. Raises UserError."""
    grid: dict[str, list[Any]] = {}
    for item in items:
        key, equals, values = item.partition("=")
        check(bool(equals and values), f"--grid {item!r}: write KEY=VALUE,VALUE")
        grid[key] = [_number(value) for value in values.split(",")]
    return grid


def draws_of(items: tuple[str, ...]) -> dict[str, Draw]:
    """KEY=KIND:NUMBER:NUMBER … as distributions. Raises UserError."""
    return {item.partition("=")[0]: _draw(item, item.partition("=")[2]) for item in items}


def _draw(item: str, text: str) -> Draw:
    kind, *values = text.split(":")
    check(bool(values), f"--sample {item!r}: write KEY=loguniform:0.1:100, KEY=choice:A:B and the like")
    return Draw(kind, tuple(_number(value) for value in values))


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
