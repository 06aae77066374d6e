"""What can be known of a job before it is sent: whether it exists, divides among its ranks, and finds its data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from infra.errors import nearest
from infra.storage import is_remote
from jobs import cli
from jobs.arguments import RUNS, early_options, split_name
from jobs.submitted import RECORDS, free_name
from jobs.submitting import Job
from jobs.submitting.site import Cluster
from pipeline.recipes import OF_DATA, RECIPES, recipe, sweepable
from pipeline.settings import check

OWN = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Directories that every machine has of its own."""


def named(inner: list[str], target: str) -> None:
    """Raise UserError unless this is a job, and names a recipe where it needs one."""
    check(bool(inner), f"submit needs the job after --, e.g. pairstream submit {target} -- train digits")
    name, rest = inner[0], inner[1:]
    check(name in cli.JOBS, f"no job {name!r}" + nearest(name, list(cli.JOBS)))
    check(name != "submit", "submit cannot submit itself; name another job after --")
    if name == "train":
        early = early_options(rest)
        if not (early.resume or early.source):  # a run of its own has all that it needs
            recipe(split_name(name, "recipe", rest, [*RECIPES, *OF_DATA])[0], early.data)
    if name == "sweep":
        recipe(split_name(name, "recipe", rest, sweepable())[0], early_options(rest).data)


def planned(inner: list[str], target: str, options: Cluster, sees: Callable[[str], list[str]]) -> Job:
    """The job with the directory in which it goes on after every restart.

    `sees` says what there is to warn of about a path that the job needs, or raises. Raises UserError where the job
    cannot work: an unknown option, a world that does not divide the batch.
    """
    named(inner, target)
    name, words = free_name(inner), list(inner)
    if inner[0] in ("train", "sweep"):
        out = early_options(inner[1:]).out
        check(out is not None or "--resume" not in inner, "--resume: name the run that is to go on with --out DIR")
        if out is None:
            words += ["--out", str(RUNS / name)]
    nodes, ranks, paths, run = 1, 1, list[str](), None
    if inner[0] == "train":
        from jobs.train import read
        from pipeline.train import check_world

        train = read(words[1], words[2:])[0]
        check(train.seeds == 1, "--seeds: on a cluster each seed is a job of its own; leave it away and give --seed")
        check(
            train.ranks == 1,
            f"ranks are the cluster's: pairstream submit {target} --ranks {train.ranks} -- train …, without --ranks "
            "after --",
        )
        nodes, ranks = options.nodes, options.per_node
        check_world(train.run, nodes * ranks)
        run = train.run
    elif inner[0] == "sweep":
        from jobs.sweep import read as read_sweep

        run = read_sweep(words[1:]).options.run
    if run:
        paths = [place for place in (run.data, *dict(run.mixed())) if not is_remote(place)]
    warnings = [line for path in [*paths, str(RUNS)] for line in sees(path)]
    return Job(name, (RECORDS / name).absolute(), tuple(words), nodes, ranks, tuple(dict.fromkeys(warnings)))


def seen_from_nodes(path: str) -> list[str]:
    """Warnings about a path that compute nodes must see as this machine does. Raises UserError where there is none."""
    whole = os.path.abspath(path)
    check(path == str(RUNS) or Path(whole).exists(), f"{path} does not exist: prepare the data first, or give --data")
    own = [place for place in OWN if Path(whole).is_relative_to(place)]
    return [f"{whole}: {own[0]} is each machine's own; compute nodes may not see what is there"] if own else []
