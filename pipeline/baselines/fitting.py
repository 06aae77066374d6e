"""The loop in which the baselines' networks are trained: Adam, as their run has it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infra import distributed
from infra.checkpoint import Checkpoint, Checkpoints
from infra.preemption import REQUEUE, StopRequest
from modalities import Modality
from pipeline import config
from pipeline.batch import on_device
from pipeline.config import Run
from pipeline.experts import Gaussian
from pipeline.order import permute, seed_of

PART = 1000
"""Rows that a trained network sees together, which bounds the memory."""
EVERY, VALIDATIONS = 10, 50
"""Steps between two validations, at least, and validations, at most: one costs more than an epoch of a few pairs, which
is a single step."""
SECONDS = 60.0
"""Between two checkpoints, at least."""
OnStep = Callable[[int, float], None]
"""Is told how many steps are done, and the loss of the last one."""
Show = Callable[[int, str], AbstractContextManager[OnStep]]
"""(steps, name) -> work that is shown while it lasts."""


@contextmanager
def unseen(steps: int, name: str) -> Iterator[OnStep]:
    """Work that is not shown."""
    yield lambda step, loss: None


@dataclass(frozen=True)
class Fitting:
    """How long something is fitted, where it is kept meanwhile, and how it is shown."""

    epochs: int
    directory: Path | None = None
    """Of checkpoints, of this data only, from which the same fit goes on where it was cut; None keeps none."""
    show: Show = unseen

    def kept(self, run: Run) -> Checkpoints | None:
        """The checkpoints of a run's fit."""
        return Checkpoints(self.directory / config.identity(run), keep=2) if self.directory else None

    def share(self, run: Run) -> float:
        """How much of a run's fit is done, 0 to 1, as far as it is kept."""
        kept = self.kept(run)
        newest = kept.latest()[0] if kept else None
        return newest.step / newest.meta["steps"] if newest else 0.0


class Net(nn.Module):
    """The encoder of one modality and the decoder of one, around the run's latent space."""

    def __init__(self, run: Run, given: Modality, wanted: Modality) -> None:
        super().__init__()
        self.encoder = given.encoder(run.model.latent)
        self.decoder = wanted.decoder(run.model.latent)

    def forward(self, value: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Gaussian]:
        """(the decoder's parameters, q(z | value)) from a sample of q, or from its mean where there is no noise."""
        q = Gaussian(*self.encoder(value))
        return self.decoder(q.mu if noise is None else q.sample(noise)), q


def build(run: Run, given: Modality, wanted: Modality, title: str) -> Net:
    """The networks on the run's device; their initial weights are a function of (seed, title) only."""
    device = distributed.start(run.engine.device, run.engine.threads).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "baseline", title) % 2**63)
        return Net(run, given, wanted).to(device)


def fit(
    net: Net,
    loss: Callable[[Tensor, int], Tensor],
    rows: int,
    run: Run,
    fitting: Fitting,
    title: str,
    score: Callable[[], float] | None = None,
) -> None:
    """Minimise loss(rows of a batch (B,), step) over epochs of `rows` rows, in batches of the run's size.

    With `score`, which validates after epochs, the weights that are left are those of the best validation. Nothing ends
    it early: a learning rate that falls in its second half makes the best weights at the very end.

    What was cut goes on from its last checkpoint, and ends as if it had not been. Where it is kept, a signal saves it
    and ends the process with REQUEUE.
    """
    device = next(net.parameters()).device
    adam = torch.optim.Adam(net.parameters(), lr=run.optim.lr, betas=run.optim.betas)
    batches = -(-rows // run.train.batch)
    steps = fitting.epochs * batches
    every = max(EVERY, -(-steps // VALIDATIONS))
    kept, state = fitting.kept(run), State(net, adam)
    if kept:
        newest, notes = kept.latest()
        for note in notes:
            print(note, file=sys.stderr, flush=True)
        if newest:
            state.load(newest)
    saved, order_of, order = time.monotonic(), -1, torch.empty(0)
    with fitting.show(steps, title) as on_step, StopRequest() if kept else nullcontext() as stop:
        while state.step < steps:
            epoch, place = divmod(state.step, batches)
            if epoch != order_of:
                order_of = epoch
                order = on_device(permute(np.arange(rows), rows, seed_of(run.seed, "baseline", epoch)), device)
            adam.zero_grad()
            adam.param_groups[0]["lr"] = run.optim.rate(state.step, steps)
            value = loss(order[place * run.train.batch : (place + 1) * run.train.batch], state.step)
            value.backward()
            adam.step()
            state.step += 1
            is_last = state.step == steps
            if score and place == batches - 1 and (state.step - state.validated >= every or is_last):
                state.validate(score())
            on_step(state.step, value.item())
            if kept and stop and not is_last and (stop.asked or time.monotonic() - saved >= SECONDS):
                state.save(kept, steps)
                saved = time.monotonic()
                if stop.asked:
                    raise SystemExit(REQUEUE)
    if state.best is not None:
        net.load_state_dict(state.best)


class State:
    """How far a fit is."""

    def __init__(self, net: nn.Module, adam: torch.optim.Optimizer) -> None:
        self.net, self.adam = net, adam
        self.step = self.validated = 0
        """Steps taken, and those before the last validation."""
        self.score = -np.inf
        self.best: dict[str, Tensor] | None = None
        """The best validation, and its weights."""

    def validate(self, score: float) -> None:
        """Take in a validation."""
        self.validated = self.step
        if score > self.score:
            self.score, self.best = score, {name: tensor.clone() for name, tensor in self.net.state_dict().items()}

    def save(self, kept: Checkpoints, steps: int) -> None:
        """Write a checkpoint of all of it. Raises UserError where that cannot be written."""
        tensors = {f"model.{name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        for number, of_one in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in of_one.items()}
        score = self.score if self.best else None
        kept.save(self.step, tensors.items(), {"steps": steps, "validated": self.validated, "score": score})

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from there."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in checkpoint.tensors("model", "optimizer").items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        self.net.load_state_dict(groups["model"])
        of_each: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["adam"].items():
            number, _, what = name.partition(".")
            of_each.setdefault(int(number), {})[what] = tensor
        self.adam.load_state_dict({**self.adam.state_dict(), "state": of_each})
        self.step, self.validated = checkpoint.step, checkpoint.meta["validated"]
        if groups["best"]:
            device = next(self.net.parameters()).device
            self.score = checkpoint.meta["score"]
            self.best = {name: tensor.to(device) for name, tensor in groups["best"].items()}


@torch.no_grad()
def in_parts(network: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """What a trained network makes of values (R, …), some rows at a time."""
    return torch.cat([network(part) for part in values.split(PART)])
