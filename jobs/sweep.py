"""pairstream sweep RECIPE [--over supervision | --grid KEY=V,V … | --sample KEY=loguniform:0.1:100 --trials 50]

Trains many trials with Ray Tune: one MLflow run with a child per trial, each the same training that `pairstream train`
does, then evaluated once on test data. Ends with a table, a CSV file and a picture. --scheduler asha ends poor trials
early, --scheduler pbt changes λ, k, β or the learning rate in mid-run; --search optuna or bohb chooses what to try.
Killed at any moment (driver, trial, machine), --resume --out DIR goes on: nothing is trained twice. Expect two to five
minutes for `pairstream sweep digits` on two cores.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infra.distributed import cores
from infra.errors import UserError, nearest
from infra.preemption import REQUEUE
from infra.storage import absolute
from jobs.arguments import RUNS, closing_json, early_options, jsonable, parse, refuse_changes, split_name
from jobs.tuning.ledger import Ledger, best_so_far
from jobs.tuning.written import draws_of, grid_of, load, save
from pipeline import config
from pipeline.config import Run
from pipeline.recipes import SWEEPS, recipe, sweepable
from pipeline.recipes.sweep import READY, Scheduler, Search, Sweep
from pipeline.settings import check
from pipeline.sweep_table import Baseline, Trial, best_trials, draw, show, write_csv

UNFINISHED = "not finished"
Over = Literal["", "supervision", "k-effect", "lambda", "product"]


@dataclass(frozen=True)
class Options:
    run: Annotated[Run, tyro.conf.arg(name="")]
    over: Over = ""
    """A ready sweep: share of complete pairs; random subsets a step; weights of modalities; their product."""
    grid: tuple[str, ...] = ()
    """Keys and all their values: KEY=VALUE,VALUE …"""
    sample: tuple[str, ...] = ()
    """Keys and what they are drawn from: KEY=loguniform:LOW:HIGH, uniform:LOW:HIGH, randint:LOW:HIGH, choice:A:B …"""
    trials: int = 1
    """Trials of each cell of the grid, each with draws of its own."""
    search: Search = "random"
    """Who draws: chance, or a model of what came out so far (Optuna's, BOHB's)."""
    scheduler: Scheduler = "none"
    """Ends poor trials early (asha, hyperband), or changes what is drawn in mid-run (pbt)."""
    metric: str = ""
    """Validation metric that trials are compared by, and each one's best checkpoint; the recipe's where not given."""
    direction: Literal["", "max", "min"] = ""
    """Whether a large or a small value of it is good."""
    cpus: int = 1
    """Cores of each trial's rank; as many trials run at once as fit."""
    gpus: float = 0.0
    """GPUs of each trial's rank; with 0.25 four share one."""
    ranks: int = 1
    """Ranks of each trial, each with as many cores and GPUs."""
    pack: int = 0
    """Train so many trials side by side as one program, in this process: pays on a GPU, and for small models."""
    hours: float = 0.0
    """End after so long; --resume goes on. 0 is no limit."""
    retries: int = 2
    """How often a trial goes on from its checkpoint after its worker or its machine was lost."""
    stall: float = 60.0
    """Minutes without a step after which a trial hangs: its worker ends, and counts as lost. 0 is never."""
    ray: str = ""
    """Address of a Ray cluster that runs already (auto: the one that this machine belongs to)."""
    out: Path | None = None
    """Directory of the sweep; runs/sweep-RECIPE-DATE-TIME where not given."""
    resume: bool = False
    """Continue the sweep in --out: finished trials are not run again, cut ones go on from their checkpoints."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        print("recipes: " + ", ".join(sweepable()) + "\npairstream sweep RECIPE --help lists every field")
        return 0
    name, rest = split_name("sweep", "recipe", arguments, sweepable())
    early = early_options(rest)
    saved = None
    if early.resume:
        check(early.out is not None, "--resume needs --out DIR of the sweep to continue")
        saved = load(Path(early.out or ""))
    default = saved.run if saved else SWEEPS[name]().run if name in SWEEPS else recipe(name, early.data)
    options = parse(f"sweep {name}", Options, rest, Options(run=default), about=__doc__)
    check(
        1 <= options.cpus <= cores() or bool(options.ray),
        f"--cpus {options.cpus}: this machine lets us use {cores()} cores",
    )
    amounts = (options.gpus, options.hours, options.retries, options.stall)
    check(min(amounts) >= 0, "--gpus, --hours, --retries, --stall: 0 or more")
    check(
        options.pack >= 0 and not (options.pack and (options.ranks > 1 or options.ray or options.hours)),
        "--pack trains in this process: leave --ranks, --ray and --hours away",
    )
    places = {  # trials run in directories of their own
        "data": absolute(options.run.data),
        "mix": [f"{absolute(directory)}={share!r}" for directory, share in options.run.mixed()],
    }
    run = config.override(options.run, {"engine.threads": options.cpus, **places})
    directory = (options.out or RUNS / f"sweep-{name}-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    if saved:
        refuse_changes(saved.run, run)
        plan = _continued(saved, replace(saved, run=run), options, directory)
    else:
        plan = _planned(name, run, options)
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise UserError(
                f"{directory} is not an empty directory: continue a sweep with --resume, or choose another --out"
            )
    check(
        not options.pack or (plan.scheduler in ("none", "asha") and plan.search == "random"),
        "--pack knows the scheduler asha and draws by chance: leave other --scheduler and --search away",
    )
    return _sweep(plan, directory, options, f"pairstream sweep {' '.join(arguments)}".strip())


def _planned(name: str, run: Run, options: Options) -> Sweep:
    """What the options ask for: a ready sweep, keys of their own, or what the recipe brings along."""
    if options.metric:
        run = config.override(run, {"train.best": options.metric})
    if options.direction:
        run = config.override(run, {"train.best_is": options.direction})
    own = SWEEPS[name]() if name in SWEEPS else None
    if options.grid or options.sample:
        check(not options.over, "--over is a grid of its own: leave it away, or --grid and --sample")
        grid, draws = grid_of(options.grid), draws_of(options.sample)
        plan = Sweep(run, grid, run.train.best, run.train.best_is, own.columns if own else (), draws, options.trials)
    elif own and not options.over:
        plan = replace(own, run=run)
    else:
        plan = READY[options.over or "supervision"](run)
    if options.metric or options.direction:
        plan = replace(plan, metric=run.train.best, direction=run.train.best_is)
    return replace(plan, search=options.search, scheduler=options.scheduler)


def _continued(saved: Sweep, plan: Sweep, options: Options, directory: Path) -> Sweep:
    """The sweep as it began; only more trials can be asked for."""
    asked = {
        "grid": (dict(grid_of(options.grid)), dict(saved.grid)),
        "sample": (dict(draws_of(options.sample)), dict(saved.sample)),
        "scheduler": (options.scheduler if options.scheduler != "none" else "", saved.scheduler),
        "search": (options.search if options.search != "random" else "", saved.search),
        "metric": (options.metric, saved.metric),
    }
    for key, (wanted, had) in asked.items():
        check(not wanted or wanted == had, f"--resume: the {key} of {directory} was {had}; leave --{key} away")
    check(not options.over, f"--resume: {directory} knows what it sweeps; leave --over away")
    return replace(plan, trials=max(saved.trials, options.trials))


def _sweep(plan: Sweep, directory: Path, options: Options, command: str) -> int:
    from infra.store import default_uri, prepare_store
    from infra.tracking import Tracker
    from jobs.tuning.driver import Resources, run_trials
    from jobs.tuning.packed import run_packed
    from pipeline.data import check_data
    from pipeline.evaluate import metric_names
    from pipeline.evaluate.classification import metric_name, questions
    from pipeline.objectives.systems import unused
    from pipeline.record import destination

    manifest = check_data(plan.run)
    known = metric_names(plan.run, "val")
    if plan.metric not in known:
        raise UserError(f"the sweep's metric: no validation metric {plan.metric!r}" + nearest(plan.metric, known))
    same = [key for key in unused(plan.run) if key in plan.keys and "model.system" not in plan.keys]
    if same:
        raise UserError(
            f"the sweep varies {', '.join(same)}, which model.system = {plan.run.model.system} makes no use of: its "
            "trials would be the same runs; leave it out, or choose another system"
        )
    accuracies = (f"test/{metric_name(label, given)}" for label, given in questions(plan.run))
    plan = replace(plan, columns=plan.columns or (*accuracies, "test/elbo"))
    plan = replace(plan, run=config.override(plan.run, {"tracking.uri": plan.run.tracking.uri or default_uri()}))
    tracking = plan.run.tracking
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save(plan, directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}); choose another --out") from None
    where = destination(plan.run, directory)  # a sweep that is resumed keeps its identity, a new one gets its own
    tracker = None
    if tracking.enabled:  # the store is made, and the parent run named, before any trial asks for them
        prepare_store(where.uri, where.experiment, None)
        tracker = Tracker(directory, where)
        tracker.params({f"grid.{key}": list(values) for key, values in plan.grid.items()})
        tracker.params({f"sample.{key}": str(draw) for key, draw in plan.sample.items()})
        base = config.flatten(config.to_dict(plan.run))
        tracker.params({key: value for key, value in base.items() if key not in plan.keys})
        tracker.tags(
            {
                "pairstream.sweep": plan.run.recipe, "pairstream.data": manifest.fingerprint,
                "pairstream.directory": str(directory), "pairstream.metric": plan.metric,
                "pairstream.direction": plan.direction,
            }
        )  # fmt: skip
    resources = Resources(
        options.cpus, options.gpus, options.ranks, options.hours, options.retries, options.stall, options.ray
    )

    def lost() -> None:
        where = options.ray or "this machine"
        print(
            f"Ray answers no longer at {where}: go on with pairstream sweep {plan.run.recipe} --resume --out "
            f"{os.path.relpath(directory)}, on another cluster (--ray) or without one",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        if tracker:
            tracker.close("KILLED", timeout=20)
        os._exit(REQUEUE)  # the main thread hangs in Ray

    status = "FAILED"
    try:
        if options.pack:
            run_packed(plan, directory, where.identity, options.pack)
        else:
            run_trials(plan, directory, where.identity, resources, lost)
        trials = _trials(plan, directory)
        baselines = _baselines(plan, manifest)
        files = [write_csv(plan, trials, baselines, command, directory / "table.csv")]
        picture = draw(plan, trials, baselines, directory / "supervision.png")
        files += [picture] if picture else []
        show(plan, trials, baselines)
        failed = [trial for trial in trials if trial.error and trial.error != UNFINISHED]
        cut = len(trials) < plan.total or any(trial.error == UNFINISHED for trial in trials)
        status = "FAILED" if failed else "KILLED" if cut else "FINISHED"
        best = best_trials(plan, trials)
        if tracker:
            for file in files:
                tracker.artifact(file)
            shown = max((trials[n] for n in best), key=lambda trial: trial.pairs, default=Trial({}, directory, {}, 0))
            asked = (plan.metric, *plan.columns)
            tracker.metrics(len(trials), {name: value for name, value in shown.metrics.items() if name in asked})
            if tracking.model:
                from pipeline.serving import log_model

                for trial in (trials[number] for number in best if not trials[number].error):
                    log_model(trial.directory)
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
                "trials": trials, "baselines": baselines, "failed": len(failed), "cut": cut, "files": files,
            }
        )  # fmt: skip
    return 1 if failed else REQUEUE if cut else 0


def _look_further(recipe: str, directory: Path, best: list[Trial], uri: str) -> None:
    """The exact commands and files that say more."""
    print("look further:")
    for trial in best:
        if trial.stopped:
            continue  # it has none
        cell = ", ".join(f"{key} {value}" for key, value in trial.cell.items())
        print(f"  {os.path.relpath(trial.directory / 'pictures')}/    curves and cross-generations ({cell})")
    if best:
        place = os.path.relpath(best[-1].directory)
        for job, rest in (("evaluate", " --split val"), ("generate", ""), (f"train {recipe} --from", " --seeds 3")):
            print(f"  pairstream {job} {place}{rest}")
    if uri:
        print(f"  pairstream review --filter {directory.name}")
        print(f"  mlflow ui --backend-store-uri {uri}" if not uri.startswith("http") else f"  {uri}")


def _trials(plan: Sweep, directory: Path) -> list[Trial]:
    """What became of every trial that was begun."""
    ledger, found = Ledger(directory), []
    for entry in ledger.entries:
        place, outcome = directory / entry.name, ledger.outcome(entry)
        metrics = outcome.metrics if outcome and outcome.metrics else best_so_far(place, plan.metric, plan.direction)
        error = UNFINISHED if outcome is None else outcome.error
        stopped = outcome is not None and outcome.ending == "stopped"
        found.append(Trial(entry.cell, place, metrics, outcome.pairs if outcome else 0, error, stopped))
    return found


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
