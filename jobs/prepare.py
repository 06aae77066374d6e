"""pairstream prepare CORPUS [--source RAW [--download]] [--out DIR] [--workers N] [--json]

Writes a corpus as WebDataset shards and a manifest, most of them from their official files in RAW (`prepare CORPUS`
alone says which); --download fetches these first, where they have a public address. `prepare files` takes data of your
own: RAW/pairstream.toml says what there is. A directory that holds the corpus already is left as it is; one that an
earlier call was writing when it was stopped is finished.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from jobs.arguments import closing_json, parse, split_name
from jobs.progress import bytes_progress, writing_progress


@dataclass(frozen=True)
class Options:
    source: Path | None = None
    """Directory of the official files, for a corpus that is made from some."""
    download: bool = False
    """Fetch the official files into --source (data/CORPUS.raw where not given) first, checked by their sums; what
    arrived before an interruption is kept."""
    out: Path | None = None
    """Directory to write; data/CORPUS where not given."""
    shard_mib: float = 64
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
    from pipeline.manifest import NAME, open_manifest
    from pipeline.writing.merging import SKIPPED

    source = options.source
    if options.download and not (out / NAME).is_file():
        source = _download(name, source or out.with_name(f"{out.name}.raw"))
    started = time.monotonic()
    with writing_progress(name) as progress:
        written = prepare(name, out, int(options.shard_mib * 2**20), options.workers, progress, source)
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


def _download(name: str, directory: Path) -> Path:
    """The official files of a corpus into a directory; raises UserError where they have no public address."""
    from infra.download import fetch
    from pipeline.corpora.downloads import BY_CORPUS, addresses

    files = addresses(name)
    if not files:
        raise UserError(
            f"--download: no public address is known for the files of {name}, only for those of {', '.join(BY_CORPUS)}"
        )
    with bytes_progress(f"fetching {name}") as progress:
        fetch(files, directory, progress)
    return directory
