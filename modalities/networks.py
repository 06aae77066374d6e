"""The networks of the papers. Shape legend: B rows, C channels, Y, X pixels, H features, Z latent dimensions.

Where the papers have batch normalisation, these have group normalisation (Wu & He, 2018): as many parameters, a scale
and a shift per channel, but a row does not depend on the rows beside it. So it may be a dummy, be padding, or be on
another rank, and training and evaluation compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

KERNEL = 4
"""Pixels a side of the kernel of every convolution."""
GROUP = 16
"""Channels that are normalised together (Wu & He, 2018, table 3: 16 channels a group)."""


class Convolution(NamedTuple):
    """A convolution without a bias and the Swish after it, with an affine normalisation between them if `norm`."""

    channels: int
    stride: int = 2
    padding: int = 1
    norm: bool = True

    def size(self, side: int) -> int:
        """Pixels of a side that had `side` before."""
        return (side + 2 * self.padding - KERNEL) // self.stride + 1

    def mirror(self, side: int) -> int:
        """Kernel of the deconvolution that makes `side` pixels of `size(side)`: longer by what the stride left over."""
        return side + 2 * self.padding - (self.size(side) - 1) * self.stride


CONVOLUTIONS: dict[str, tuple[Convolution, ...]] = {
    "conv": (Convolution(32, norm=False), Convolution(64), Convolution(128), Convolution(256, 1, 0)),
    "conv-strided": (Convolution(32, norm=False), Convolution(64), Convolution(128), Convolution(256, 2, 0)),
    "conv-shallow": (Convolution(64, norm=False), Convolution(128, norm=False)),
}
"""MVAE's miniature DCGANs, as the parameters of table 1 and the authors' code (mhw32/multimodal-vae-public) have them.

For CelebA (figure 8) 64x64 pixels become 256 channels of 5x5, for MultiMNIST (figure 7) 50x50 become 256 of 2x2, and
for FashionMNIST (figure 6, whose 6152 features are 128·7·7 = 6272) 28x28 become 128 of 7x7.
"""


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


def convolutions(network: str, planes: tuple[int, int, int], hidden: tuple[int, ...]) -> nn.Sequential:
    """(B, C·Y·X) -> (B, hidden[-1]): the convolutions of that name, and linear layers. `planes` is (C, Y, X)."""
    *inputs, smallest = _sizes(network, planes)
    layers: list[nn.Module] = [nn.Unflatten(1, planes)]
    for layer, (channels, _, _) in zip(CONVOLUTIONS[network], inputs, strict=True):
        layers.append(nn.Conv2d(channels, layer.channels, KERNEL, layer.stride, layer.padding, bias=False))
        layers += [*([_group_norm(layer.channels)] if layer.norm else []), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), mlp((math.prod(smallest), *hidden)))


def deconvolutions(network: str, hidden: tuple[int, ...], planes: tuple[int, int, int]) -> nn.Sequential:
    """(B, hidden[0]) -> (B, C·Y·X), without an activation at the end: the mirror of `convolutions`."""
    *outputs, smallest = _sizes(network, planes)
    layers: list[nn.Module] = [mlp((*hidden, math.prod(smallest))), nn.Unflatten(1, smallest)]
    for layer, output in zip(CONVOLUTIONS[network][::-1], outputs[::-1], strict=True):
        channels, y, x = output
        kernel = (layer.mirror(y), layer.mirror(x))
        layers.append(nn.ConvTranspose2d(layer.channels, channels, kernel, layer.stride, layer.padding, bias=False))
        if output != planes:
            layers += [*([_group_norm(channels)] if layer.norm else []), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten())


def _sizes(network: str, planes: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(C, Y, X) of a picture, and after each convolution."""
    sizes = [planes]
    for layer in CONVOLUTIONS[network]:
        sizes.append((layer.channels, layer.size(sizes[-1][1]), layer.size(sizes[-1][2])))
    return sizes


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP, channels)


def as_input(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A batch of values as networks take it: flattened rows in the networks' precision; integers as they are."""
    return value.flatten(1).to(dtype) if value.is_floating_point() else value


class GaussianEncoder(nn.Module):
    """A body (B, …) -> (B, H), then one linear layer for the mean and the log-variance of an expert.

    Returns (mu_BZ, logvar_BZ) in the body's precision. Images are flattened; labels go to the body as integers.
    """

    def __init__(self, body: nn.Module, features: int, latent: int) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.Linear(features, 2 * latent)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.heads(self.body(as_input(value, self.heads.weight.dtype))).chunk(2, dim=1)
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
            module(as_input(value, self.heads.weight.dtype))
            for module, value in zip(self.features, values, strict=True)
        ]
        mu, logvar = self.heads(self.hidden(torch.cat(parts, 1))).chunk(2, dim=1)
        return mu, logvar


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
