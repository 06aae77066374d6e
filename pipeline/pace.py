"""What of a step's time is a rank's own, so that a slow node shows: in the step as a whole all ranks wait for it.

A rank's own time is that for which it waits for its data and for its forward passes, before it meets the others. (At
ZeRO stage 3 the ranks meet in their forward passes too: there only data that come late show.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from infra.distributed import World
from pipeline.collate import Waiting

OTHERS, SLOWEST, SLOWEST_RANK = "speed/own", "speed/own_slowest", "speed/slowest_rank"
"""Curves of several ranks: seconds a step, the median of all but the slowest, the slowest, and which one that is."""


class Pace:
    """One rank's since the last point; with one rank it does nothing."""

    def __init__(self, world: World, ahead: Waiting[Any]) -> None:
        self._world, self._ahead = world, ahead
        self._forget()

    def _forget(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, self._ahead.waited
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def own(self) -> Iterator[None]:
        """Around what the rank does without the others; no step waits for the device."""
        if self._world.size == 1:
            yield
        elif self._world.device.type == "cuda":
            marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            marks[0].record()
            yield
            marks[1].record()
            self._marks.append(marks)
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def step(self) -> None:
        """A step has been taken."""
        self._steps += 1

    def point(self) -> dict[str, float]:
        """The curves, since the last call; nothing where there is one rank only. Collective."""
        if self._world.size == 1 or not self._steps:
            return {}
        if self._marks:
            torch.cuda.synchronize(self._world.device)
        forward = self._seconds + sum(begun.elapsed_time(ended) for begun, ended in self._marks) / 1000
        mine = (forward + self._ahead.waited - self._waited) / self._steps
        self._forget()
        ranks = range(self._world.size)
        return told(self._world.sum([mine * (rank == self._world.rank) for rank in ranks]))


def told(seconds: list[float]) -> dict[str, float]:
    """The curves, of every rank's own seconds a step."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    others = seconds[:slowest] + seconds[slowest + 1 :]
    return {OTHERS: statistics.median(others), SLOWEST: seconds[slowest], SLOWEST_RANK: float(slowest)}
