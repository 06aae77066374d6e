"""pairstream JOB …: finds the job's file and runs it. Knows no library, so that --help answers at once."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

from infra.errors import UserError, nearest

JOBS = {
    "prepare": ("jobs.prepare", "write a corpus as shards and a manifest"),
    "index": ("jobs.index", "a manifest for WebDataset tars that somebody else made"),
    "inspect": ("jobs.look", "what a data directory holds; verify its checksums"),
    "recipes": ("jobs.recipes", "list the recipes and sweeps that can be run"),
    "train": ("jobs.train", "train a recipe, on one rank or several; resume; repeat with other seeds"),
    "evaluate": ("jobs.evaluate", "all metrics of a run's best checkpoint on a split"),
    "generate": ("jobs.generate", "ask a trained model: any modalities in, any others out"),
    "studio": ("jobs.studio", "a page to ask a trained model and to drag its latent dimensions"),
    "embed": ("jobs.embed", "latent means and deviations of a data set, as Parquet"),
    "search": ("jobs.search", "nearest neighbours of anything in such a file, across modalities"),
    "impute": ("jobs.impute", "complete a data set by a trained model"),
    "reproduce": ("jobs.reproduce", "make a table of the papers again, beside their numbers"),
    "sweep": ("jobs.sweep", "train a grid of trials with Ray Tune, one MLflow run each"),
    "review": ("jobs.review", "compare runs; deliver what MLflow has not got yet"),
    "doctor": ("jobs.doctor", "check a node, or all of an allocation, before a long run"),
    "submit": ("jobs.submit", "start any job in the background and look after it"),
    "bench": ("jobs.bench", "measure speed against a peer or a limit"),
}


def usage() -> str:
    """The list of jobs."""
    width = max(map(len, JOBS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in JOBS.items()]
    return "\n".join(
        [
            "usage: pairstream JOB [OPTIONS]",
            "",
            "Trains multimodal VAEs on data in which most samples lack some of their modalities.",
            "",
            *lines,
            "",
            "pairstream JOB --help shows a job's options; every job takes --json.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a job; returns its exit code. 2 means that the user can mend it, and a sentence says how."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = arguments
    try:
        if name not in JOBS:
            raise UserError(f"no job {name!r}" + nearest(name, list(JOBS)))
        code: int = import_module(JOBS[name][0]).main(rest)
        return code
    except UserError as error:
        if error.shared and os.environ.get("RANK", "0") != "0":
            return error.code  # rank 0 says it
        print(f"pairstream: {error}", file=sys.stderr)
        if "--json" in rest:
            print(json.dumps({"job": name, "error": str(error)}))
        return error.code
    except SystemExit as ended:  # the option parser has said what was wrong
        if ended.code == 2 and "--json" in rest and os.environ.get("RANK", "0") == "0":
            print(json.dumps({"job": name, "error": "these options cannot be read; stderr says why"}))
        raise
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("pairstream: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
