"""The networks of the papers. Shape legend: B rows, C channels, Y, X pixels, H features, Z latent dimensions.

Where the papers have batch normalisation, these have group normalisation (Wu & He, 2018): as many parameters, a scale
and a shift per channel, but a row does not depend on the rows beside it. So it may be a dummy, be padding, or be on
another rank, and training and evaluation compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = (32, 64, 128, 256)
"""Of the mini-DCGAN's four convolutions (MVAE table 1 and figures 7, 8)."""
STRIDES = 8
"""By how much the first three of them shrink a picture; the last takes 3 pixels from what is left of a side."""
GROUP = 16
"""Channels that are normalised together (Wu & He, 2018, table 3: 16 channels a group)."""


def mlp(sizes: tuple[int, ...], last_activation: bool = True, norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths with Swish between them (MVAE supplement: "Swish" everywhere).

    With `norm` each Swish has an affine normalisation over the layer's features before it (group normalisation with
    one group), where MVAE's networks for attributes have batch normalisation.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if norm else []), nn.SiLU()]
    if not last_activation:
        del layers[-2 if norm else -1 :]
    return nn.Sequential(*layers)


def convolutions(planes: tuple[int, int, int], hidden: tuple[int, ...]) -> nn.Sequential:
    """(B, C·Y·X) -> (B, hidden[-1]): the mini-DCGAN of MVAE for CelebA (table 1, figure 8), and linear layers.

    Four 4x4 convolutions without biases, with stride 2 and padding 1, the last with stride 1 and none; Swish after
    each, and an affine normalisation before all but the first Swish, as the parameters of table 1 say. `planes` is
    (C, Y, X), Y and X multiples of 8 from 32: 64x64 pixels become 256 channels of 5x5.
    """
    layers: list[nn.Module] = [nn.Unflatten(1, planes)]
    for number, (inputs, outputs) in enumerate(pairwise((planes[0], *CHANNELS))):
        stride, padding = (1, 0) if outputs == CHANNELS[-1] else (2, 1)
        layers.append(nn.Conv2d(inputs, outputs, 4, stride, padding, bias=False))
        layers += [*([nn.GroupNorm(outputs // GROUP, outputs)] if number else []), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), mlp((math.prod(_smallest(planes)), *hidden)))


def deconvolutions(hidden: tuple[int, ...], planes: tuple[int, int, int]) -> nn.Sequential:
    """(B, hidden[0]) -> (B, C·Y·X), without an activation at the end: the mirror of `convolutions`."""
    smallest = _smallest(planes)
    layers: list[nn.Module] = [mlp((*hidden, math.prod(smallest))), nn.Unflatten(1, smallest)]
    for inputs, outputs in pairwise((*reversed(CHANNELS), planes[0])):
        stride, padding = (1, 0) if inputs == CHANNELS[-1] else (2, 1)
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
        layers += [nn.GroupNorm(outputs // GROUP, outputs), nn.SiLU()] if outputs != planes[0] else []
    return nn.Sequential(*layers, nn.Flatten())


def _smallest(planes: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, Y, X) of the last convolution's output."""
    return CHANNELS[-1], planes[1] // STRIDES - 3, planes[2] // STRIDES - 3


class GaussianEncoder(nn.Module):
    """A body (B, …) -> (B, H), then one linear layer for the mean and the log-variance of an expert.

    Returns (mu_BZ, logvar_BZ) in the body's precision. Images are flattened; labels go to the body as integers.
    """

    def __init__(self, body: nn.Module, features: int, latent: int) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.Linear(features, 2 * latent)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        if value.is_floating_point():
            value = value.flatten(1).to(self.heads.weight.dtype)
        mu, logvar = self.heads(self.body(value)).chunk(2, dim=1)
        return mu, logvar


class JointEncoder(nn.Module):
    """One expert of several modalities: the features of each, concatenated, one hidden layer with Swish, heads.

    Table 1 of MVAE counts JMVAE's that way: feature layers of their own, 1024-512 and the heads. `features` are modules
    with the width of their output; takes one value per modality and returns (mu_BZ, logvar_BZ).
    """

    def __init__(self, features: Sequence[tuple[nn.Module, int]], latent: int) -> None:
        super().__init__()
        widths = [width for _, width in features]
        self.features = nn.ModuleList(module for module, _ in features)
        self.hidden = mlp((sum(widths), max(widths)))
        self.heads = nn.Linear(max(widths), 2 * latent)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            module(value.flatten(1).to(self.heads.weight.dtype) if value.is_floating_point() else value)
            for module, value in zip(self.features, values, strict=True)
        ]
        mu, logvar = self.heads(self.hidden(torch.cat(parts, 1))).chunk(2, dim=1)
        return mu, logvar


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
