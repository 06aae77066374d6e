"""The networks that SVAE (appendix F) and MMVAE (table 6) print: layer by layer, and to the last parameter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from modalities import Features, Image
from modalities.image import LEAST_SIDE
from modalities.independent import Independent
from modalities.networks import CONVOLUTIONS, GaussianEncoder, parameter_count

MNIST = Image(28, 28, hidden=(400,), activation="relu")
SVHN = Image(32, 32, channels=3, network="conv-svhn", hidden=())
BIRDS = Features(2048)
PRINTED = Image(32, 32, channels=3, network="conv-split", hidden=(786,))
HALF, THIRD, LONGER_THIRD = (Image(rows, 28, network="conv-split", hidden=(786,)) for rows in (14, 9, 10))


def layers(network: nn.Module) -> list[str]:
    """Its layers as the papers' tables write them."""
    words = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            assert layer.bias is not None
            words.append(f"FC {layer.out_features}")
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is not None
            y, x = layer.kernel_size
            name = "conv" if isinstance(layer, nn.Conv2d) else "upconv"
            assert layer.stride[0] == layer.stride[1]
            assert layer.padding[0] == layer.padding[1]
            words.append(f"{y}x{x} {name} {layer.out_channels} stride {layer.stride[0]} pad {layer.padding[0]}")
        elif isinstance(layer, nn.ReLU | nn.ELU):
            words[-1] += f" {type(layer).__name__}"
        else:
            assert isinstance(layer, nn.Sequential | nn.Flatten | nn.Unflatten | GaussianEncoder)
    return words


SPLIT = [
    "4x4 conv 64 stride 2 pad 1 ReLU", "4x4 conv 128 stride 2 pad 1 ReLU", "4x4 conv 256 stride 2 pad 1 ReLU",
    "FC 786 ReLU",
]  # fmt: skip
TABLES: dict[str, tuple[Independent, int, list[str], list[str]]] = {
    "SVAE F.3, MMVAE 6 a": (MNIST, 20, ["FC 400 ReLU"], ["FC 400 ReLU", "FC 784"]),
    "SVAE F.4, MMVAE 6 b": (
        SVHN, 20,
        ["4x4 conv 32 stride 2 pad 1 ReLU", "4x4 conv 64 stride 2 pad 1 ReLU", "4x4 conv 128 stride 2 pad 1 ReLU"],
        [
            "4x4 upconv 128 stride 1 pad 0 ReLU", "4x4 upconv 64 stride 2 pad 1 ReLU",
            "4x4 upconv 32 stride 2 pad 1 ReLU", "4x4 upconv 3 stride 2 pad 1",
        ],
    ),
    "SVAE F.6, MMVAE 6 c": (
        BIRDS, 64, ["FC 1024 ELU", "FC 512 ELU", "FC 256 ELU"],
        ["FC 256 ELU", "FC 512 ELU", "FC 1024 ELU", "FC 2048"],
    ),
    "SVAE F.2, a half": (
        HALF, 64, SPLIT,
        [
            "FC 64 ReLU", "FC 512 ReLU", "FC 112 ReLU", "3x7 upconv 56 stride 1 pad 0 ReLU",
            "5x4 upconv 28 stride 2 pad 1 ReLU", "4x4 upconv 1 stride 2 pad 1",
        ],
    ),
    "SVAE F.7, a third of 9 rows": (
        THIRD, 64, SPLIT,
        [
            "FC 64 ReLU", "FC 512 ReLU", "FC 112 ReLU", "2x7 upconv 56 stride 1 pad 0 ReLU",
            "4x4 upconv 28 stride 2 pad 1 ReLU", "5x4 upconv 1 stride 2 pad 1",
        ],
    ),
    "SVAE F.7, a third of 10 rows": (
        LONGER_THIRD, 64, SPLIT,
        [
            "FC 64 ReLU", "FC 512 ReLU", "FC 112 ReLU", "2x7 upconv 56 stride 1 pad 0 ReLU",
            "5x4 upconv 28 stride 2 pad 1 ReLU", "4x4 upconv 1 stride 2 pad 1",
        ],
    ),
}  # fmt: skip
"""Modality, latent dimensions, the encoder without its heads, and the decoder."""


@pytest.mark.parametrize("table", TABLES)
def test_layers_are_those_of_the_tables(table: str) -> None:
    """The two heads, "FC L, FC L", are one linear layer."""
    modality, latent, encoder, decoder = TABLES[table]
    assert layers(modality.encoder(latent)) == [*encoder, f"FC {2 * latent}"]
    assert layers(modality.decoder(latent)) == decoder


def test_features_for_other_networks_end_at_the_first_hidden_layer() -> None:
    wider = replace(SVHN, hidden=(24, 12))
    convolutions = layers(SVHN.encoder(5))[:-1]
    for modality, expected, width in (
        (MNIST, ["FC 400 ReLU"], 400),
        (BIRDS, ["FC 1024 ELU"], 1024),
        (HALF, SPLIT, 786),
        (SVHN, convolutions, 2048),
        (wider, [*convolutions, "FC 24 ReLU"], 24),
    ):
        network, found = modality.features()
        assert (layers(network), found) == (expected, width)


