"""What a check finds, and how all ranks take part in one."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from infra.distributed import World
from infra.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's list."""

    name: str
    """What was looked at."""
    problem: str
    """What is wrong, where, and what to do; empty where all is well."""
    text: str
    """What was found."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Measurements, with their unit in the name."""

    @property
    def well(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Told(Generic[T]):
    """What one rank found, or why it could not look."""

    rank: int
    host: str
    value: T | None
    failure: str = ""


def everywhere(world: World, look: Callable[[], T]) -> list[Told[T]]:
    """What every rank finds, in the order of ranks. Collective: a rank that cannot look says why, and stays."""
    host = platform.node()
    try:
        mine = Told(world.rank, host, look())
    except (UserError, OSError) as error:
        mine = Told(world.rank, host, None, str(error))
    return [told for told in world.gather(mine) if isinstance(told, Told)]


def failures(told: Sequence[Told[T]]) -> str:
    """The ranks that could not look, those of one reason together; empty where all could."""
    by_reason = defaultdict(list)
    for one in told:
        if one.failure:
            by_reason[one.failure].append(one)
    return "; ".join(f"{ranks(those)}: {reason}" for reason, those in by_reason.items())


def ranks(told: Sequence[Told[T]]) -> str:
    """rank 3 on node7; rank 3 and 4 more on node7 and 2 more"""
    hosts = list(dict.fromkeys(one.host for one in told))
    numbers = f"rank {told[0].rank}" + (f" and {len(told) - 1} more" if len(told) > 1 else "")
    return f"{numbers} on {hosts[0]}" + (f" and {len(hosts) - 1} more" if len(hosts) > 1 else "")
