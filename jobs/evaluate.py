"""pairstream evaluate RUN [--split test] [--samples 1000] [--pictures] [--ranks 2] [--json]

Every metric that a run's modalities and system define, of its best checkpoint on a split, each with its standard error
over rows: the joint ELBO and its parts in nats (λ = β = 1), the accuracy of each label from every subset of the other
modalities; coherence and synergy by oracle classifiers (trained once for the data), linear probes and divergences of
the latent space, SSIM and PSNR of pictures, perplexity, BLEU and chrF of texts, correlation of pictures and captions;
log-likelihoods and the variance of their log weights, by importance sampling. The numbers do not depend on the number
of ranks.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.distributed import is_worker, launch
from jobs.arguments import closing_json, find_run, parse, split_name
from jobs.progress import writing_progress
from pipeline.settings import check


@dataclass(frozen=True)
class Options:
    split: str = "test"
    """Which split to read."""
    samples: int = 10
    """Importance samples a row for log p(x_i), log p(X) and log p(x_i | x_j), of which the first two are bounds that
    few samples make too low (MVAE: 1000, CelebA 100); 0 leaves them out."""
    checkpoint: Literal["best", "last"] = "best"
    """best: the one that the run's own validation metric (train.best) picked. last: the end of training."""
    few: int = 0
    """Look at so many rows only, evenly spaced over the split (log-likelihoods take long); 0 is all."""
    pictures: bool = False
    """Draw the album of the best checkpoint on this split: samples, cross-generations, latent traversals, texts."""
    ranks: int = 1
    """Processes on this machine that share the work; at most one per core."""
    port: int = 0
    """Port at which the ranks meet; 0 takes a free one."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("evaluate RUN", Options, arguments, about=__doc__)
    name, rest = split_name("evaluate", "run", arguments, ["a directory", "a name under runs/"])
    options = parse("evaluate RUN", Options, rest, about=__doc__)
    check(options.samples >= 0, f"--samples {options.samples}: choose 0 or more")
    check(options.few >= 0, f"--few {options.few}: choose 0 (all) or more")
    check(options.ranks >= 1, f"--ranks {options.ranks}: choose 1 or more")
    directory = find_run(name)
    if options.ranks > 1 and not is_worker():
        return launch([sys.executable, "-m", "jobs.cli", "evaluate", name, *rest], options.ranks, options.port)
    from infra.distributed import start
    from pipeline.evaluate.run import evaluate_run

    shown = writing_progress(f"evaluate {directory.name}") if int(os.environ.get("RANK", "0")) == 0 else nullcontext()
    with shown as progress:
        result = evaluate_run(
            directory, options.split, samples=options.samples, which=options.checkpoint, few=options.few,
            progress=progress,
        )  # fmt: skip
    if start().is_main:
        print(f"{directory} at step {result.step}, split {options.split}")
        for metric, score in sorted(result.scores.items()):
            spread = "" if math.isnan(score.error) else f"± {score.error:.4f}"
            print(f"  {metric:<52} {score.value:>12.4f} {spread}")
        drawn = _draw(directory, options.split) if options.pictures else []
        if options.json:
            told = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
            closing_json(told | {"metrics": result.metrics, "pictures": drawn})
    return 0


def _draw(directory: Path, split: str) -> list[Path]:
    from pipeline import config
    from pipeline.data import check_data
    from pipeline.pictures import album, divergences

    run = config.load(directory / "run.json")
    manifest = check_data(run)
    files = album(run, directory, manifest, split, divergences(run, directory, manifest, split))
    for file in files:
        print(f"drawn: {file}")
    return files
