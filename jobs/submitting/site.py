"""A site's defaults: pairstream.toml in the working directory, what PAIRSTREAM_SITE names, or --site FILE.

The file's keys are the options of `pairstream submit`. Each kind of cluster takes those that it knows; a table of its
name has precedence:

    nodes = 2
    gpus = 8
    partition = "gpu"
    time = "12h"
    [environment]
    NCCL_SOCKET_IFNAME = "ib0"
    [kubernetes]
    nodes = 1
"""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from infra.errors import UserError, nearest
from jobs.arguments import parse
from jobs.submitting import BACKENDS, backend
from pipeline.settings import check

FILE, VARIABLE = "pairstream.toml", "PAIRSTREAM_SITE"
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Asked:
    """Options of every target."""

    dry_run: bool = False
    """Show exactly what would be submitted; start nothing."""
    json: bool = False
    """Print one JSON object as the last line. (After -- it belongs to the job.)"""


@dataclass(frozen=True)
class Cluster(Asked):
    """What a job asks of a cluster."""

    site: Path | None = None
    """The site's defaults (TOML); PAIRSTREAM_SITE, or pairstream.toml here, where not given."""
    nodes: int = 1
    """Nodes of a training. Any other job takes one."""
    ranks: int = 0
    """Ranks of a training on each node; 0 is one for each GPU, or one without GPUs."""
    gpus: int = 0
    """GPUs of each node."""
    cpus: int = 1
    """Cores of each rank; a job that has no ranks gets those of all."""
    lead: str = "2m"
    """How long before the end the job is told to save."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    python: str = ""
    """The interpreter there; this one where not given, or python inside an image."""

    def __post_init__(self) -> None:
        check(self.nodes >= 1 and self.cpus >= 1, "--nodes and --cpus take at least 1")
        check(min(self.ranks, self.gpus) >= 0, "--ranks and --gpus must not be negative")
        check(
            not self.gpus or self.per_node <= self.gpus,
            f"--ranks {self.ranks} on {self.gpus} GPUs: each rank needs a GPU of its own; leave --ranks away",
        )
        seconds(self.lead, "--lead")

    @property
    def per_node(self) -> int:
        """Ranks of a training on each node."""
        return self.ranks or max(1, self.gpus)


@dataclass(frozen=True)
class Contained(Cluster):
    """What a cluster takes that queues jobs again, and may run them in containers."""

    memory: str = ""
    """Memory of each node, such as 64G; the cluster's default where not given."""
    restarts: int = 3
    """How often a job that failed goes on from its last checkpoint by itself; being told to stop does not count."""
    image: str = ""
    """Container image to run in."""
    mounts: tuple[str, ...] = ()
    """What the container sees, each as SOURCE:/TARGET."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.restarts >= 0, "--restarts must not be negative")
        check(
            bool(re.fullmatch(r"(\d+[MGT])?", self.memory)),
            f"--memory {self.memory!r}: write a number with its unit, as in 64G",
        )
        for mount in self.mounts:
            source, colon, target = mount.partition(":")
            check(bool(source and colon and target.startswith("/")), f"--mounts {mount!r}: write SOURCE:/TARGET")


Kind = TypeVar("Kind", bound=Asked)


def seconds(text: str, option: str = "--time") -> int:
    """A duration such as 90s, 45m, 12h, 1d12h. Raises UserError."""
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    check(bool(text and parts), f"{option} {text!r}: write a duration such as 45m, 12h or 1d12h")
    assert parts
    return sum(int(count or 0) * unit for count, unit in zip(parts.groups(), UNITS.values(), strict=True))


def options_of(target: str, kind: type[Kind], arguments: list[str], about: str) -> Kind:
    """The command line's options on top of the site's defaults. Raises UserError, or exits on --help."""
    default = None
    if issubclass(kind, Cluster):
        file = _file(arguments)
        default = from_table(_read(file), target, kind, str(file)) if file else None
    return parse(f"submit {target}", kind, arguments, default, about=about)


def from_table(table: dict[str, Any], target: str, kind: type[Kind], source: str) -> Kind:
    """The options that a site's table gives. Raises UserError naming the key that does not exist or fit."""
    clusters = [name for name in BACKENDS if issubclass(backend(name).Options, Cluster)]
    known, every = _keys(kind), sorted({*clusters}.union(*(_keys(backend(name).Options) for name in clusters)))
    special = table.get(target, {})
    check(isinstance(special, dict), f"{source}: {target} must be a table: [{target}]")
    for key in table:
        check(key in every, f"{source}: no key {key!r}" + nearest(key, every))
    for key in special:
        check(key in known, f"{source}: no key {key!r} in [{target}]" + nearest(key, known))
    values = {key: value for key, value in table.items() if key in known} | special
    try:
        return TypeAdapter(kind).validate_python(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{source}: {where}: {first['msg']} (got {first['input']!r})") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _keys(kind: type) -> list[str]:
    """The options that a site may set."""
    return [one.name for one in fields(kind) if one.name not in ("dry_run", "json", "site", "array")]


def _file(arguments: list[str]) -> Path | None:
    """The site's file: --site, else the environment's, else the working directory's, where there is one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--site", nargs="?", default="")
    named = parser.parse_known_args(arguments)[0].site or os.environ.get(VARIABLE, "")
    return Path(named) if named else Path(FILE) if Path(FILE).is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UserError(f"the site's defaults {file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file} is no TOML: {error}") from None
