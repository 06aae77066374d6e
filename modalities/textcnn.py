"""The convolutions for the captions of CUB (SVAE table F.5, MMVAE table 6 d): words by features, as a picture.

Three convolutions halve both sides, two the features only. The tables' last one, 4x4, makes 1x1 of the 4x4 that 32
words of 128 features become, which is what the authors' code has (iffsid/mmvae, vae_cub_sent.py). Of the printed 256
features 4x8 are left, which it would not cover; here the last one is as large as what is left of any sentence. Where
the papers have batch normalisation, these have group normalisation (`modalities/networks.py`).

Shape legend: B rows, L places in a sentence, V tokens, Z latent dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from modalities.networks import group_norm


class Layer(NamedTuple):
    """A convolution without a bias; sizes are (words, features)."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


LAYERS = (
    *(Layer(channels, (4, 4), (2, 2), (1, 1)) for channels in (32, 64, 128)),
    *(Layer(channels, (1, 4), (1, 2), (0, 1)) for channels in (256, 512)),
)


def reader(vocabulary: int, embedding: int, length: int) -> tuple[nn.Sequential, int]:
    """(B, L) tokens -> (B, H), and H; what is left of the sentence is covered by the heads that follow."""
    layers: list[nn.Module] = [nn.Embedding(vocabulary, embedding), nn.Unflatten(1, (1, length))]
    inputs = 1
    for channels, kernel, stride, padding in LAYERS:
        layers.append(nn.Conv2d(inputs, channels, kernel, stride, padding, bias=False))
        layers += [group_norm(channels), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers, nn.Flatten()), inputs * (length // 8) * (embedding // 32)


def writer(latent: int, vocabulary: int, embedding: int, length: int) -> nn.Sequential:
    """(B, Z) -> logits (B, L, V): the mirror of `reader`, then one linear layer for the words (the tables' Word Emb^T).

    The layer is not the encoder's embedding transposed, as the authors' code has it: the two are networks of their own.
    """
    first = nn.ConvTranspose2d(latent, LAYERS[-1].channels, (length // 8, embedding // 32), bias=False)
    layers: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1)), first, nn.ReLU()]
    outputs = [1, *(layer.channels for layer in LAYERS)]
    for (inputs, kernel, stride, padding), channels in zip(LAYERS[::-1], outputs[-2::-1], strict=True):
        layers.append(nn.ConvTranspose2d(inputs, channels, kernel, stride, padding, bias=False))
        layers += [*([group_norm(channels)] if channels > 1 else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(1, 2), nn.Linear(embedding, vocabulary))
