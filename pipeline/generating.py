"""What a trained model makes of any of its modalities, or of nothing: as many of any others as one likes.

Each is made of a z of its own. Noise is a function of seed and number, so that the first four of eight are the four.
Shape legend: B rows, Z latent dimensions, K what is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from modalities import Label
from modalities.independent import Independent
from modalities.text import Tokens, drawn
from pipeline.batch import Batch
from pipeline.completing import TOGETHER, batch_of, unanswerable
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.model import MultimodalVAE
from pipeline.noise import normal, uniform


@torch.no_grad()
def generate(
    model: MultimodalVAE,
    given: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    count: int,
    *,
    sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The wanted modalities `count` times, (K, …) by name: the mean of p(x | z), or with `sample` a sample of it.

    z ~ q(z | what is given), where nothing is given z ~ p(z), at a `temperature` (`tempered`). Raises UserError where
    the model's system makes no such modality of what is given.
    """
    names = list(model.modalities)
    if reason := unanswerable(model.family, names, list(given), wanted):
        raise UserError(reason)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for start in range(0, count, TOGETHER):
        numbers = range(start, min(start + TOGETHER, count))
        z_BZ, batch = vectors(model, given, numbers, temperature=temperature, seed=seed)
        for name in wanted:
            made = _drawn(model, name, z_BZ, batch, seed) if sample else _mean(model, name, z_BZ, batch)
            parts[name].append(made.numpy())
    return {name: np.concatenate(some) for name, some in parts.items()}


@torch.no_grad()
def vectors(
    model: MultimodalVAE, given: Mapping[str, np.ndarray], numbers: range, *, temperature: float = 1.0, seed: int = 0
) -> tuple[Tensor, Batch]:
    """The z of which each of these numbers is made, (B, Z), and the batch that decoders see beside it."""
    rows = {name: [given.get(name)] * len(numbers) for name in model.modalities}
    batch = batch_of(model.modalities, rows, numbers.start)
    source = model.posterior(batch) if given else model.prior(batch.row_B.device)
    width = source.noise if isinstance(source, Mixture) else model.latent
    noise = normal(seed, "generated", batch.row_B, 1, width)
    return tempered(source, temperature).sample(noise)[0], batch


def tempered(source: Gaussian | Laplace | Mixture, temperature: float) -> Gaussian | Laplace | Mixture:
    """The same distribution with each dimension's standard deviation times the temperature, around the same mean.

    At 0 it is the mean alone. Of a mixture it is each component's; which one is drawn does not change.
    """
    log = math.log(temperature) if temperature else -math.inf
    if isinstance(source, Mixture):
        components = tempered(source.components, temperature)
        return Mixture(components, source.weight_TB)  # type: ignore[arg-type]
    if isinstance(source, Laplace):
        return Laplace(source.mu, source.logscale + log)
    return Gaussian(source.mu, source.logvar + 2 * log)


def _mean(model: MultimodalVAE, name: str, z_BZ: Tensor, batch: Batch) -> Tensor:
    return model.modalities[name].mean(model.decode(name, z_BZ, batch))


def _drawn(model: MultimodalVAE, name: str, z_BZ: Tensor, batch: Batch, seed: int) -> Tensor:
    """A sample of p(x_name | z) of each row: (B, …)."""
    modality = model.modalities[name]
    first_B = normal(seed, f"drawn {name}", batch.row_B, 1, 1)[0, :, 0]
    if isinstance(modality, Tokens):
        uniform_BL = uniform(first_B, name, modality.length)
        if not modality.autoregressive:
            return modality.sample(model.decode(name, z_BZ, batch), uniform_BL)
        writer: Any = model.decoders[name]
        written: Tensor = writer.write(model.decoded_from(name, z_BZ, batch), uniform_BL)
        return written
    parameters = model.decode(name, z_BZ, batch)
    if isinstance(modality, Label):
        return drawn(parameters, uniform(first_B, name, 1)[:, 0])
    assert isinstance(modality, Independent)
    mean, size = modality.mean(parameters), math.prod(modality.shape)
    if modality.likelihood == "bernoulli":
        return (uniform(first_B, name, size).view_as(mean) < mean).float()
    noise = normal(seed, f"drawn {name}", batch.row_B, 1, size)[0].view_as(mean)
    log = torch.full_like(mean, math.log(modality.scale))
    kind = Laplace(mean, log) if modality.likelihood == "laplace" else Gaussian(mean, 2 * log)
    return kind.sample(noise)
