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
    """A convolution and the activation after it, with an affine normalisation between them if `norm`."""

    channels: int
    stride: int = 2
    padding: int = 1
    norm: bool = False

    def size(self, side: int) -> int:
        """Pixels of a side that had `side` before."""
        return (side + 2 * self.padding - KERNEL) // self.stride + 1

    def mirror(self, side: int) -> int:
        """Kernel of the deconvolution that makes `side` pixels of `size(side)`: longer by what the stride left over."""
        return side + 2 * self.padding - (self.size(side) - 1) * self.stride


class Stack(NamedTuple):
    """The convolutions of an encoder, and what its decoder differs in from their mirror."""

    convolutions: tuple[Convolution, ...]
    activation: str = "swish"
    bias: bool = False
    """Whether convolutions and deconvolutions have one."""
    from_one: bool = False
    """Whether a decoder's linear layers end at one pixel, from which a deconvolution makes the smallest picture."""
    mirrored: tuple[Convolution, ...] = ()
    """What the deconvolutions mirror, where it is not `convolutions`."""
    widths: tuple[int, ...] = ()
    """Of a decoder's linear layers after one that keeps the latent width, where they are not the encoder's in reverse.
    """


CONVOLUTIONS: dict[str, Stack] = {
    "conv": Stack(
        (Convolution(32), Convolution(64, norm=True), Convolution(128, norm=True), Convolution(256, 1, 0, norm=True))
    ),
    "conv-strided": Stack(
        (Convolution(32), Convolution(64, norm=True), Convolution(128, norm=True), Convolution(256, 2, 0, norm=True))
    ),
    "conv-shallow": Stack((Convolution(64), Convolution(128))),
    "conv-svhn": Stack((Convolution(32), Convolution(64), Convolution(128)), "relu", bias=True, from_one=True),
    "conv-split": Stack(
        (Convolution(64), Convolution(128), Convolution(256)), "relu", bias=True, from_one=True,
        mirrored=(Convolution(28), Convolution(56)), widths=(512, 112),
    ),
}  # fmt: skip
"""The first three are MVAE's miniature DCGANs, as the parameters of table 1 and the authors' code
(mhw32/multimodal-vae-public) have them: for CelebA (figure 8) 64x64 pixels become 256 channels of 5x5, for MultiMNIST
(figure 7) 50x50 become 256 of 2x2, and for FashionMNIST (figure 6, whose 6152 features are 128·7·7 = 6272) 28x28 become
128 of 7x7.

conv-svhn is SVAE's for SVHN (table F.4) and MMVAE's (table 6 b). Its heads are printed as 4x4 convolutions of the 128
channels of 4x4 that 32x32 pixels become, which is a linear layer of 2048 features: there is no hidden one between.

conv-split is SVAE's for halves and thirds of MNIST's digits (tables F.2 and F.7), printed for pictures of 3x32x32 and
with a decoder that ends at 28 channels. Changed for 14x28, 9x28 or 10x28 pixels, channels and depth kept:

- the first convolution has the picture's one channel, not 3;
- the linear layer of 786 features has the 256·1·3 before it that are left of such a picture, not 256·4·4;
- the deconvolution from one pixel to 56 channels has the kernel that makes 3x7 pixels of it (thirds: 2x7), not 4x4;
- the one to 28 channels makes 7x14 of them (thirds: 4x14 or 5x14), its kernel longer by the pixel that halving an odd
  side leaves over: 5x4 (4x4 or 5x4), not 4x4 (F.7: 2x4);
- a third one follows, without an activation, from 28 channels to the picture: 4x4 with stride 2 (9x28: 5x4).
"""
ACTIVATIONS: dict[str, type[nn.Module]] = {"swish": nn.SiLU, "relu": nn.ReLU, "elu": nn.ELU}


def mlp(
    sizes: tuple[int, ...], last_activation: bool = True, norm: bool = False, activation: str = "swish"
) -> nn.Sequential:
    """Linear layers of these widths with an activation between them (MVAE supplement: "Swish" everywhere; SVAE
    appendix F and MMVAE table 6: ReLU, and ELU for feature vectors).

    With `norm` each activation has an affine normalisation over the layer's features before it (group normalisation
    with one group), where MVAE's networks for attributes have batch normalisation.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if norm else []), ACTIVATIONS[activation]()]
    if not last_activation:
        del layers[-2 if norm else -1 :]
    return nn.Sequential(*layers)


def convolutions(network: str, planes: tuple[int, int, int], hidden: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """(B, C·Y·X) -> (B, H), and H: the convolutions of that name, then linear layers. `planes` is (C, Y, X)."""
    stack = CONVOLUTIONS[network]
    *inputs, smallest = _sizes(stack.convolutions, planes)
    layers: list[nn.Module] = [nn.Unflatten(1, planes)]
    for layer, (channels, _, _) in zip(stack.convolutions, inputs, strict=True):
        layers.append(nn.Conv2d(channels, layer.channels, KERNEL, layer.stride, layer.padding, bias=stack.bias))
        layers += _after(layer.channels, layer, stack)
    widths = (math.prod(smallest), *hidden)
    return nn.Sequential(*layers, nn.Flatten(), mlp(widths, activation=stack.activation)), widths[-1]


def deconvolutions(network: str, latent: int, hidden: tuple[int, ...], planes: tuple[int, int, int]) -> nn.Sequential:
    """(B, Z) -> (B, C·Y·X), without an activation at the end: the mirror of `convolutions`, `hidden` in reverse."""
    stack = CONVOLUTIONS[network]
    mirrored = stack.mirrored or stack.convolutions
    *outputs, smallest = _sizes(mirrored, planes)
    widths = (latent, latent, *stack.widths) if stack.widths else (latent, *hidden[::-1])
    if stack.from_one:
        layers: list[nn.Module] = [
            mlp(widths, activation=stack.activation),
            nn.Unflatten(1, (widths[-1], 1, 1)),
            nn.ConvTranspose2d(widths[-1], smallest[0], smallest[1:], bias=stack.bias),
            *_after(smallest[0], mirrored[-1], stack),
        ]
    else:
        layers = [mlp((*widths, math.prod(smallest)), activation=stack.activation), nn.Unflatten(1, smallest)]
    for layer, output in zip(mirrored[::-1], outputs[::-1], strict=True):
        channels, y, x = output
        kernel = (layer.mirror(y), layer.mirror(x))
        layers.append(
            nn.ConvTranspose2d(layer.channels, channels, kernel, layer.stride, layer.padding, bias=stack.bias)
        )
        if output != planes:
            layers += _after(channels, layer, stack)
    return nn.Sequential(*layers, nn.Flatten())


def _sizes(layers: Sequence[Convolution], planes: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(C, Y, X) of a picture, and after each convolution."""
    sizes = [planes]
    for layer in layers:
        sizes.append((layer.channels, layer.size(sizes[-1][1]), layer.size(sizes[-1][2])))
    return sizes


def _after(channels: int, layer: Convolution, stack: Stack) -> list[nn.Module]:
    """What follows so many channels of a convolution or its mirror."""
    return [*([group_norm(channels)] if layer.norm else []), ACTIVATIONS[stack.activation]()]


def group_norm(channels: int) -> nn.GroupNorm:
    """What these networks have where the papers' have batch normalisation."""
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
