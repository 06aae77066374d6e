"""pairstream train RECIPE [--pairing.fraction 0.1] [--objective.k 2] [--optim.lr 3e-4] …

Trains a recipe. Every field of its configuration is an option. The run lands in --out (runs/RECIPE-DATE-TIME), is
an MLflow run, and can be stopped and continued at any time. Expect half a minute for `pairstream train digits` on a
laptop.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from operator import sub
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from infra.allocation import nodes
from infra.distributed import check_ranks, is_worker, launch
from infra.errors import UserError
from infra.preemption import REQUEUE, SIGNALS
from jobs.arguments import RUNS, closing_json, early_options, find_run, parse, refuse_changes, split_name
from pipeline import config
from pipeline.config import Run
from pipeline.recipes import OF_DATA, RECIPES, recipe
from pipeline.settings import check

if TYPE_CHECKING:
    from pipeline.train import Result


NO_LOSS = (0, UserError.code, REQUEUE, *(128 + number for number in SIGNALS))
"""Codes of ranks that need no restart: they are done, the user has to mend something, or asked them to end."""


@dataclass(frozen=True)
class Options:
    run: Annotated[Run, tyro.conf.arg(name="")]
    out: Path | None = None
    """Directory of the run; runs/RECIPE-DATE-TIME where not given."""
    ranks: int = 1
    """Processes on this machine that share the work; at most one per core."""
    restarts: int = 0
    """How often --ranks that were lost (killed, or out of memory) are started again, from the newest checkpoint."""
    port: int = 0
    """Port at which the ranks meet; 0 takes a free one."""
    resume: bool = False
    """Continue the run in --out, or the recipe's newest unfinished one, from its newest whole checkpoint."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Start from this run's logged configuration instead of the recipe's (directory, or name under runs/)."""
    weights: bool = False
    """With --from: start from that run's best weights as well."""
    seeds: int = 1
    """Repeat with so many seeds and report mean and standard deviation."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        print("recipes: " + ", ".join([*RECIPES, *OF_DATA]) + "\npairstream train RECIPE --help lists every field")
        return 0
    name, rest = split_name("train", "recipe", arguments, [*RECIPES, *OF_DATA])
    options, directory = read(name, rest)
    directory = directory or RUNS / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    if (options.ranks > 1 or nodes()[0] > 1) and not is_worker():
        return _start_ranks(name, rest, directory, options)
    return _train(options, directory)


def read(name: str, rest: list[str]) -> tuple[Options, Path | None]:
    """The options of a training, and the directory that it goes on in or was given. Raises UserError."""
    early, saved = early_options(rest), None
    directory = early.out
    if early.resume:
        directory = directory or _unfinished(name)
        check((directory / "run.json").is_file(), f"there is no run to resume in {directory}")
        saved = default = config.load(directory / "run.json")
        check(
            saved.recipe == name,
            f"{directory} is a run of {saved.recipe}: continue it with pairstream train {saved.recipe} --resume",
        )
    elif early.source:
        default = config.load(find_run(early.source) / "run.json")
    else:
        default = recipe(name, early.data)
    options = parse(f"train {name}", Options, rest, Options(run=default), about=__doc__)
    check(options.seeds >= 1 and options.ranks >= 1, "--seeds and --ranks must be at least 1")
    check(options.restarts >= 0, "--restarts must not be negative")
    check(
        not options.restarts or (options.seeds == 1 and (options.ranks > 1 or nodes()[0] > 1)),
        "--restarts looks after the ranks of one run: ask for some with --ranks, and leave --seeds away",
    )
    check(
        not (options.resume and options.seeds > 1),
        "--resume continues one run: name the seed's directory with --out, and leave --seeds away",
    )
    check(not options.weights or options.source is not None, "--weights needs --from RUN")
    if saved:
        refuse_changes(saved, options.run)
    return options, directory


def _unfinished(name: str) -> Path:
    """The newest run of a recipe under runs/ that has steps left. Raises UserError where there is none."""
    from infra.checkpoint import Checkpoints

    for path in sorted(RUNS.glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            run = config.load(path)
        except UserError:
            continue
        if run.recipe == name and Checkpoints(path.parent / "checkpoints").reached() < run.train.steps:
            return path.parent
    raise UserError(f"no unfinished run of {name} under {RUNS}/: name one with --out DIR")


def _start_ranks(name: str, rest: list[str], directory: Path, options: Options) -> int:
    """Check what can be checked once, then run this very command on several ranks."""
    from pipeline.manifest import check_shards, open_manifest
    from pipeline.record import settle
    from pipeline.train import check_world

    check_ranks(options.ranks)
    check_world(options.run, options.ranks * nodes()[0])
    check_shards(open_manifest(options.run.data), options.run.train.damage)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}); choose another --out") from None
    command = [sys.executable, "-m", "jobs.cli", "train", name, *rest, "--out", str(directory)]
    code = launch(command, options.ranks, options.port)
    for number in range(1, options.restarts + 1):
        if code in NO_LOSS:
            break
        print(f"the ranks ended with code {code}: restart {number} of {options.restarts}", file=sys.stderr, flush=True)
        if "--resume" not in command and (directory / "run.json").is_file():
            command.append("--resume")
        code = launch(command, options.ranks, options.port)
    if code not in (0, REQUEUE) and nodes()[1] == 0:  # its own node's launcher, where rank 0 could not say so
        settle(directory, "FAILED")
    return code


def _train(options: Options, directory: Path) -> int:
    """Train with each seed on this rank; rank 0 talks."""
    from infra.distributed import start
    from pipeline.train import train

    world = start(options.run.engine.device, options.run.engine.threads)
    results: list[Result] = []
    for number in range(options.seeds):
        run = replace(options.run, seed=options.run.seed + number)
        place = directory if options.seeds == 1 else directory.with_name(f"{directory.name}-seed{run.seed}")
        ends: list[float] = []
        with _progress(run, place, quiet=not world.is_main) as shown:

            def on_step(step: int, loss: float, ends: list[float] = ends, shown: Any = shown) -> None:
                ends.append(time.perf_counter())
                if shown:
                    shown(step, loss)

            result = train(run, place, resume=options.resume, weights_from=_weights(options), on_step=on_step)
        results.append(result)
        pace = _pace(ends)
        if world.is_main:
            _report(result, pace)
        if result.status == "preempted":
            break
    if world.is_main:
        spread = _spread(results)
        ended = sum(result.status != "preempted" for result in results)
        if ended > 1:
            for name, (mean, deviation) in spread.items():
                print(f"{name}: {mean:.4f} ± {deviation:.4f} over {ended} seeds")
        if options.json:
            closing_json(_json(results, spread, world.size, pace))
    return REQUEUE if results[-1].status == "preempted" else 0


def _weights(options: Options) -> Any:
    """The best checkpoint of the run that this one starts from, where weights were asked for."""
    if not (options.weights and options.source):
        return None
    from infra.checkpoint import Checkpoints

    best = Checkpoints(find_run(options.source) / "checkpoints").best()
    check(best is not None, f"run {options.source} has no checkpoint to take weights from")
    return best


def _progress(run: Run, directory: Path, quiet: bool) -> Any:
    """A progress bar on a terminal, a line now and then elsewhere; a context that yields `on_step`."""
    if quiet:
        return nullcontext(None)
    from jobs.progress import training_progress

    return training_progress(run.train.steps, directory.name)


def _pace(ends: list[float]) -> float:
    """The median time in seconds from one step's end to the next; NaN where there are fewer than two."""
    return statistics.median(map(sub, ends[1:], ends)) if len(ends) > 1 else math.nan


