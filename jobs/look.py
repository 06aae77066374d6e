"""pairstream inspect DIR|URL [--no-verify] [--view split --fraction 0.05 --rows 10] [--sheet sheet.png] [--json]

What a data directory holds: samples per split and per pattern of present modalities, sizes, fingerprint. Verifies
every member's checksum and tar header (--no-verify skips that) and exits with 1 where something is damaged. --view
shows what a supervision view makes of it, and --rows the first rows of its stream, without reading a payload. --sheet
draws a few samples of every pattern with all their modalities.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.errors import UserError
from jobs.arguments import closing_json, parse, split_name
from jobs.progress import bytes_progress
from jobs.views import show_view

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.manifest import Manifest

SHOWN = 20
"""Damaged members, and patterns of a split, that are printed; --json has them all."""
OF_VIEW = ("fraction", "keep", "composition", "complete_share", "batch", "seed", "modalities", "rows")


@dataclass(frozen=True)
class Options:
    verify: bool = True
    """Read every member and compare its checksum and its tar header."""
    workers: int = 0
    """Processes that verify; 0: one per core, where there is enough for them to do."""
    view: Literal["declared", "split", "keep-one", "keep"] | None = None
    """Also show the rows that this supervision view yields."""
    split: str = "train"
    """With --view or --sheet: of which split."""
    modalities: str = ""
    """With --view: the modalities of the run, as in image,label; all where not given."""
    fraction: float = 1.0
    """With --view split or keep-one: the share of complete keys."""
    keep: float = 1.0
    """With --view keep: the probability that a modality is kept."""
    composition: Literal["natural", "balanced"] = "natural"
    """With --view: rows as they come, or fixed counts of complete and of one-modality rows in every step."""
    complete_share: float = 0.5
    """With --composition balanced: the share of a step's rows that are complete."""
    batch: int = 100
    """With --view: rows of a step."""
    seed: int = 0
    """With --view: which keys are complete, and the order of the rows."""
    rows: int = 0
    """With --view: list so many first rows of the stream."""
    sheet: Path | None = None
    """Draw samples into this picture (.png, .pdf or .svg): a column for each, a row per modality."""
    samples: int = 8
    """With --sheet: how many, at most 50; every pattern of present modalities has its turn, the most frequent first."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        for option, least in (("workers", 0), ("batch", 1), ("rows", 0)):
            if getattr(self, option) < least:
                raise UserError(f"--{option} {getattr(self, option)}: choose {least} or more")
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        lost = [name for name in given if name in OF_VIEW and self.view is None]
        if lost:
            raise UserError(f"--{lost[0].replace('_', '-')} needs --view: declared, split, keep-one or keep")
        if "split" in given and self.view is None and self.sheet is None:
            raise UserError("--split needs --view: declared, split, keep-one or keep; or --sheet: a picture to draw")
        if "samples" in given and self.sheet is None:
            raise UserError("--samples needs --sheet: a picture to draw, as in sheet.png")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("inspect DIR", Options, arguments, about=__doc__)
    name, rest = split_name("inspect", "directory or URL", arguments, ["data/digits"])
    options = parse("inspect DIR", Options, rest, about=__doc__)
    from rich.console import Console
    from rich.markup import escape

    from pipeline.description import described, readers
    from pipeline.manifest import open_manifest
    from pipeline.settings import Pairing
    from pipeline.sheet import check, draw

    pairing = Pairing(
        view=options.view or "declared", fraction=options.fraction, keep=options.keep,
        composition=options.composition, complete_share=options.complete_share,
    )  # fmt: skip
    if options.sheet:
        check(options.sheet, options.samples)
    manifest, console = open_manifest(name), Console()
    result = _contents(name, manifest, console)
    if options.view:
        result |= show_view(manifest, pairing, options, console)
    if options.sheet:
        modalities = described(manifest)
        draw(manifest, modalities, readers(manifest, modalities), options.sheet, options.samples, options.split)
        console.print(f"samples drawn: {escape(str(options.sheet))}", soft_wrap=True)
        result["sheet"] = options.sheet
    damage: list[dict[str, str | int]] = []
    if options.verify:
        damage = result["damaged"] = _verify(manifest, options.workers, console)
    if options.json:
        closing_json(result)
    return 1 if damage else 0


def _contents(name: str, manifest: Manifest, console: Console) -> dict[str, Any]:
    """Print what the manifest says; returns the same for the closing JSON."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from pipeline.imputing.marks import NAME as IMPUTED
    from pipeline.imputing.marks import about

    size, names = sum(shard.bytes for shard in manifest.shards), list(manifest.modalities)
    console.print(
        f"[bold]{escape(name)}[/] corpus {manifest.corpus}, {len(manifest):,} samples, {len(manifest.size):,} members, "
        f"{size:,} bytes in {len(manifest.shards)} shards"
    )
    console.print(f"fingerprint {manifest.fingerprint}")
    table = Table("split", "present", "samples", "payload bytes")
    patterns: dict[str, dict[str, int]] = {}
    bytes_before = np.concatenate([[0], np.cumsum(manifest.size, dtype=np.int64)])
    for split, rows in manifest.splits.items():
        kinds, kind, counts = np.unique(manifest.patterns(rows), return_inverse=True, return_counts=True)
        taken = np.bincount(kind, np.diff(bytes_before[manifest.first[rows.start : rows.stop + 1]]))
        present = ["+".join(n for m, n in enumerate(names) if bits >> m & 1) or "nothing" for bits in kinds.tolist()]
        patterns[split] = dict(zip(present, counts.tolist(), strict=True))
        for index in np.sort(np.argsort(-counts, kind="stable")[:SHOWN]).tolist():
            table.add_row(split, present[index], f"{counts[index]:,}", f"{taken[index]:,.0f}")
        if len(kinds) > SHOWN:
            table.add_row(split, f"… {len(kinds):,} patterns in all", "", "")
    console.print(table)
    made = about(manifest)
    if made:
        members = ", ".join(f"{count:,} {member}" for member, count in made["imputed"].items())
        whose = f"imputed by {made['by']['run']} at step {made['by']['step']:,}: {members or 'nothing'} ({IMPUTED})"
        console.print(escape(whose), soft_wrap=True)
    return {
        "directory": name, "corpus": manifest.corpus, "fingerprint": manifest.fingerprint, "samples": len(manifest),
        "members": len(manifest.size), "bytes": size, "shards": len(manifest.shards), "patterns": patterns,
        "imputed": made["imputed"] if made else {},
    }  # fmt: skip


def _verify(manifest: Manifest, workers: int, console: Console) -> list[dict[str, str | int]]:
    """Every damaged member, with a bar over the bytes; prints the first ones."""
    from rich.markup import escape

    from pipeline.verifying import foreign_shards, verify

    with bytes_progress("verifying") as progress:
        damage = verify(manifest, workers, progress)
    if not damage:
        console.print("[green]every member is what the manifest declares[/]")
    for entry in damage[:SHOWN]:
        where = f"{entry['shard']} at byte {entry['offset']}: {entry['key']} {entry['modality']}: {entry['reason']}"
        console.print(f"[red]damaged[/] {escape(where)}", highlight=False, soft_wrap=True)
    if len(damage) > SHOWN:
        console.print(f"… {len(damage):,} in all")
    foreign = foreign_shards(manifest, damage)
    if foreign:
        others = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
        said = f"{foreign[0]}{others}: nothing there is what was written; is this shard from another data set?"
        console.print(escape(said), soft_wrap=True)
    return damage
