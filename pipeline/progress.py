"""How far a run is: what a checkpoint must hold beside tensors so that its curves go on as if nothing had happened."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from infra.checkpoint import Checkpoint
from infra.distributed import World
from pipeline.batch import Batch
from pipeline.config import Training
from pipeline.objectives.terms import Terms


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
                self.sums[name] = self.sums[name] + value.double()
                self.counts[name] = self.counts[name] + term.counts[name].double()

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

    def validated(self, training: Training, metrics: dict[str, float]) -> bool:
        """Take in a validation; returns whether it is the best so far."""
        self.metrics = metrics
        value, sign = metrics[training.best], 1 if training.best_is == "max" else -1
        is_best = self.best is None or sign * value > sign * self.best["value"]
        if is_best:
            self.best = {"step": self.step, "metric": training.best, "value": value}
        self.worse = 0 if is_best else self.worse + 1
        return is_best

    def out_of_patience(self, training: Training) -> bool:
        """Whether `patience` validations have gone by without a better one."""
        return 0 < training.patience <= self.worse


def agree(
    world: World, asked: bool, failure: str | None, terms: list[Terms], batches: list[Batch], step: int
) -> tuple[bool, float]:
    """(whether any rank was told to stop, the loss of the global batch). Collective, before anything is updated.

    Raises UserError on all ranks where one of them has a failure (its data could not be read), or where a loss is not
    finite, naming the offending keys.
    """
    loss = sum(float(term.loss.detach()) for term in terms) / len(terms)
    broken = not math.isfinite(loss)
    stop, failures, any_broken, total = world.sum(
        [float(asked), float(failure is not None), float(broken), 0.0 if broken else loss]
    )
    if failures:
        world.raise_together(failure)
    if any_broken:
        keys = [
            key
            for term, batch in zip(terms, batches, strict=True)
            for key, value in zip(batch.keys, term.row_objective_B.tolist(), strict=True)
            if not math.isfinite(value)
        ]
        named = [key for some in world.gather(keys) for key in some]  # type: ignore[attr-defined]
        world.raise_together(
            f"the loss of step {step + 1} is not finite and nothing was updated; rows: "
            + (", ".join(named[:10]) or "none by itself")
            + (f" and {len(named) - 10} more" if len(named) > 10 else "")
            + "; look at these keys, lower optim.lr or set optim.clip"
        )
    return stop > 0, total / world.size
