"""pairstream inspect DIR [--verify] [--view split --fraction 0.05] [--json]

What a data directory holds: samples per split and per pattern of present modalities, sizes, fingerprint. Verifies
every member's checksum (--no-verify skips that) and exits with 1 where something is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.arguments import closing_json, parse, split_name

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.manifest import Manifest


@dataclass(frozen=True)
class Options:
    verify: bool = True
    """Read every member and compare its checksum."""
    view: Literal["declared", "split", "keep-one"] | None = None
    """Also show the rows that this supervision view yields for the training split."""
    fraction: float = 1.0
    """With --view: the share of complete keys."""
    seed: int = 0
    """With --view: which keys are complete."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("inspect DIR", Options, arguments, about=__doc__)
    name, rest = split_name("inspect", "directory", arguments, ["data/digits"])
    options = parse("inspect DIR", Options, rest, about=__doc__)
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from pipeline.config import Pairing
    from pipeline.manifest import open_manifest
    from pipeline.pairing import view

    manifest = open_manifest(Path(name))
    console = Console()
    console.print(
        f"[bold]{name}[/] corpus {manifest.corpus}, {len(manifest):,} samples, {len(manifest.size):,} members, "
        f"{sum(shard.bytes for shard in manifest.shards):,} bytes in {len(manifest.shards)} shards"
    )
    console.print(f"fingerprint {manifest.fingerprint}")
    names = list(manifest.modalities)
    table = Table("split", "present", "samples", "payload bytes")
    patterns: dict[str, dict[str, int]] = {}
    bytes_before = np.concatenate([[0], np.cumsum(manifest.size, dtype=np.int64)])
    for split, rows in manifest.splits.items():
        bits = manifest.patterns(rows)
        patterns[split] = {}
        sizes = np.diff(bytes_before[manifest.first[rows.start : rows.stop + 1]])
        for pattern in np.unique(bits):
            present = "+".join(n for m, n in enumerate(names) if int(pattern) >> m & 1) or "nothing"
            mine = bits == pattern
            patterns[split][present] = int(mine.sum())
            table.add_row(split, present, f"{mine.sum():,}", f"{sizes[mine].sum():,}")
    console.print(table)
    result = {
        "directory": name, "corpus": manifest.corpus, "fingerprint": manifest.fingerprint, "samples": len(manifest),
        "members": len(manifest.size), "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards), "patterns": patterns,
    }  # fmt: skip
    if options.view:
        pairing = Pairing(view=options.view, fraction=options.fraction)
        rows_of = view(manifest, "train", names, pairing, options.seed, 1).describe()
        result["view"] = rows_of
        console.print(
            f"view {options.view} at {options.fraction:g}: " + ", ".join(f"{n} {c:,}" for n, c in rows_of.items())
        )
    damage = _verify(manifest, console) if options.verify else []
    if options.verify:
        result["damaged"] = damage
    if options.json:
        closing_json(result)
    return 1 if damage else 0


def _verify(manifest: Manifest, console: Console) -> list[dict[str, str | int]]:
    """Every damaged member, with a progress bar over the samples."""
    from rich.progress import track

    from pipeline.shards import verify

    damage: list[dict[str, str | int]] = []
    steps = range(0, len(manifest), 1000)
    for start in track(steps, "verifying", console=console, transient=True):
        damage += verify(manifest, range(start, min(start + 1000, len(manifest))))
    if not damage:
        console.print("[green]every member is what the manifest declares[/]")
    for entry in damage[:20]:
        where = f"{entry['shard']} at byte {entry['offset']}: {entry['key']} {entry['modality']}"
        console.print(f"[red]damaged[/] {where}: {entry['reason']}")
    if len(damage) > 20:
        console.print(f"… and {len(damage) - 20} more")
    return damage
