"""The checks that need no data: versions, devices, sums over ranks, a shared folder, the clock, the tracking store."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.distributed import World, cores
from infra.doctor.finding import Finding, everywhere, failures, ranks
from infra.store import check_store

SMALL, LARGE, TIMES = 2**10, 2**24, 5
"""Numbers of 4 bytes that are summed over the ranks, and how often."""
FILE = 2**26
"""Bytes that a node writes to the shared folder."""
SCARCE = 10 * 2**30
"""Bytes free below which a folder is short of space: some checkpoints and pictures."""
SKEW = 2.0
"""Seconds by which clocks may differ: curves are told by the time of points."""


def check_versions(world: World, packages: Sequence[str]) -> Finding:
    """Python and these packages, alike on every rank."""

    def look() -> dict[str, str]:
        return {"python": platform.python_version()} | {package: _version(package) for package in packages}

    told = everywhere(world, look)
    text = ", ".join(f"{name} {number}" for name, number in (told[0].value or {}).items())
    others = [one for one in told if one.value != told[0].value]
    problem = ""
    if others:
        mine, theirs = told[0].value or {}, others[0].value or {}
        apart = ", ".join(
            f"{name} {theirs.get(name)} (rank 0: {mine[name]})" for name in mine if mine[name] != theirs.get(name)
        )
        problem = f"{ranks(others)} has {apart}: install the same versions on every node"
    elif "missing" in (told[0].value or {}).values():
        problem = "a package is missing: pip install what pyproject.toml asks for"
    return Finding("versions", problem, text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def check_devices(world: World) -> Finding:
    """What the ranks compute on: all on CUDA, or all on the CPU."""

    def look() -> tuple[str, str]:
        if world.device.type == "cuda":
            import torch

            told = torch.cuda.get_device_properties(world.device)
            return "cuda", f"{told.name}, {told.total_memory / 2**30:.0f} GiB"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return "cpu", f"CPU, {cores()} cores, {memory:.0f} GiB"

    told = everywhere(world, look)
    kinds = {one.value[0] for one in told if one.value}
    hosts = {one.host for one in told}
    devices = sorted({one.value[1] for one in told if one.value})
    text = f"{world.size} {'rank' if world.size == 1 else 'ranks'} on {', '.join(sorted(hosts)[:4])}" + (
        f" and {len(hosts) - 4} more hosts" if len(hosts) > 4 else ""
    )
    problem = ""
    if len(kinds) > 1:
        on_cpu = [one for one in told if one.value and one.value[0] == "cpu"]
        problem = f"{ranks(on_cpu)} sees no GPU, others do: look at that node's driver, or ask for GPUs on every node"
    return Finding("devices", problem, f"{text}: {'; '.join(devices)}")


def check_sums(world: World) -> Finding:
    """Sums over all ranks: right, how fast (bus bandwidth as NCCL's tests define it, 2 (n - 1) / n of the bytes)."""
    if world.size == 1:
        return Finding("sums over ranks", "", "one rank: nothing to sum")
    import torch
    import torch.distributed as dist

    seconds, right = {}, True
    for count in (SMALL, LARGE):
        values = torch.ones(count, device=world.device)
        dist.all_reduce(values)  # connections are made
        right &= bool((values == world.size).all())
        took = []
        for _ in range(TIMES):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        seconds[count] = max(one for one in world.gather(min(took)) if isinstance(one, float))
    correct = everywhere(world, lambda: right)
    bandwidth = 2 * (world.size - 1) / world.size * 4 * LARGE / seconds[LARGE] / 1e9
    wrong = [one for one in correct if not one.value]
    problem = f"{ranks(wrong)} got wrong sums: the network or a GPU is broken" if wrong else ""
    text = (
        f"{bandwidth:.2f} GB/s of {4 * LARGE / 1e6:.0f} MB, {1e6 * seconds[SMALL]:.0f} µs of {4 * SMALL / 1e3:.0f} kB"
    )
    return Finding("sums over ranks", problem, f"{text} ({dist.get_backend()})", {
        "bus bandwidth, GB/s": bandwidth, "latency, µs": 1e6 * seconds[SMALL],
    })  # fmt: skip


def check_folder(world: World, folder: Path) -> Finding:
    """Where runs go: every rank sees what the others write; how fast, and how much room."""
    token = world.gather(uuid.uuid4().hex)[0]
    place = folder.absolute() / f".doctor-{token}"
    name = "folder of the runs"

    def write() -> float:
        place.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with (place / str(world.rank)).open("wb") as file:
            file.write(bytes(FILE) if world.local_rank == 0 else b"here")
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - began

    def read() -> set[str]:
        return {path.name for path in place.iterdir()}

    try:
        written = everywhere(world, write)
        if problem := failures(written):
            return Finding(name, f"{problem}; choose another folder with --out", str(folder))
        seen = everywhere(world, read)
        if problem := failures(seen):
            return Finding(name, problem, str(folder))
    finally:
        world.gather(None)
        shutil.rmtree(place, ignore_errors=True)
    blind = [one for one in seen if one.value is not None and len(one.value) < world.size]
    free = min(int(one.value or 0) for one in everywhere(world, lambda: shutil.disk_usage(folder).free))
    writing = max(one.value or 0.0 for one in written)
    figures = {"write, MB/s": FILE / 1e6 / writing, "free, GB": free / 1e9}
    problem = ""
    if blind:
        problem = f"{ranks(blind)} does not see what other ranks write to {folder}: it has to be shared by all nodes"
    elif free < SCARCE:
        problem = f"{folder} has {free / 1e9:.1f} GB free: checkpoints will not fit for long"
    return Finding(
        name,
        problem,
        f"{folder}: {figures['write, MB/s']:.0f} MB/s written through, {free / 1e9:,.0f} GB free",
        figures,
    )


def check_clock(world: World) -> Finding:
    """Whether the clocks of all nodes tell the same time."""
    world.gather(None)  # all look at about the same moment
    told = everywhere(world, time.time)
    times = [one.value or 0.0 for one in told]
    skew = max(times) - min(times)
    problem = ""
    if skew > SKEW:
        late = min(told, key=lambda one: one.value or 0.0)
        problem = f"{ranks([late])} is {skew:.0f} s behind: set its clock (chrony, ntpd)"
    return Finding("clock", problem, f"{skew:.3f} s apart at most", {"skew, s": skew})


def check_tracking(world: World, uri: str) -> Finding:
    """Whether MLflow's store answers every node: trials of a sweep deliver from wherever they run."""

    def look() -> float:
        if world.local_rank:
            return 0.0
        check_store(uri)  # imports MLflow
        began = time.perf_counter()
        check_store(uri)
        return time.perf_counter() - began

    told = everywhere(world, look)
    slowest = max(one.value or 0.0 for one in told)
    problem = failures(told)
    return Finding("tracking", problem, f"{uri}: answers in {1e3 * slowest:.0f} ms", {"answer, ms": 1e3 * slowest})