def test_linear_layers_of_ones_own_come_back_in_reverse() -> None:
    wider = replace(SVHN, hidden=(24, 12))
    assert layers(wider.encoder(5))[3:] == ["FC 24 ReLU", "FC 12 ReLU", "FC 10"]
    assert layers(wider.decoder(5))[:3] == ["FC 12 ReLU", "FC 24 ReLU", "4x4 upconv 128 stride 1 pad 0 ReLU"]


def conv(before: int, after: int, y: int = 4, x: int = 4) -> int:
    """Parameters of a convolution or deconvolution."""
    return before * after * y * x + after


def linear(*widths: int) -> int:
    """Parameters of linear layers of these widths."""
    return sum((before + 1) * after for before, after in pairwise(widths))


def test_encoders_have_as_many_parameters_as_the_tables_say() -> None:
    assert parameter_count(MNIST.encoder(20)) == linear(784, 400) + 2 * linear(400, 20)
    assert parameter_count(SVHN.encoder(20)) == conv(3, 32) + conv(32, 64) + conv(64, 128) + 2 * conv(128, 20)
    assert parameter_count(BIRDS.encoder(64)) == linear(2048, 1024, 512, 256) + 2 * linear(256, 64)
    shared = conv(64, 128) + conv(128, 256) + 2 * linear(786, 64)
    assert parameter_count(PRINTED.encoder(64)) == conv(3, 64) + shared + linear(256 * 4 * 4, 786)
    for part in (HALF, THIRD, LONGER_THIRD):
        assert parameter_count(part.encoder(64)) == conv(1, 64) + shared + linear(256 * 1 * 3, 786)


def test_decoders_have_as_many_parameters_as_the_tables_say() -> None:
    assert parameter_count(MNIST.decoder(20)) == linear(20, 400, 784)
    assert parameter_count(SVHN.decoder(20)) == conv(20, 128) + conv(128, 64) + conv(64, 32) + conv(32, 3)
    assert parameter_count(BIRDS.decoder(64)) == linear(64, 256, 512, 1024, 2048)
    widths = linear(64, 64, 512, 112)
    half = conv(112, 56, 3, 7) + conv(56, 28, 5, 4) + conv(28, 1)
    third = conv(112, 56, 2, 7) + conv(56, 28, 4, 4) + conv(28, 1, 5, 4)
    longer = conv(112, 56, 2, 7) + conv(56, 28, 5, 4) + conv(28, 1)
    for part, deconvolutions in ((HALF, half), (THIRD, third), (LONGER_THIRD, longer)):
        assert parameter_count(part.decoder(64)) == widths + deconvolutions


def test_heads_on_32_by_32_pixels_are_4x4_convolutions() -> None:
    """As tables F.4 and 6 b have them."""
    encoder, value = SVHN.encoder(20), torch.rand(2, 3, 32, 32)
    left = encoder.body[:-2](value.flatten(1))
    assert left.shape == (2, 128, 4, 4)
    heads = conv2d(left, encoder.heads.weight.view(40, 128, 4, 4), encoder.heads.bias)
    torch.testing.assert_close(torch.cat(encoder(value), 1), heads.flatten(1))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "laplace"])
@pytest.mark.parametrize("network", LEAST_SIDE)
def test_every_network_takes_and_gives_pictures_of_every_size_that_it_can(network: str, likelihood: str) -> None:
    assert set(LEAST_SIDE) == {"mlp", *CONVOLUTIONS}
    taken = 0
    for height, width, channels in ((14, 28, 1), (9, 28, 1), (10, 28, 1), (28, 28, 1), (32, 32, 3), (41, 34, 3)):
        if min(height, width) < LEAST_SIDE[network]:
            continue
        taken += 1
        for hidden in ((16, 8), (8,), *([()] if network != "mlp" else [])):
            image = Image(height, width, hidden=hidden, channels=channels, network=network, likelihood=likelihood)
            value = torch.rand(2, *image.shape)
            mu, logvar = image.encoder(5)(value)
            features, width_of_features = image.features()
            assert features(value.flatten(1)).shape == (2, width_of_features)
            parameters = image.decoder(5)(mu)
            assert mu.shape == logvar.shape == (2, 5)
            assert parameters.shape == (2, channels * height * width)
            assert image.mean(parameters).shape == value.shape
            assert image.log_likelihood(parameters, value).isfinite().all()
    assert taken == (2 if LEAST_SIDE[network] == 32 else 6)


@pytest.mark.parametrize("modality", [SVHN, HALF, MNIST, BIRDS])
def test_a_decoder_ends_without_an_activation(modality: Independent) -> None:
    """What the tables print after it is the likelihood's: a sigmoid, or nothing."""
    torch.manual_seed(0)
    decoder, z = modality.decoder(6), torch.randn(2, 6)
    output = decoder(z)
    last = [layer for layer in decoder.modules() if next(layer.parameters(False), None) is not None][-1]
    for parameter in last.parameters():
        parameter.data.neg_()
    torch.testing.assert_close(decoder(z), -output)
