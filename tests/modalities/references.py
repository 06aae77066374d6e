"""torch's own log-likelihoods of (parameters, values), and all values that there are of some small modalities."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, distributions


def bernoulli(parameters: Tensor, value: Tensor) -> Tensor:
    flat = value.flatten(1)
    return distributions.Bernoulli(logits=parameters, validate_args=False).log_prob(flat).sum(1)


def gaussian(scale: float, location: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, value: distributions.Normal(location(output), scale).log_prob(value.flatten(1)).sum(1)


def laplace(scale: float, location: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, value: distributions.Laplace(location(output), scale).log_prob(value.flatten(1)).sum(1)


def unchanged(output: Tensor) -> Tensor:
    return output


def categorical(parameters: Tensor, value: Tensor) -> Tensor:
    return distributions.Categorical(logits=parameters).log_prob(value)


def word_by_word(parameters: Tensor, value: Tensor) -> Tensor:
    """Of one text after the other, and of one token after the other up to the first end."""
    sums = []
    for row, tokens in zip(parameters, value.tolist(), strict=True):
        read = tokens[: tokens.index(0) + 1] if 0 in tokens else tokens
        places = [distributions.Categorical(logits=row[place]) for place in range(len(read))]
        sums.append(sum(place.log_prob(torch.tensor(token)) for place, token in zip(places, read, strict=True)))
    return torch.stack(sums)


def all_beginnings(vocabulary: int = 5, length: int = 4) -> Tensor:
    """Whatever so many places may hold up to an end, starts and endless texts among them."""
    rows = itertools.product(range(vocabulary), repeat=length)
    return torch.tensor([row for row in rows if 0 not in row or not any(row[row.index(0) :])])


def all_binary() -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)
