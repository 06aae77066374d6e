"""pairstream prepare CORPUS [--source RAW] [--out DIR] [--workers N] [--json]

Writes a corpus as WebDataset shards and a manifest; mnist and celeba are made from their official files in RAW. A
directory that holds the corpus already is left as it is; one that an earlier call was writing when it was stopped is
finished.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from jobs.arguments import closing_json, parse, split_name
from jobs.progress import writing_progress


@dataclass(frozen=True)
class Options:
    source: Path | None = None
    """Directory of the official files, for a corpus that is made from some (mnist, celeba)."""
    out: Path | None = None
    """Directory to write; data/CORPUS where not given."""
    shard_mib: float = 256
    """Size of a shard in MiB."""
    workers: int = 0
    """Processes that write shards; 0: one per core, where there is enough for them to do."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        if not 0 < self.shard_mib <= 2**20:
            raise UserError(f"--shard-mib {self.shard_mib:g}: a shard has more than 0 MiB and at most 1 TiB")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: choose 1 or more, or 0 for one per core")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("prepare CORPUS", Options, arguments, about=__doc__)
    from pipeline.corpora import CORPORA, find, prepare

    name, rest = split_name("prepare", "corpus", arguments, list(CORPORA))
    options = parse(f"prepare {name}", Options, rest, about=__doc__)
    corpus = find(name)
    out = options.out or Path("data") / name
    from pipeline.manifest import open_manifest
    from pipeline.writing import SKIPPED

    started = time.monotonic()
    with writing_progress(name) as progress:
        written = prepare(name, out, int(options.shard_mib * 2**20), options.workers, progress, options.source)
    seconds = time.monotonic() - started
    manifest = open_manifest(out)
    rate = written.samples / seconds
    if written.kept:
        print(f"{written.kept} of {len(manifest.shards)} shards were there already")
    pace = f", {rate:,.0f} samples/s" if written.samples else ""
    print(
        f"{corpus.about}: {len(manifest):,} samples in {len(manifest.shards)} shards at {out} ({seconds:.1f} s{pace})"
    )
    for note in written.notes:
        print(note)
    if written.skipped:
        print(f"left out {written.skipped:,} samples that cannot be used: {out / SKIPPED} says why")
    print(f"next: pairstream inspect {out}")
    if options.json:
        closing_json(
            {
                "corpus": name, "out": out, "samples": len(manifest), "shards": len(manifest.shards),
                "fingerprint": written.fingerprint, "seconds": round(seconds, 3), "samples_written": written.samples,
                "samples_skipped": written.skipped,
                "shards_kept": written.kept, "samples_per_second": round(rate, 1), "notes": written.notes,
            }
        )  # fmt: skip
    return 0
