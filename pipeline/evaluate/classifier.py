"""A small convolutional network that tells the class of a picture, and its training. Knows nothing of the data.

Shape legend: B rows, C channels, Y and X pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

SEED = 0
BATCH, LR = 128, 2e-3
STEPS, MOST_EPOCHS = (50, 500), 5
"""An epoch is a pass over the pictures, but at least and at most so many steps; after it the learning rate halves."""
LARGE = 16
"""Pixels a side from which on pictures are halved at once."""


@dataclass(frozen=True)
class Pictures:
    """Pictures (B, C, Y, X) with levels from 0 to 1, and their classes (B,)."""

    values: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)


def network(shape: Sequence[int], classes: int) -> nn.Sequential:
    """For pictures of any size (C, Y, X): the last layer sees the largest values in 2 x 2 fields of each."""
    channels, *sides = shape
    stride = 2 if min(sides) >= LARGE else 1
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, stride, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(256, classes),
    )  # fmt: skip


def trained(
    seen: Pictures, unseen: Pictures, classes: int, device: torch.device, tell: Callable[[float], None]
) -> tuple[nn.Sequential, int, float]:
    """A network trained on `seen` until `unseen` are classified no better: it, its epochs, its accuracy on them.

    `tell` hears after each step which share of all that may come is done. The same pictures on the same kind of machine
    give the same network; torch's own random numbers are left as they were.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(SEED)  # `torch.manual_seed` would reach the other devices' too
        model = network(seen.values.shape[1:], classes).to(device)
        optimizer = torch.optim.Adam(model.parameters(), LR)
        steps = min(max(math.ceil(len(seen) / BATCH), STEPS[0]), STEPS[1])
        batches = _shuffled(seen)
        best, accuracy, epochs = model, -1.0, 0
        for epoch in range(MOST_EPOCHS):
            model.train()
            for step in range(steps):
                values, truth = (tensor.to(device) for tensor in next(batches))
                optimizer.zero_grad()
                cross_entropy(model(values), truth).backward()
                optimizer.step()
                tell((epoch + (step + 1) / steps) / MOST_EPOCHS)
            now = accuracy_of(model, unseen)
            if now <= accuracy:
                break
            best, accuracy, epochs = deepcopy(model), now, epoch + 1
            for group in optimizer.param_groups:
                group["lr"] /= 2
    return best.eval(), epochs, accuracy


def _shuffled(seen: Pictures) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of endless passes, each shifted by some pixels where pictures are large."""
    height, width = seen.values.shape[2:]
    shift = min(height, width) // 14
    order = torch.randperm(len(seen))
    while True:
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(seen))])
        rows, order = order[:BATCH], order[BATCH:]
        y, x = torch.randint(0, 2 * shift + 1, (2,)).tolist()
        yield pad(seen.values[rows], [shift] * 4)[..., y : y + height, x : x + width], seen.classes[rows]


@torch.no_grad()
def accuracy_of(model: nn.Module, pictures: Pictures) -> float:
    """The share of pictures that it classifies rightly."""
    model.eval()
    device = next(model.parameters()).device
    right = 0.0
    for values, classes in zip(pictures.values.split(500), pictures.classes.split(500), strict=True):
        right += float((model(values.to(device)).argmax(1).cpu() == classes).sum())
    return right / len(pictures)
