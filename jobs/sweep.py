"""pairstream sweep RECIPE [--over supervision | --grid KEY=V,V … | --sample KEY=loguniform:0.1:100 --trials 50]

Trains many trials, with Ray Tune: one MLflow run with a child per trial, each the same training that `pairstream train`
does, then evaluated once on test data. Ends with a table, a CSV file and a picture. --scheduler asha ends poor trials
early, --scheduler pbt changes λ, k, β or the learning rate in mid-run; --search optuna or bohb chooses what to try.
Killed at any moment (driver, trial, machine), --resume --out DIR goes on: nothing is trained twice. With --join --out
DIR all processes that say so share a sweep without Ray, such as the tasks of a job array. Expect two to five minutes
for `pairstream sweep digits` on two cores.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infra.distributed import cores
from infra.errors import UserError
from infra.preemption import REQUEUE
from infra.storage import absolute
from jobs.arguments import RUNS, closing_json, early_options, parse, refuse_changes, split_name
from jobs.tuning.parent import Ended, at_work, conclude, is_fresh, look_further, parent_run
from jobs.tuning.written import PLAN, draws_of, grid_of, load
from pipeline import config
from pipeline.config import Run
from pipeline.recipes import SWEEPS, recipe, sweepable
from pipeline.recipes.sweep import READY, Scheduler, Search, Sweep
from pipeline.settings import check

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
    """How often a trial goes on from its checkpoint after its worker or its machine was lost; with --join also after
    it has failed."""
    stall: float = 60.0
    """Minutes without a step after which a trial hangs: its worker ends, and counts as lost. 0 is never."""
    ray: str = ""
    """Address of a Ray cluster that runs already (auto: the one that this machine belongs to)."""
    out: Path | None = None
    """Directory of the sweep; runs/sweep-RECIPE-DATE-TIME where not given."""
    resume: bool = False
    """Continue the sweep in --out: finished trials are not run again, cut ones go on from their checkpoints."""
    join: bool = False
    """Share the sweep in --out, without Ray, with all processes that say so: each trains the next trial that no other
    has; the first one begins the sweep."""
    json: bool = False
    """Print one JSON object as the last line."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    plan: Sweep
    directory: Path
    options: Options
    known: bool
    """Whether the sweep has begun in its directory, and the plan is what it says."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        print("recipes: " + ", ".join(sweepable()) + "\npairstream sweep RECIPE --help lists every field")
        return 0
    asked = read(arguments)
    options = asked.options
    check(
        1 <= options.cpus <= cores() or bool(options.ray),
        f"--cpus {options.cpus}: this machine lets us use {cores()} cores",
    )
    command = f"pairstream sweep {' '.join(arguments)}".strip()
    if options.join:
        from jobs.tuning.joined import begin

        with at_work(asked.directory, joined=True):
            if plan := begin(asked.plan, asked.directory, asked.known):
                return _join(replace(asked, plan=plan), command)
        return main(arguments)  # others have begun it meanwhile: what it is stands in its directory
    if not (asked.known or is_fresh(asked.directory)):
        raise UserError(
            f"{asked.directory} is not an empty directory: continue a sweep with --resume, or choose another --out"
        )
    with at_work(asked.directory, joined=False):
        return _drive(asked, command)


def read(arguments: list[str]) -> Asked:
    """The sweep that a command line asks for. Raises UserError."""
    name, rest = split_name("sweep", "recipe", arguments, sweepable())
    early = early_options(rest)
    check(early.out is not None or "--resume" not in rest, "--resume needs --out DIR of the sweep to continue")
    check(early.out is not None or "--join" not in rest, "--join needs --out DIR, which all processes name")
    saved = None
    if early.out and (early.resume or ("--join" in rest and (early.out / PLAN).is_file())):
        saved = load(early.out)
    default = saved.run if saved else SWEEPS[name]().run if name in SWEEPS else recipe(name, early.data)
    options = parse(f"sweep {name}", Options, rest, Options(run=default), about=__doc__)
    amounts = (options.gpus, options.hours, options.retries, options.stall)
    check(min(amounts) >= 0, "--gpus, --hours, --retries, --stall: 0 or more")
    check(
        options.pack >= 0 and not (options.pack and (options.ranks > 1 or options.ray or options.hours)),
        "--pack trains in this process: leave --ranks, --ray and --hours away",
    )
    check(
        not options.join or not (options.pack or options.ranks > 1 or options.ray or options.hours or options.gpus),
        "--join trains one trial after the other in this process, on the GPU that it sees: leave --pack, --ranks, "
        "--ray, --hours and --gpus away",
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
    check(
        not options.pack or (plan.scheduler in ("none", "asha") and plan.search == "random"),
        "--pack knows the scheduler asha and draws by chance: leave other --scheduler and --search away",
    )
    check(
        not options.join or (plan.scheduler == "none" and plan.search == "random"),
        "--join needs trials that are known beforehand: leave --scheduler and --search away, which need one driver",
    )
    return Asked(plan, directory, options, saved is not None)


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
    ready = READY[options.over](plan.run).grid if options.over else {}
    asked = {
        "over": ({key: list(values) for key, values in ready.items()}, dict(saved.grid)),
        "grid": (dict(grid_of(options.grid)), dict(saved.grid)),
        "sample": (dict(draws_of(options.sample)), dict(saved.sample)),
        "scheduler": (options.scheduler if options.scheduler != "none" else "", saved.scheduler),
        "search": (options.search if options.search != "random" else "", saved.search),
        "metric": (options.metric, saved.metric),
    }
    for key, (wanted, had) in asked.items():
        check(not wanted or wanted == had, f"--resume: the {key} of {directory} was {had}; leave --{key} away")
    return replace(plan, trials=max(saved.trials, options.trials))


def _drive(asked: Asked, command: str) -> int:
    """The sweep with this process as its only driver."""
    from jobs.tuning.driver import Resources, run_trials
    from jobs.tuning.packed import run_packed

    options, directory = asked.options, asked.directory
    resources = Resources(
        options.cpus, options.gpus, options.ranks, options.hours, options.retries, options.stall, options.ray
    )
    with parent_run(asked.plan, directory) as parent:

        def lost() -> None:
            where = options.ray or "this machine"
            print(
                f"Ray answers no longer at {where}: go on with pairstream sweep {parent.plan.run.recipe} --resume "
                f"--out {os.path.relpath(directory)}, on another cluster (--ray) or without one",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            if parent.tracker:
                parent.tracker.close("KILLED", timeout=20)
            os._exit(REQUEUE)  # the main thread hangs in Ray

        if options.pack:
            run_packed(parent.plan, directory, parent.identity, options.pack)
        else:
            run_trials(parent.plan, directory, parent.identity, resources, lost)
        ended = conclude(parent, command)
    return _told(asked, ended)


def _join(asked: Asked, command: str) -> int:
    """This process's part of a sweep that has begun."""
    from jobs.tuning.joined import join

    options, directory = asked.options, asked.directory
    place = os.path.relpath(directory)
    try:
        joined = join(asked.plan, directory, options.retries, options.stall, command)
    except SystemExit as end:
        print(f"told to stop, and saved: pairstream sweep {asked.plan.run.recipe} --join --out {place} goes on")
        if options.json:
            closing_json({"sweep": directory, "cut": True})
        return REQUEUE if end.code == REQUEUE else 1
    if joined.ended:
        return _told(asked, joined.ended)
    if joined.elsewhere:
        print(f"others are still at work on {', '.join(joined.elsewhere)}; who is the last to end makes the table")
    else:
        print(f"all trials are over: {place}/table.csv has them")
    if options.json:
        closing_json({"sweep": directory, "trained": joined.trained, "elsewhere": joined.elsewhere})
    return 0


def _told(asked: Asked, ended: Ended) -> int:
    """Say what came of a sweep. Returns the job's exit code."""
    look_further(asked.directory, ended)
    if asked.options.json:
        closing_json(
            {
                "sweep": asked.directory, "metric": ended.plan.metric, "best": ended.best, "trials": ended.trials,
                "baselines": ended.baselines, "failed": len(ended.failed), "cut": ended.cut, "files": ended.files,
            }
        )  # fmt: skip
    return ended.code
