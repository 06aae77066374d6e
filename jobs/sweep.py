"""pairstream sweep RECIPE [--grid pairing.fraction=0.05,0.2 objective.k=0,1] [--cpus 1] [--resume] [--json]

Trains a grid of trials with Ray Tune: one MLflow run with a child per trial, each the same training that
`pairstream train` does, then evaluated once on test data. Ends with a table, a CSV file and a picture. Expect three
minutes for `pairstream sweep digits` on two cores.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tyro

from infra.disk import write_whole
from infra.distributed import cores
from infra.errors import UserError, nearest
from infra.storage import absolute
from jobs.arguments import RUNS, closing_json, early_options, jsonable, parse, refuse_changes, split_name
from pipeline import config
from pipeline.config import Run
from pipeline.recipes import SWEEPS, sweep
from pipeline.recipes.sweep import Sweep
from pipeline.settings import check
from pipeline.sweep_table import Baseline, Trial, best_trials, draw, show, write_csv

PLAN = "sweep.json"
UNFINISHED = "not finished"


@dataclass(frozen=True)
class Options:
    run: Annotated[Run, tyro.conf.arg(name="")]
    grid: tuple[str, ...] = ()
    """Other keys and values than the recipe's: KEY=VALUE,VALUE …"""
    cpus: int = 1
    """Cores of each trial; as many trials run at once as fit on this machine."""
    out: Path | None = None
    """Directory of the sweep; runs/sweep-RECIPE-DATE-TIME where not given."""
    resume: bool = False
    """Continue the sweep in --out: finished trials are not run again, cut ones go on from their checkpoints."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        print("sweeps: " + ", ".join(SWEEPS) + "\npairstream sweep RECIPE --help lists every field")
        return 0
    name, rest = split_name("sweep", "recipe", arguments, list(SWEEPS))
    plan, saved = sweep(name), None
    early = early_options(rest)
    if early.resume:
        check(early.out is not None, "--resume needs --out DIR of the sweep to continue")
        plan = saved = _load(Path(early.out or ""), plan)
    options = parse(f"sweep {name}", Options, rest, Options(run=plan.run), about=__doc__)
    check(1 <= options.cpus <= cores(), f"--cpus {options.cpus}: this machine lets us use {cores()} cores")
    places = {  # trials run in directories of their own
        "data": absolute(options.run.data),
        "mix": [f"{absolute(directory)}={share!r}" for directory, share in options.run.mixed()],
    }
    run = config.override(options.run, {"engine.threads": options.cpus, **places})
    plan = replace(plan, run=run, grid=_grid(options.grid) or plan.grid)
    directory = (options.out or RUNS / f"sweep-{name}-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    if saved:
        refuse_changes(saved.run, run)
        check(
            plan.cells() == saved.cells(),
            f"--resume: the grid of {directory} was {dict(saved.grid)}; leave --grid away",
        )
    elif directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(
            f"{directory} is not an empty directory: continue a sweep with --resume, or choose another --out"
        )
    return _sweep(plan, directory, options, f"pairstream sweep {' '.join(arguments)}".strip())


def _save(plan: Sweep, directory: Path) -> None:
    values = {"run": config.to_dict(plan.run), "grid": {key: list(values) for key, values in plan.grid.items()}}
    write_whole(directory / PLAN, json.dumps(values, indent=2) + "\n")


def _load(directory: Path, recipe: Sweep) -> Sweep:
    """The sweep that a directory began with. Raises UserError where there is none."""
    try:
        values = json.loads((directory / PLAN).read_text())
        return replace(recipe, run=config.from_dict(values["run"], str(directory / PLAN)), grid=values["grid"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"there is no sweep to resume in {directory} ({error})") from None


def _grid(items: tuple[str, ...]) -> dict[str, list[Any]]:
    """KEY=VALUE,VALUE … as a grid. Raises UserError."""
    grid: dict[str, list[Any]] = {}
    for item in items:
        key, equals, values = item.partition("=")
        check(bool(equals and values), f"--grid {item!r}: write KEY=VALUE,VALUE")
        grid[key] = [_number(value) for value in values.split(",")]
    return grid


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _sweep(plan: Sweep, directory: Path, options: Options, command: str) -> int:
    from infra.store import default_uri, prepare_store
    from infra.tracking import Tracker
    from pipeline.data import check_data
    from pipeline.evaluate import metric_names
    from pipeline.objectives.systems import unused
    from pipeline.record import destination

    manifest = check_data(plan.run)
    known = metric_names(plan.run, "val")
    if plan.metric not in known:
        raise UserError(f"the sweep's metric: no validation metric {plan.metric!r}" + nearest(plan.metric, known))
    same = [key for key in unused(plan.run) if key in plan.grid and "model.system" not in plan.grid]
    if same:
        raise UserError(
            f"the grid varies {', '.join(same)}, which model.system = {plan.run.model.system} makes no use of: its "
            "cells would be the same runs; leave it out, or choose another system"
        )
    plan = replace(plan, run=config.override(plan.run, {"tracking.uri": plan.run.tracking.uri or default_uri()}))
    tracking = plan.run.tracking
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _save(plan, directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}); choose another --out") from None
    where = destination(plan.run, directory)  # a sweep that is resumed keeps its identity, a new one gets its own
    tracker = None
    if tracking.enabled:  # the store is made, and the parent run named, before any trial asks for them
        prepare_store(where.uri, where.experiment, None)
        tracker = Tracker(directory, where)
        tracker.params({f"grid.{key}": list(values) for key, values in plan.grid.items()})
        tracker.params(config.flatten(config.to_dict(plan.run)))
        tracker.tags({"pairstream.sweep": plan.run.recipe, "pairstream.data": manifest.fingerprint})
    status = "FAILED"
    try:
        trials = _run_trials(plan, directory, where.identity, options.cpus)
        baselines = _baselines(plan, manifest)
        files = [write_csv(plan, trials, baselines, command, directory / "table.csv")]
        picture = draw(plan, trials, baselines, directory / "supervision.png")
        files += [picture] if picture else []
        show(plan, trials, baselines)
        failed = [trial for trial in trials if trial.error]
        status = "FAILED" if failed else "FINISHED"
        best = best_trials(plan, trials)
        if tracker:
            for file in files:
                tracker.artifact(file)
            chosen = [trials[n] for n in best] or [Trial({}, directory, {}, 0)]
            tracker.metrics(0, {f"best/{k}": v for k, v in max(chosen, key=lambda t: t.pairs).metrics.items()})
    finally:
        if tracker:
            tracker.close(status)
    for file in files:
        print(f"written: {os.path.relpath(file)}")
    _look_further(plan.run.recipe, directory, [trials[number] for number in best], tracking.uri if tracker else "")
    if options.json:
        closing_json(
            {
                "sweep": directory, "metric": plan.metric, "best": [jsonable(trials[n]) for n in best],
                "trials": trials, "baselines": baselines, "failed": len(failed), "files": files,
            }
        )  # fmt: skip
    return 1 if failed else 0


def _look_further(recipe: str, directory: Path, best: list[Trial], uri: str) -> None:
    """The exact commands and files that say more."""
    print("look further:")
    for trial in best:
        cell = ", ".join(f"{key} {value}" for key, value in trial.cell.items())
        print(f"  {os.path.relpath(trial.directory / 'pictures')}/    curves and cross-generations ({cell})")
    if best:
        print(f"  pairstream evaluate {os.path.relpath(best[-1].directory)} --split val")
        print(f"  pairstream train {recipe} --from {os.path.relpath(best[-1].directory)} --seeds 3")
    if uri:
        print(f"  pairstream review --filter {directory.name}")
        print(f"  mlflow ui --backend-store-uri {uri}" if not uri.startswith("http") else f"  {uri}")


def _run_trials(plan: Sweep, directory: Path, identity: str, cpus: int) -> list[Trial]:
    """Every cell of the grid through Ray Tune, in the order of the grid."""
    for name, value in {
        "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    import logging

    import ray
    from ray import tune
    from rich.console import Console
    from rich.progress import Progress

    cells = plan.cells()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{len(cells)} trials", total=len(cells))

        class Bar(tune.Callback):
            def __reduce__(self) -> tuple[Any, ...]:
                return tune.Callback, ()  # Ray saves its callbacks; a bar on this terminal is nothing to save

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                bar.advance(task)
                if not sys.stderr.isatty():
                    done = sum(t.status == "TERMINATED" for t in trials) + 1
                    print(f"trial {trial.config['name']} done ({done} of {len(cells)})", file=sys.stderr, flush=True)

        ray.init(num_cpus=cores(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            tuner = tune.Tuner(
                tune.with_resources(_trial, {"cpu": cpus}),
                param_space={
                    "name": tune.grid_search([_trial_name(number, cell) for number, cell in enumerate(cells)]),
                    "cells": {_trial_name(number, cell): dict(cell) for number, cell in enumerate(cells)},
                    "run": config.to_dict(plan.run),
                    "directory": str(directory),
                    "identity": identity,
                },
                tune_config=tune.TuneConfig(metric=plan.metric, mode=plan.direction, reuse_actors=True),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(directory),
                    verbose=0,
                    callbacks=[Bar()],
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            )
            results = {result.config["name"]: result for result in tuner.fit()}
        finally:
            ray.shutdown()
    trials = []
    for number, cell in enumerate(cells):
        result = results.get(_trial_name(number, cell))
        place = directory / _trial_name(number, cell)
        if result is None or result.error or "pairs" not in (result.metrics or {}):
            reason = str(result.error or UNFINISHED).strip().splitlines()[-1] if result else UNFINISHED
            trials.append(Trial(cell, place, {}, 0, reason))
            continue
        metrics = {name: value for name, value in result.metrics.items() if name.startswith(("val/", "test/"))}
        trials.append(Trial(cell, place, metrics, int(result.metrics["pairs"])))
    return trials


def _trial_name(number: int, cell: dict[str, Any]) -> str:
    settings = "-".join(f"{key.rpartition('.')[2]}{value}" for key, value in cell.items())
    return f"{number:03d}-{settings}".replace("/", "_")


def _trial(settings: dict[str, Any]) -> None:
    """One trial, in a Ray worker: the training of a plain run, then its test metrics."""
    from ray import tune

    from pipeline.evaluate.run import evaluate_run
    from pipeline.train import train

    run = config.override(config.from_dict(settings["run"]), settings["cells"][settings["name"]])
    directory = Path(settings["directory"]) / settings["name"]

    def report(step: int, metrics: dict[str, float]) -> bool:
        tune.report({**metrics, "step": step})
        return False

    result = train(
        run, directory, resume=True, report=report,
        identity=f"{settings['identity']}/{settings['name']}", parent=settings["identity"],
    )  # fmt: skip
    best = result.best or {}
    evaluation = evaluate_run(directory, "test", run, studies=())
    final = {**result.metrics, **evaluation.metrics, best["metric"]: best["value"]}
    tune.report({**final, "step": result.step, "pairs": result.rows.get("complete", result.rows.get("declared", 0))})


def _baselines(plan: Sweep, manifest: Any) -> list[Baseline]:
    """Logistic regression on the pairs of each view that was swept, for the accuracies among the table's columns."""
    from pipeline.baselines import complete_samples, logistic_regression
    from pipeline.evaluate.classification import metric_name, questions

    keys = [key for key in plan.grid if key == "seed" or key.startswith("pairing.")]
    found = []
    for values in product(*(plan.grid[key] for key in keys)):
        cell = dict(zip(keys, values, strict=True))
        run = config.override(plan.run, cell)
        scores = {}
        for label, given in questions(run):
            column = f"test/{metric_name(label, given)}"
            if column in plan.columns:
                scores[column] = logistic_regression(manifest, run, label, given)
        found.append(Baseline(cell, len(complete_samples(manifest, run, "train", run.pairing)), scores))
    return found