def _report(result: Result, pace: float) -> None:
    for name, value in sorted(result.metrics.items()):
        print(f"  {name:<44} {value:.4f}")
    best = (
        f", best {result.best['metric']} {result.best['value']:.4f} at step {result.best['step']}"
        if result.best
        else ""
    )
    step = f"{pace:.4f} s a step, " if math.isfinite(pace) else ""
    took = f"after {result.seconds:.1f} s ({step}{result.wait:.1%} of the loop waiting for data)"
    print(f"{result.status} at step {result.step} {took}: {result.directory}{best}")
    if result.status == "preempted":
        print(f"continue it with --resume --out {result.directory}")


def _spread(results: list[Result]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each validation metric over the seeds; NaN of one seed."""
    done = [result.metrics for result in results if result.status != "preempted"]
    values = {name: [metrics[name] for metrics in done] for name in sorted(done[0])} if done else {}
    return {n: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else math.nan) for n, v in values.items()}


def _json(results: list[Result], spread: dict[str, tuple[float, float]], ranks: int, pace: float) -> dict[str, Any]:
    last = results[-1]
    return {
        "run": last.directory, "status": last.status, "steps": last.step, "loss": last.loss, "ranks": ranks,
        "metrics": last.metrics, "best": last.best, "rows": last.rows, "seconds": round(last.seconds, 3),
        "seconds_per_step": round(pace, 5), "wait": round(last.wait, 4),
        "seeds": [{"run": r.directory, "metrics": r.metrics, "best": r.best} for r in results],
        "mean": {name: mean for name, (mean, _) in spread.items()},
        "sd": {name: deviation for name, (_, deviation) in spread.items()},
    }  # fmt: skip
