"""pairstream impute RUN --data DIR --out OUT [--only label] [--doubt label=0.1] [--ranks 2] [--json]

Completes a partially paired data set by a trained model: new shards in OUT, which train as any others do. What is there
is copied byte for byte; what is missing the model makes of it, and OUT/imputed.parquet says so: key, modality, spread
over the samples of z (0 to 1), variance of the log importance weights, and whose work it is. --doubt leaves missing
what the model is not sure of. --pairing.view hides modalities first, as in training. A call that was cut off is taken
up by the same command.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from infra.allocation import nodes
from infra.distributed import is_worker, launch
from infra.errors import UserError
from jobs.arguments import closing_json, find_run, parse, split_list, split_name
from jobs.progress import writing_progress
from pipeline.settings import Pairing


@dataclass(frozen=True)
class Options:
    data: str
    """Directory or URL of the data to complete; it may lack modalities of the model altogether."""
    out: Path
    """Directory to write."""
    splits: str = "train"
    """Splits to complete, as in train,val; the others are copied as they are."""
    only: str = ""
    """Modalities to fill in, as in label,caption; all that the model has where not given."""
    pairing: Pairing = field(default_factory=Pairing)
    """A view of these splits; what it hides counts as missing and is not copied. A sample whose modalities it shows
    apart (split) becomes one for each, KEY/MODALITY."""
    value: Literal["mean", "sample"] = "mean"
    """mean: what all samples of z say together, the likeliest class or text. sample: what one of them says; classes,
    attributes and short texts are drawn."""
    samples: int = 8
    """Samples of z for each row, from q(z | what is there); at least 2."""
    doubt: str = ""
    """Leave missing what has a larger spread: 0.2 for all, or label=0.1,image=0.05."""
    seed: int = 0
    """Seed of the samples."""
    checkpoint: Literal["best", "last"] = "best"
    """best: the one that the run's own validation metric (train.best) picked. last: the newest one."""
    shard_mib: float = 16
    """Size of a shard in MiB: what a kill undoes at most on each rank."""
    ranks: int = 1
    """Processes on this machine that share the work; at most one per core."""
    port: int = 0
    """Port at which the ranks meet; 0 takes a free one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a device, otherwise the CPU."""
    threads: int = 1
    """CPU threads of each rank; with as many the bytes are the same on any number of ranks."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        if not 0 < self.shard_mib <= 2**20:
            raise UserError(f"--shard-mib {self.shard_mib:g}: a shard has more than 0 MiB and at most 1 TiB")
        if self.threads < 1:
            raise UserError(f"--threads {self.threads}: choose at least 1")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("impute RUN", Options, arguments, about=__doc__)
    name, rest = split_name("impute", "run", arguments, ["a directory", "a name under runs/"])
    options = parse("impute RUN", Options, rest, about=__doc__)
    directory = find_run(name)
    if (options.ranks > 1 or nodes()[0] > 1) and not is_worker():
        return launch([sys.executable, "-m", "jobs.cli", "impute", name, *rest], options.ranks, options.port)
    from infra.distributed import start
    from pipeline import config
    from pipeline.evaluate.run import checkpoint_of
    from pipeline.imputing.job import prepared
    from pipeline.imputing.run import impute
    from pipeline.imputing.settings import Settings
    from pipeline.manifest import open_manifest
    from pipeline.writing.merging import SKIPPED

    # a rank that has fewer or smaller shards waits for the others as long as it takes
    world = start(options.device, options.threads, timeout=timedelta(days=30))
    run, checkpoint = config.load(directory / "run.json"), checkpoint_of(directory, options.checkpoint)
    members = [modality.member(modality_name) for modality_name, modality in run.modalities.items()]
    settings = Settings(
        tuple(split_list(options.splits)), tuple(split_list(options.only)), options.pairing, options.value,
        options.samples, thresholds(options.doubt, members), options.seed,
    )  # fmt: skip
    job = prepared(run, directory, checkpoint, options.data, settings)
    started = time.monotonic()
    if not world.is_main:
        impute(job, options.out, world, int(options.shard_mib * 2**20))
        return 0
    for note in job.notes:
        print(f"note: {note}")
    with writing_progress("impute") as progress:
        result = impute(job, options.out, world, int(options.shard_mib * 2**20), progress)
    assert result is not None, "rank 0 has it"
    seconds, manifest = time.monotonic() - started, open_manifest(options.out)
    written = result.written
    if written.kept:
        print(f"{written.kept} of {len(manifest.shards)} shards were there already")
    rate = written.samples / seconds
    pace = f", {rate:,.0f} samples/s" if written.samples else ""
    print(f"{len(manifest):,} samples in {len(manifest.shards)} shards at {options.out} ({seconds:.1f} s{pace})")
    for member in dict.fromkeys(members):
        made, doubtful, not_made = (
            one.get(member, 0) for one in (result.imputed, result.doubtful, result.unanswerable)
        )
        left = f", left {doubtful:,} that are doubtful" * (doubtful > 0)
        left += f", left {not_made:,} that this model cannot make of what is there" * (not_made > 0)
        print(f"  {member}: imputed {made:,}{left}")
    if written.skipped:
        print(f"left out {written.skipped:,} samples that are damaged: {options.out / SKIPPED} says why")
    print(f"next: pairstream inspect {options.out}")
    if options.json:
        closing_json(
            {
                "run": directory, "step": checkpoint.step, "data": options.data, "out": options.out,
                "samples": len(manifest), "shards": len(manifest.shards), "fingerprint": written.fingerprint,
                "imputed": result.imputed, "doubtful": result.doubtful, "unanswerable": result.unanswerable,
                "samples_written": written.samples, "samples_skipped": written.skipped, "shards_kept": written.kept,
                "ranks": world.size, "seconds": round(seconds, 3), "samples_per_second": round(rate, 1),
                "notes": job.notes,
            }
        )  # fmt: skip
    return 0


def thresholds(text: str, members: list[str]) -> dict[str, float]:
    """The largest spread by member, of --doubt. Raises UserError where it is not understood."""
    found: dict[str, float] = {}
    for entry in split_list(text):
        name, _, number = entry.rpartition("=")
        try:
            most = float(number)
        except ValueError:
            raise UserError(f"--doubt {entry}: give a number from 0 to 1, or NAME=NUMBER, as in label=0.1") from None
        found |= {name: most} if name else dict.fromkeys(members, most)
    return found
