"""pairstream review [EXPERIMENT] [--sync] [--filter TEXT] [--sort KEY] [--columns KEY …] [--limit N] [--json]

A table of an experiment's MLflow runs, a sweep's trials under their sweep, and the line that opens MLflow's own pages.
With --sync it first delivers every journal under runs/ that MLflow has not got yet, and exits with 1 where something
still waits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tyro.conf import Positional

from infra.errors import UserError, nearest
from jobs.arguments import RUNS, closing_json, parse
from pipeline.settings import Tracking, check

ALWAYS = ("name", "status", "start")
USUAL = ("pairing.fraction", "objective.k", "objective.lambda.label", "val/elbo")
STYLES = {"FAILED": "red", "KILLED": "yellow", "RUNNING": "green"}


@dataclass(frozen=True)
class Options:
    experiment: Positional[str] = Tracking().experiment
    """MLflow experiment."""
    uri: str = Tracking().uri
    """MLflow tracking URI; empty means MLFLOW_TRACKING_URI, or runs/mlflow.db where that is unset."""
    sync: bool = False
    """First deliver what MLflow has not got yet of the runs under runs/."""
    filter: str = ""
    """Show only runs with this text in their name, their status or a KEY=VALUE of their parameters."""
    sort: str = "-start"
    """Parameter, metric, name, status or start to sort by; a leading - puts the largest first."""
    columns: tuple[str, ...] = ()
    """Parameters (pairing.fraction) and metrics (val/elbo) to show instead of the usual ones."""
    limit: int = 50
    """Rows to show; 0 shows all."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if "--sort" in arguments[:-1]:  # the parser would take a value like -start for an option
        at = arguments.index("--sort")
        arguments = [*arguments[:at], f"--sort={arguments[at + 1]}", *arguments[at + 2 :]]
    options = parse("review", Options, arguments, about=__doc__)
    check(options.limit >= 0, f"--limit is {options.limit}: choose 0 or more")
    from infra.store import TrackingError, default_uri, runs
    from infra.tracking import progress, undelivered

    uri = options.uri or default_uri()
    delivered = _sync() if options.sync else 0
    pending = sum(progress(directory).pending for directory in undelivered(RUNS))
    still_waiting = options.sync and pending > 0
    try:
        found = runs(uri, options.experiment)
    except TrackingError as error:
        if not still_waiting:
            raise
        print(error)  # nor could the journals be delivered, and that decides the exit code
        found = []
    rows = _tree(_sorted(_matching(found, options.filter), options.sort))
    shown = rows[: options.limit or None]
    _show(_columns(found, options), shown, f"{len(shown)} of {len(found)} runs of {options.experiment}")
    if pending and not options.sync:
        print(f"{pending} lines of journals under {RUNS} wait for MLflow: --sync delivers them")
    print(uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}")
    if options.json:
        closing_json(
            {
                "experiment": options.experiment, "uri": uri, "runs": [run for _, run in shown],
                "delivered": delivered, "pending": pending,
            }
        )  # fmt: skip
    return 1 if still_waiting else 0


def _sync() -> int:
    """Deliver every journal under runs/, and say which still wait, and why; how many lines arrived."""
    from rich.console import Console
    from rich.progress import track

    from infra.tracking import REJECTED, progress, sync, undelivered

    delivered, said = 0, []
    journals = undelivered(RUNS)
    for directory in track(journals, "delivering", console=Console(stderr=True), transient=True):
        before, after = progress(directory), sync(directory)
        delivered += max(0, after.delivered - before.delivered)
        if after.pending:
            said.append(f"pending: {directory}: {after.pending} lines: {after.error or 'written just now'}")
        if after.rejected > before.rejected:
            said.append(f"refused by MLflow: see {directory / REJECTED}")
    print("\n".join([*said, f"delivered {delivered} lines of {len(journals)} journals"]))
    return delivered


def _fields(run: dict[str, Any]) -> dict[str, Any]:
    """All of a run that can be a column or sorted by."""
    return {**run["params"], **run["metrics"], **{key: run[key] for key in ALWAYS}}


def _columns(runs: list[dict[str, Any]], options: Options) -> Sequence[str]:
    """The columns asked for, or the usual ones that there are. Raises UserError for a key that no run has."""
    known = sorted({key for run in runs for key in _fields(run)})
    for key in (*options.columns, options.sort.removeprefix("-")):
        if runs and key not in known:
            raise UserError(f"no run of {options.experiment} has {key!r}" + nearest(key, known))
    accuracies = [key for key in known if key.startswith("val/accuracy/")]
    fullest = max(accuracies, key=len, default="")  # given all other modalities
    return options.columns or [key for key in (*USUAL, fullest) if key in known]


def _matching(found: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The runs in which the text occurs, and the trials of a sweep whose own name has it."""
    sweeps = {run["identity"] for run in found if run["identity"] and text.lower() in run["name"].lower()}
    return [run for run in found if _matches(run, text) or run["parent"] in sweeps]


def _matches(run: dict[str, Any], text: str) -> bool:
    items = (run["name"], run["status"], *(f"{key}={value}" for key, value in run["params"].items()))
    return any(text.lower() in item.lower() for item in items)


def _rank(run: dict[str, Any], key: str) -> tuple[bool, float, str] | None:
    """Numbers by size, then text by letters; None where a run has nothing to compare."""
    value = _fields(run).get(key, math.nan)
    try:
        return None if math.isnan(float(value)) else (False, float(value), "")
    except ValueError:
        return True, 0.0, value


def _sorted(runs: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    key = sort.removeprefix("-")
    ranked = [(rank, run) for run in runs if (rank := _rank(run, key))]
    ranked.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    return [run for _, run in ranked] + [run for run in runs if not _rank(run, key)]


def _tree(runs: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(indent, run), children behind their parent where that is among the runs."""
    children: dict[str, list[dict[str, Any]]] = {run["identity"]: [] for run in runs if run["identity"]}
    for run in runs:
        if run["parent"] in children:
            children[run["parent"]].append(run)

    def branch(run: dict[str, Any], indent: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield indent, run
        for child in children.pop(run["identity"], ()):
            yield from branch(child, indent + "  ")

    return [row for top in [run for run in runs if run["parent"] not in children] for row in branch(top, "")]


def _show(columns: Sequence[str], rows: list[tuple[str, dict[str, Any]]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*ALWAYS, *(re.sub(r"(?<=[./_])", "\n", key) for key in columns), title=title)
    for indent, run in rows:
        values = (_fields(run).get(key, "") for key in columns)
        cells = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in values)
        start = f"{datetime.fromtimestamp(run['start'] / 1000):%Y-%m-%d %H:%M}"
        table.add_row(indent + run["name"], run["status"], start, *cells, style=STYLES.get(run["status"]))
    Console(width=10_000, markup=False, highlight=False).print(table)  # as wide as it needs, and nothing cut off
