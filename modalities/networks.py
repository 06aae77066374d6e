"""The networks of the papers. Shape legend: B rows, H features, Z latent dimensions."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def mlp(sizes: tuple[int, ...], last_activation: bool = True) -> nn.Sequential:
    """Linear layers of these widths with Swish between them (MVAE supplement: "Swish" everywhere)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*(layers if last_activation else layers[:-1]))


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


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
