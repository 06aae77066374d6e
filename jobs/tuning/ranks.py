"""One trial on several ranks: a Ray actor for each, in the trial's own placement group."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.tune import PlacementGroupFactory
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from infra.distributed import free_port
from infra.errors import UserError
from infra.preemption import LOST
from jobs.tuning.drain import stopping_on_drain
from jobs.tuning.ledger import Outcome
from jobs.tuning.trial import Report, Setting, work
from pipeline.config import Run

POLL = 1.0
"""Seconds after which a trial looks whether its ranks are still there."""


def bundles(ranks: int, cpus: float, gpus: float) -> PlacementGroupFactory:
    """What a trial reserves: nothing for the function that Ray calls, and each rank's own share."""
    return PlacementGroupFactory([{}, *[{"CPU": cpus, "GPU": gpus} for _ in range(ranks)]])


class _Bridge:
    """Rank 0's report, which the trial's own process answers."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[int, dict[str, float]]] = queue.Queue()
        self.answers: queue.Queue[bool] = queue.Queue()
        self.over = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        self.told.put((step, dict(metrics)))
        self.over = self.answers.get()
        return self.over


@ray.remote(max_concurrency=2)
class _Rank:
    """One rank; while it trains, its second thread is asked what it has to report."""

    def __init__(self) -> None:
        self.bridge = _Bridge()

    def address(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), free_port()

    def work(self, run: Run, directory: Path, setting: Setting, place: dict[str, str]) -> tuple[Outcome | None, bool]:
        os.environ.update(place)
        try:
            with stopping_on_drain(directory, main=place["RANK"] == "0"):
                return work(run, directory, setting, self.bridge), self.bridge.over
        except UserError as error:
            if error.code == LOST:  # Ray begins the trial anew
                raise
            return Outcome("failed", 0, error=str(error)), False

    def told(self) -> tuple[int, dict[str, float]] | None:
        try:
            return self.bridge.told.get(timeout=POLL)
        except queue.Empty:
            return None

    def answer(self, stop: bool) -> None:
        self.bridge.answers.put(stop)


def on_ranks(run: Run, directory: Path, setting: Setting, report: Report) -> Outcome | None:
    """As `work`, on so many ranks. Raises what Ray raises where one of them is lost: the trial is then begun anew."""
    group = get_current_placement_group()
    ranks: list[Any] = []
    try:
        for number in range(setting.ranks):
            bundle = group.bundle_specs[number]  # Ray leaves the empty one away
            ranks.append(
                _Rank.options(  # type: ignore[attr-defined]
                    num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
                ).remote()
            )  # fmt: skip
        host, port = ray.get(ranks[0].address.remote())
        common = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": str(setting.ranks), "LOCAL_RANK": "0"}
        working = [
            rank.work.remote(run, directory, setting, common | {"RANK": str(number)})
            for number, rank in enumerate(ranks)
        ]
        waiting = list(working)
        while waiting:
            told = ray.get(ranks[0].told.remote())
            if told:
                ranks[0].answer.remote(report(*told))
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            ray.get(done)  # raises where a rank is lost
        outcome: Outcome | None = ray.get(working[0])[0]
        return outcome
    finally:
        for rank in ranks:
            ray.kill(rank)
