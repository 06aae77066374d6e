"""What a supervision view makes of a data directory: tables for `pairstream inspect --view`. Reads no payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.look import Options
    from pipeline.manifest import Manifest
    from pipeline.pairing import View
    from pipeline.settings import Pairing

TOGETHER = 4096
"""Rows of the stream that are worked out at a time."""


def show_view(manifest: Manifest, pairing: Pairing, options: Options, console: Console) -> dict[str, Any]:
    """Print what the view yields per pool, and the first rows of the stream; returns the same for the closing JSON.

    Raises UserError for a modality that the shards do not hold, and for rows of a view that training would refuse.
    """
    from pipeline.pairing import view

    names = list(dict.fromkeys(name.strip() for name in options.modalities.split(",") if name.strip()))
    names = names or list(manifest.modalities)
    shown = view(manifest, options.split, names, pairing, options.seed, options.batch)
    result = _pools(shown, f"{pairing.view} view of {options.split}", console)
    if options.rows:
        result["rows"] = _rows(shown, names, options, console)
    return result


def _pools(shown: View, title: str, console: Console) -> dict[str, Any]:
    """The rows of each pool, their share of all, and how many of them a step takes (the mean, where that varies)."""
    from rich.table import Table

    total = sum(len(pool) for pool in shown.pools)
    shares = [len(pool) / total for pool in shown.pools]
    exact = [shown.rows] if len(shown.pools) == 1 else shown.counts
    counts: list[float] = [*exact] if exact else [share * shown.rows for share in shares]
    table = Table("pool", "rows", "share", f"rows per step of {shown.rows:,}", title=title)
    pools: list[dict[str, Any]] = []
    for pool, share, count in zip(shown.pools, shares, counts, strict=True):
        each = f"{count:,}" if exact else f"{count:,.1f} on average"
        table.add_row(pool.name, f"{len(pool):,}", f"{share:.1%}", each)
        pools.append({"pool": pool.name, "rows": len(pool), "share": share, "rows_per_step": count})
    console.print(table)
    console.print(f"{total:,} rows of {shown.keys:,} samples; {shown.empty:,} of these show nothing")
    if shown.starved:
        console.print(
            f"[red]a step would hold no row of {', '.join(shown.starved)}[/], which training refuses: "
            "choose a larger batch or another complete share"
        )
    return {"view": shown.describe(), "pools": pools, "empty": shown.empty, "starved": shown.starved}


def _rows(shown: View, names: list[str], options: Options, console: Console) -> list[dict[str, Any]]:
    """The first rows of the stream: those that a run of this seed and batch trains on."""
    import numpy as np
    from rich.table import Table

    from pipeline.stream import Stream

    stream = Stream([shown], names, options.seed)
    table = Table("row", "key", "shown", title=f"first rows with seed {options.seed}")
    rows: list[dict[str, Any]] = []
    for start in range(0, options.rows, TOGETHER):
        refs = stream.rows(np.arange(start, min(start + TOGETHER, options.rows)))
        has_BM = (refs.member_BM >= 0).tolist()
        for row, key, has in zip(refs.row_B.tolist(), shown.manifest.keys(refs.sample_B), has_BM, strict=True):
            seen = [name for name, one in zip(names, has, strict=True) if one]
            table.add_row(str(row), key, "+".join(seen))
            rows.append({"row": row, "key": key, "shown": seen})
    console.print(table)
    return rows
