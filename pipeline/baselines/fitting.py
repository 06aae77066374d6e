"""The loop in which the baselines' networks are trained: Adam, as their run has it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from infra import distributed
from modalities import Modality
from pipeline.batch import on_device
from pipeline.config import Run
from pipeline.experts import Gaussian
from pipeline.order import permute, seed_of

PART = 1000
"""Rows that a trained network sees together, which bounds the memory."""
EVERY, VALIDATIONS = 10, 50
"""Steps between two validations, at least, and validations, at most: one costs more than an epoch of a few pairs, which
is a single step."""


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
    epochs: int,
    title: str,
    score: Callable[[], float] | None = None,
) -> None:
    """Minimise loss(rows of a batch (B,), step) over epochs of `rows` rows, in batches of the run's size.

    With `score`, which validates after epochs, the weights that are left are those of the best validation. Nothing ends
    it early: a learning rate that falls in its second half makes the best weights at the very end.
    """
    from rich.console import Console
    from rich.progress import track

    device = next(net.parameters()).device
    adam = torch.optim.Adam(net.parameters(), lr=run.optim.lr, betas=run.optim.betas)
    best, weights, step, validated = -np.inf, net.state_dict(), 0, 0
    steps = epochs * -(-rows // run.train.batch)
    every = max(EVERY, -(-steps // VALIDATIONS))
    quiet = not sys.stderr.isatty()
    for epoch in track(range(epochs), title, console=Console(stderr=True), transient=True, disable=quiet):
        order = permute(np.arange(rows), rows, seed_of(run.seed, "baseline", epoch))
        for chosen in on_device(order, device).split(run.train.batch):
            adam.zero_grad()
            adam.param_groups[0]["lr"] = run.optim.rate(step, steps)
            loss(chosen, step).backward()
            adam.step()
            step += 1
        if score is None or (step - validated < every and epoch < epochs - 1):
            continue
        value, validated = score(), step
        if value > best:
            best, weights = value, {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(weights)


@torch.no_grad()
def in_parts(network: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """What a trained network makes of values (R, …), some rows at a time."""
    return torch.cat([network(part) for part in values.split(PART)])
