"""How far a run is: what a checkpoint must hold beside tensors so that its curves go on as if nothing had happened."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from infra.checkpoint import Checkpoint
from infra.distributed import World
from pipeline.batch import Batch
from pipeline.objectives.terms import Terms
from pipeline.settings import Training


@dataclass
class Window:
    """Sums and counts of this rank since the last point: a point is a mean over rows, never a mean of means."""

    sums: defaultdict[str, Any] = field(default_factory=lambda: defaultdict(float))
    """Numbers, or tensors that stay on the device until a point is made."""
    counts: defaultdict[str, Any] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, terms: list[Terms]) -> None:
        """Take in the micro-batches of one step."""
        self.steps += 1
        for term in terms:
            for name, value in term.sums.items():
                self.sums[name] += value.double()
                self.counts[name] += term.counts[name].double()

    def totals(self, world: World) -> dict[str, list[float]]:
        """{name: [sum, count]} over all ranks. Collective."""
        names = sorted(self.sums)
        flat = world.sum([float(self.sums[n]) for n in names] + [float(self.counts[n]) for n in names])
        return {name: [flat[i], flat[len(names) + i]] for i, name in enumerate(names)}

    def point(self, world: World) -> dict[str, float]:
        """The means of the window, and the speed; begins a new window. Collective."""
        point = {f"train/{name}": total / count for name, (total, count) in self.totals(world).items() if count}
        point["speed/steps_per_second"] = self.steps / max(time.monotonic() - self.started, 1e-9)
        self.__init__()  # type: ignore[misc]
        return point


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken."""
    loss: float = math.nan
    """Negative objective of the last step per row of the global batch (weighted, nats)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last validation."""
    best: dict[str, Any] | None = None
    """{"step", "metric", "value"} of the best validation."""
    worse: int = 0
    """Validations since the best one."""
    window: Window = field(default_factory=Window)
    saved: int = -1
    """The step whose checkpoint this process has written or loaded; the same on every rank."""
    vote: Ballot | None = None
    """The last step's, as long as nobody has counted it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, world: World) -> Progress:
        """What a checkpoint says; the open window's sums go to rank 0."""
        saved = checkpoint.meta["progress"]
        window = Window(steps=saved["window_steps"])
        if world.is_main:
            window.sums.update({name: total for name, (total, _) in saved["window"].items()})
            window.counts.update({name: count for name, (_, count) in saved["window"].items()})
        else:
            window.sums.update(dict.fromkeys(saved["window"], 0.0))
            window.counts.update(dict.fromkeys(saved["window"], 0.0))
        step, loss, best = checkpoint.step, saved["loss"], checkpoint.meta["best"]
        loss = math.nan if loss is None else loss
        return cls(step, loss, saved["metrics"], best, saved["worse"], window, saved=step)

    def meta(self, world: World) -> dict[str, Any]:
        """For COMPLETE.json. Collective."""
        return {
            "best": self.best,
            "progress": {
                "loss": self.loss if math.isfinite(self.loss) else None,
                "metrics": self.metrics,
                "worse": self.worse,
                "window": self.window.totals(world),
                "window_steps": self.window.steps,
            },
        }

    def settle(self, on_step: Callable[[int, float], None] | None) -> bool:
        """Count the last step's vote where that is still to do; returns whether to stop. Collective."""
        if self.vote is None:
            return False
        stopping, self.loss = self.vote.count()
        self.vote = None
        if on_step:
            on_step(self.step, self.loss)
        return stopping

    def validated(self, training: Training, metrics: dict[str, float], since: int = 0) -> bool:
        """Take in a validation; returns whether it is the best so far.

        In the second stage of training, after step `since`, none of the first counts any more, and of equals the later
        is better: a metric of what is frozen does not move.
        """
        self.metrics = metrics
        later = 0 < since < self.step
        if later and self.best and self.best["step"] <= since:
            self.best = None
        value, sign = metrics[training.best], 1 if training.best_is == "max" else -1
        gain = math.inf if self.best is None else sign * (value - self.best["value"])
        is_best = gain > 0 or (later and gain == 0)
        if is_best:
            self.best = {"step": self.step, "metric": training.best, "value": value}
        self.worse = 0 if is_best else self.worse + 1
        return is_best

    def out_of_patience(self, training: Training) -> bool:
        """Whether `patience` validations have gone by without a better one."""
        return 0 < training.patience <= self.worse


class Ballot(Protocol):
    """What is to be known of a step before anything of it is kept."""

    def count(self) -> tuple[bool, float]:
        """(whether to stop, the loss of the global batch). Raises UserError where the step is not to be kept."""


class Vote:
    """What all ranks must know of a step before anything of it is kept: reduced while the device goes on.

    A step's loss is read one step later, or where something hangs on it (a point of a curve, a validation, a
    checkpoint), so that no step waits for the device. What a bad step has done to the parameters is never saved.
    """

    def __init__(
        self, world: World, asked: bool, failure: str | None, terms: list[Terms], batches: list[Batch], step: int
    ) -> None:
        """Collective. `failure`: why this rank's data could not be read."""
        self._world, self._failure, self._step = world, failure, step
        self._rows = [(batch.keys, term.row_objective_B) for batch, term in zip(batches, terms, strict=True)]
        loss = torch.stack([term.loss.detach().double() for term in terms]).mean()
        finite = loss.isfinite()
        told = torch.tensor([asked, failure is not None], dtype=torch.float64).to(loss.device, non_blocking=True)
        self._total = world.sum_later(torch.cat([told, torch.stack([(~finite).double(), loss.where(finite, 0.0)])]))

    def count(self) -> tuple[bool, float]:
        """(whether any rank was told to stop, the loss of the global batch). Collective; waits for the step's loss.

        Raises UserError on all ranks where one of them has a failure, or where a loss is not finite, naming the
        offending keys.
        """
        stop, failures, broken, loss = self._total()
        if failures:
            self._world.raise_together(self._failure)
        if broken:
            keys = [key for keys, objective_B in self._rows for key in spoilt(keys, objective_B)]
            named = [key for some in self._world.gather(keys) for key in some]  # type: ignore[attr-defined]
            self._world.raise_together(not_finite(self._step, named))
        return stop > 0, loss / self._world.size


def spoilt(keys: Sequence[str], objective_B: torch.Tensor) -> list[str]:
    """The keys of the rows whose objective is not finite. Waits for the device."""
    return [key for key, value in zip(keys, objective_B.tolist(), strict=True) if not math.isfinite(value)]


def not_finite(step: int, keys: Sequence[str]) -> str:
    """What a user is told of a step (counted from 0) whose loss is not finite."""
    return (
        f"the loss of step {step + 1} is not finite and nothing of it is saved; rows: "
        + (", ".join(keys[:10]) or "none by itself")
        + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
        + "; look at these keys, lower optim.lr or set optim.clip"
    )
