"""pairstream prepare CORPUS --out DIR [--json]

Writes a corpus as WebDataset shards and a manifest. A directory that holds the corpus already is left as it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from jobs.arguments import closing_json, parse, split_name


@dataclass(frozen=True)
class Options:
    out: Path | None = None
    """Directory to write; data/CORPUS where not given."""
    shard_mib: int = 256
    """Size of a shard in MiB."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("prepare CORPUS", Options, arguments, about=__doc__)
    from pipeline.corpora import CORPORA, find, prepare

    name, rest = split_name("prepare", "corpus", arguments, list(CORPORA))
    options = parse(f"prepare {name}", Options, rest, about=__doc__)
    corpus = find(name)
    out = options.out or Path("data") / name
    from pipeline.manifest import open_manifest

    started = time.monotonic()
    fingerprint = prepare(name, out, options.shard_mib * 2**20)
    seconds = time.monotonic() - started
    manifest = open_manifest(out)
    print(f"{corpus.about}: {len(manifest):,} samples in {len(manifest.shards)} shards at {out} ({seconds:.1f} s)")
    print(f"next: pairstream inspect {out}")
    if options.json:
        closing_json(
            {
                "corpus": name, "out": out, "samples": len(manifest), "shards": len(manifest.shards),
                "fingerprint": fingerprint, "seconds": round(seconds, 3),
            }
        )  # fmt: skip
    return 0
