"""pairstream index SHARD… --out DIR --map jpg=image cls=label 'caption.*.txt=caption' [--rules FILE.toml] [--json]

Writes a manifest for WebDataset tars that somebody else made; their bytes stay where they are. A SHARD is a tar or a
directory of tars. Lists members that no rule names, keys that come back, duplicates and damage; exits with 1 where a
shard is damaged (the samples in front of the damage are in the manifest).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from infra.errors import UserError, nearest
from jobs.arguments import closing_json, parse
from jobs.progress import bytes_progress

if TYPE_CHECKING:
    from pipeline.indexing import Indexed
    from pipeline.rules import Rules

SHOWN = 20
"""Entries of each kind that are printed; --json has them all."""


@dataclass(frozen=True)
class Options:
    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Tars, or directories whose *.tar are meant."""
    out: Path
    """Directory to write the manifest into."""
    map: tuple[str, ...] = ()
    """Which extension is which modality: jpg=image cls=label; caption.*.txt=caption where instances are numbered."""
    rules: Path | None = None
    """TOML file with the same in a table [modalities]: jpg = "image"."""
    split: Literal["train", "val", "test"] = "train"
    """Split of the shards whose file name begins with neither train, val nor test."""
    workers: int = 0
    """Processes that read shards; 0: one a core."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: choose 1 or more, or 0 for one per core")


def main(arguments: list[str]) -> int:
    options = parse("index", Options, arguments, about=__doc__)
    from pipeline.indexing import tars
    from pipeline.rules import Rules

    rules = Rules.read(options.map, options.rules)
    paths = tars(options.shards)
    result = _index(options, rules, paths)
    found = result.findings
    print(f"{result.samples:,} samples in {result.shards} shards: manifest at {options.out}")
    print(f"fingerprint {result.fingerprint}")
    for name, members in result.members.items():
        extensions = [extension for extension, modality in rules.modality_of.items() if modality == name]
        near = nearest(extensions[0], [e for e in found.unnamed if e]) if found.unnamed and not members else ""
        print(f"  {name} (.{', .'.join(extensions)}): {members:,} members{near}")
    for extension, count in found.unnamed.most_common(SHOWN):
        print(f"  no rule names {'.' + extension if extension else 'names without extension'}: {count:,} members")
    lists = {
        "interleaved": found.interleaved, "duplicates": found.duplicates, "refused": found.refused,
        "damaged": found.damaged,
    }  # fmt: skip
    for kind, entries in lists.items():
        for entry in entries[:SHOWN]:
            more = [str(entry[name]) for name in ("modality", "reason") if name in entry]
            print(f"{kind}: {entry['shard']} at byte {entry['offset']}: {' '.join([str(entry['key']), *more])}")
        if len(entries) > SHOWN:
            print(f"… {len(entries):,} {kind} in all")
    if found.incomplete:
        print(f"left out {found.incomplete:,} samples: keys come back and a shard is damaged, they may lack members")
    if options.json:
        closing_json(
            {
                "out": options.out, "samples": result.samples, "members": sum(result.members.values()),
                "modalities": result.members, "shards": result.shards, "fingerprint": result.fingerprint,
                "unnamed": dict(found.unnamed), **lists, "incomplete": found.incomplete,
            }
        )  # fmt: skip
    return 1 if found.damaged else 0


def _index(options: Options, rules: Rules, paths: list[Path]) -> Indexed:
    """The work itself, with a bar over the shards' bytes."""
    from pipeline.indexing import index

    done, total = 0, sum(path.stat().st_size for path in paths)
    with bytes_progress("indexing") as progress:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        return index(paths, options.out, rules, options.split, options.workers, advance)
