"""pairstream doctor [--data DIR] [--out runs] [--ranks 2] [--json]     or in an allocation: srun pairstream doctor

Checks this machine, or all nodes of an allocation, before a long run: versions, devices, sums over all ranks and their
speed, whether all nodes see the folder of the runs, clocks, the tracking store, and that every node has the same data.
A line each, and what to do where something is wrong; the exit code is then 2. Expect some ten seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infra.address import RUNS, default_uri
from infra.allocation import join_srun
from infra.distributed import World, check_ranks, is_worker, launch
from infra.errors import UserError
from jobs.arguments import closing_json, parse
from pipeline.settings import check

if TYPE_CHECKING:
    from infra.doctor import Finding

PACKAGES = ("pairstream", "torch", "deepspeed", "accelerate", "webdataset", "mlflow", "numpy", "pyarrow")
SAMPLES = 2000
"""Of the data, that are read and verified."""


@dataclass(frozen=True)
class Options:
    data: str = ""
    """A data directory: whether every node sees the same data, and how fast it reads them."""
    out: Path = RUNS
    """Where runs will lie: whether every node sees it, how fast it writes, and how much room there is."""
    tracking: str = ""
    """Of MLflow's store; MLFLOW_TRACKING_URI, or the file runs/mlflow.db, where not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the ranks will compute on."""
    ranks: int = 1
    """Start so many ranks on this machine. (Under srun or torchrun, which start them, leave it away.)"""
    port: int = 0
    """Port at which they meet; 0 takes a free one."""
    timeout: float = 60.0
    """Seconds that the ranks wait for one another, at the start and in each check."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    options = parse("doctor", Options, arguments, about=__doc__)
    check(options.ranks >= 1 and options.timeout > 0, "--ranks takes at least 1, --timeout seconds")
    if options.ranks > 1 and not is_worker():
        check_ranks(options.ranks)
        return launch([sys.executable, "-m", "jobs.cli", "doctor", *arguments], options.ranks, options.port)
    from infra.distributed import start

    join_srun()
    world = start(options.device, timeout=timedelta(seconds=options.timeout))
    found: list[Finding] = []
    for look in _checks(world, options):
        try:
            finding = look()
        except RuntimeError as error:  # of a collective
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the ranks have lost each other after {len(found)} checks ({reason}): look at the network between the "
                "nodes, or give slow ones more time with --timeout"
            ) from None
        found.append(finding)
        if world.is_main:
            _show(finding)
    well = all(finding.well for finding in found)
    if world.is_main:
        bad = sum(not finding.well for finding in found)
        print("all is well" if well else f"{bad} of {len(found)} checks found something wrong")
        if options.json:
            told = [
                {"check": f.name, "well": f.well, "problem": f.problem, "text": f.text, "figures": f.figures}
                for f in found
            ]
            closing_json({"well": well, "ranks": world.size, "checks": told})
    return 0 if well or not world.is_main else 2


def _checks(world: World, options: Options) -> Iterator[Callable[[], Finding]]:
    """In their order, each imported and run when it is its turn."""
    from infra import doctor

    yield lambda: doctor.check_versions(world, PACKAGES)
    yield lambda: doctor.check_devices(world)
    yield lambda: doctor.check_sums(world)
    yield lambda: doctor.check_folder(world, options.out)
    yield lambda: doctor.check_clock(world)
    yield lambda: doctor.check_tracking(world, options.tracking or default_uri(options.out))
    if options.data:
        yield lambda: check_data(world, options.data)


def check_data(world: World, directory: str) -> Finding:
    """The same data on every node, whole, and how fast each rank reads them."""
    import time

    import numpy as np

    from infra.doctor import Finding, everywhere
    from infra.doctor.finding import failures, ranks
    from pipeline.manifest import check_shards, open_manifest
    from pipeline.shards import Corrupt, Reader

    def look() -> tuple[str, float]:
        manifest = open_manifest(directory)
        check_shards(manifest, 0)
        rows = np.linspace(0, len(manifest) - 1, min(SAMPLES, len(manifest)), dtype=int)
        members = np.concatenate([np.arange(manifest.first[row], manifest.first[row + 1]) for row in rows])
        began = time.perf_counter()
        damaged = sum(isinstance(one, Corrupt) for one in Reader([manifest]).read(members))
        if damaged:
            raise UserError(f"{damaged} of {len(members)} members are damaged: pairstream inspect {directory} --verify")
        return manifest.fingerprint, len(rows) / (time.perf_counter() - began)

    told = everywhere(world, look)
    problem = failures(told)
    others = [one for one in told if one.value and told[0].value and one.value[0] != told[0].value[0]]
    if others and others[0].value and told[0].value and not problem:
        problem = (
            f"{ranks(others)} has other data in {directory} (fingerprint {others[0].value[0]}, rank 0 has "
            f"{told[0].value[0]}): copy them again, or name a folder that all nodes share"
        )
    slowest = min((one.value[1] for one in told if one.value), default=0.0)
    fingerprint = told[0].value[0] if told[0].value else "not read"
    text = f"{directory}: {fingerprint}, {slowest:,.0f} samples/s read and verified by the slowest rank"
    return Finding("data", problem, text, {"samples/s": slowest})


def _show(finding: Finding) -> None:
    from rich.console import Console
    from rich.markup import escape

    mark = "[green]✔[/green]" if finding.well else "[red]✘[/red]"
    Console(highlight=False, soft_wrap=True).print(f"{mark} {finding.name}: {escape(finding.text)}")
    if finding.problem:
        Console(highlight=False, soft_wrap=True).print(f"  [red]{escape(finding.problem)}[/red]")
