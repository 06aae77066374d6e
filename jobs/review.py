"""pairstream review [EXPERIMENT] [--filter ITEM …] [--sort KEY] [--columns KEY …] [--metric KEY] [--diff RUN RUN]
    [--effects] [--pictures DIR] [--report FILE] [--csv FILE] [--sync] [--limit N] [--json]

An experiment's MLflow runs: each sweep with its trials, the best first, then the runs on their own; what a swept key
does to the metric, what two runs differ in, pictures, a page, and the line that opens MLflow's own pages.

With --sync it first delivers every journal under runs/ that MLflow has not got yet, and exits with 1 where something
still waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from infra.errors import UserError
from jobs.arguments import RUNS, closing_json, parse
from pipeline.settings import Tracking, check

if TYPE_CHECKING:
    from pipeline.review.effects import Effects
    from pipeline.review.groups import Group
    from pipeline.review.rows import Row


@dataclass(frozen=True)
class Options:
    experiment: Positional[str] = Tracking().experiment
    """MLflow experiment."""
    uri: str = Tracking().uri
    """MLflow tracking URI; empty means MLFLOW_TRACKING_URI, or runs/mlflow.db where that is unset."""
    sync: bool = False
    """First deliver what MLflow has not got yet of the runs under runs/."""
    filter: tuple[str, ...] = ()
    """Show only runs of which all of these hold: conditions ('pairing.fraction<0.1', status=FINISHED, 'val/elbo>-120'),
    or a text in their name, their sweep's name, their status or a KEY=VALUE of their parameters."""
    sort: str = ""
    """Parameter, metric, name, status or start to sort by; a leading - puts the largest first. Where not given, the
    best trial of a sweep and the newest run on its own come first."""
    columns: tuple[str, ...] = ()
    """Parameters (pairing.fraction) and metrics (val/elbo) to show instead of the usual ones."""
    limit: int = 50
    """Rows to show; 0 shows all."""
    metric: str = ""
    """Metric by which runs are compared; that which picked their checkpoints where not given."""
    direction: Literal["max", "min", ""] = ""
    """Whether a larger or a smaller value of it is better; guessed from its name where not given."""
    diff: tuple[str, str] | None = None
    """Two runs (name, SWEEP/NAME, id, or the beginning of one): what they differ in, and their metrics side by side."""
    effects: bool = False
    """The metric's mean at each value of each swept key, over the other keys."""
    pictures: Path | None = None
    """Directory for pictures of sweeps: parallel coordinates, and the metric over supervision."""
    report: Path | None = None
    """HTML file that holds all of this; it is logged to the sweep's MLflow run where it is of a single one."""
    csv: Path | None = None
    """CSV file of the runs that match, with all that is known of them or --columns."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    command = f"pairstream review {' '.join(arguments)}".strip()
    if "--sort" in arguments[:-1]:  # the parser would take a value like -start for an option
        at = arguments.index("--sort")
        arguments = [*arguments[:at], f"--sort={arguments[at + 1]}", *arguments[at + 2 :]]
    options = parse("review", Options, arguments, about=__doc__)
    check(options.limit >= 0, f"--limit is {options.limit}: choose 0 or more")
    from infra.store import TrackingError, default_uri, runs
    from infra.tracking import progress, undelivered
    from pipeline.review.rows import Row

    uri = options.uri or default_uri()
    delivered = _sync() if options.sync else 0
    pending = sum(progress(directory).pending for directory in undelivered(RUNS))
    still_waiting = options.sync and pending > 0
    try:
        found = [Row.of(run) for run in runs(uri, options.experiment)]
    except TrackingError as error:
        if not still_waiting:
            raise
        print(error)  # nor could the journals be delivered, and that decides the exit code
        found = []
    if not found and not still_waiting:
        raise UserError(f"the experiment {options.experiment!r} in {uri} holds no run yet: train one, or name another")
    told = _review(found, options, uri, command)
    if pending and not options.sync:
        print(f"{pending} lines of journals under {RUNS} wait for MLflow: --sync delivers them")
    print(_opening(uri, found[0].experiment_id if found else ""))
    if options.json:
        closing_json({"experiment": options.experiment, "uri": uri, **told, "delivered": delivered, "pending": pending})
    return 1 if still_waiting else 0


def _review(found: list[Row], options: Options, uri: str, command: str) -> dict[str, object]:
    """Show what was asked for and write its files; returns all of it for --json. Raises UserError."""
    from pipeline.review import charts, filing, page, terminal
    from pipeline.review.conditions import matching
    from pipeline.review.difference import difference
    from pipeline.review.effects import can_tell, effects_of
    from pipeline.review.groups import check_metric, first, grouped, runs_of, told_runs
    from pipeline.review.rows import check_key

    for key in options.columns:
        check_key(key, found, "--columns")
    if options.sort:
        check_key(options.sort.removeprefix("-"), found, "--sort")
    check_metric(found, options.metric)
    differ = difference(found, *options.diff) if options.diff else None
    wanted = matching(found, options.filter)
    groups = grouped(found, wanted, options.sort, options.metric, options.direction)
    studied = [group for group in groups if group.parent] or groups
    able = [group for group in studied if can_tell(group)]
    if options.effects and not able:
        check(bool(studied), f"--effects: no run of {options.experiment} matches")
        able = studied[:1]  # which says why not
    effects = {group.name: effects_of(group) for group in able} if options.effects or options.report else {}
    pictures = {}
    if options.pictures or options.report:
        pictures = {group.name: charts.pictures(group, _keys(effects, group)) for group in studied}

    shown = first(groups, options.limit)
    for group, rows in zip(groups, shown, strict=True):
        if rows or not group.rows:
            terminal.show_group(group, rows, options.columns)
    count, total = sum(map(len, shown)), sum(len(group.rows) for group in groups)
    rest = f"; {total} match, --limit 0 shows them all" if total > count else ""
    print(f"{count} of {len(runs_of(found))} runs of {options.experiment}{rest}")
    if options.effects:
        for name, effect in effects.items():
            terminal.show_effects(effect, name)
    if differ:
        terminal.show_difference(differ)

    files = filing.write_pictures(options.pictures, pictures) if options.pictures else []
    if options.csv:
        files.append(filing.write_csv(options.csv, told_runs(groups, first(groups, 0)), options.columns))
    if options.report:
        about = [f"{command}; {datetime.now():%Y-%m-%d %H:%M}; {uri}"]
        text = page.page(f"Review of {options.experiment}", about, groups, effects, pictures, differ, options.columns)
        files.append(filing.write(options.report, text))
    for file in files:
        print(f"written: {file}")
    logged = filing.attach(options.report, groups, uri) if options.report else ""
    if logged:
        print(logged)
    return {
        "runs": told_runs(groups, shown), "best": [group.told for group in groups], "diff": differ,
        "effects": effects, "files": files, "logged": logged,
    }  # fmt: skip


def _opening(uri: str, experiment: str) -> str:
    """How to look at an experiment in MLflow's own pages, with the runs of trainings in front."""
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning" if experiment else ""
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/{page}"
    return f"mlflow ui --backend-store-uri {uri}    shows it at http://127.0.0.1:5000/{page}"


def _keys(effects: dict[str, Effects], group: Group) -> list[str]:
    """The swept keys, the strongest first where their effects are known."""
    known = effects.get(group.name)
    return [effect.key for effect in known.effects] if known else group.swept


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
