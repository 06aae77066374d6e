"""Missing modalities out of a model: values, and how sure the model is of them.

K samples of q(z | what is there) say how far the value hangs on z; their importance weights say how far q is from what
the model itself believes (MVAE table 3). Shape legend: K samples, B rows, R rows that lack a modality, M modalities, Z
latent dimensions, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalities import Attributes, Features, Image, Label, Modality
from modalities.text import END, START, Tokens, drawn
from pipeline.batch import Batch
from pipeline.experts import Mixture
from pipeline.imputing.settings import Settings
from pipeline.model import MultimodalVAE
from pipeline.noise import normal, uniform


@dataclass(frozen=True)
class Made:
    """A modality of the rows that lack it."""

    values: np.ndarray
    """(R, *shape), as `Modality.decode` gives them; an image or an attribute between its levels."""
    spread: np.ndarray
    """(R,), 0 where all samples agree, at most 1. A class: 1 - the probability of the likeliest one. Attributes: the
    same, their mean. An image: the mean standard deviation of a pixel, in units of white. Numbers: s / (s + scale) of
    their mean standard deviation s and the scale of their likelihood. A text: the share of samples that say another."""


@torch.inference_mode()
def made(
    model: MultimodalVAE, batch: Batch, needs: Mapping[str, np.ndarray], settings: Settings
) -> tuple[dict[str, Made], np.ndarray]:
    """The modalities that rows of the batch need (their numbers in it), and the variance of each row's log weights.

    w_k = p(x_given, z_k) / q(z_k | x_given): (B,). A row's noise hangs on the seed and `row_B` alone.
    """
    posterior, count = model.posterior(batch), settings.samples
    width = posterior.noise if isinstance(posterior, Mixture) else model.latent
    noise = normal(settings.seed, "imputed", batch.row_B, count, width)
    z_KBZ = posterior.sample(noise)
    seen_BM = np.array([name in model.generated for name in batch.values]) & batch.present_BM
    likely_KBM, _ = model.decode_all(batch, z_KBZ, np.broadcast_to(seen_BM, (count, *seen_BM.shape)))
    prior = model.prior(z_KBZ.device).map(lambda tensor: tensor.expand(len(batch), -1))
    weights_KB = likely_KBM.sum(2) + prior.log_prob(z_KBZ) - posterior.log_prob(z_KBZ)
    found = {}
    for name, rows in needs.items():
        modality, index = model.modalities[name], torch.from_numpy(rows).to(z_KBZ.device)
        parameters = _decoded(model, name, batch, z_KBZ, index)
        places = modality.shape[0] if len(modality.shape) == 1 else 1  # pictures are not drawn
        number = uniform(noise[0, index, 0], f"imputed {name}", places) if settings.value == "sample" else None
        values, spread = _told(modality, parameters, count, number)
        found[name] = Made(values.cpu().numpy(), spread.float().cpu().numpy())
    return found, weights_KB.var(0).cpu().numpy()


def _decoded(model: MultimodalVAE, name: str, batch: Batch, z_KBZ: Tensor, index_R: Tensor) -> Tensor:
    """The parameters of p(x_name | z) of these rows, (K * R, ...)."""
    if model.family.conditions:  # which the decoder sees too, of every row of the batch
        return torch.cat([model.decode(name, z_BZ, batch)[index_R] for z_BZ in z_KBZ])
    return model.decode(name, z_KBZ[:, index_R].flatten(0, 1), batch)


def _told(modality: Modality, parameters: Tensor, count: int, number: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values and spread; with a `number` (R, places) in [0, 1) the values of the first sample, drawn by it."""
    if isinstance(modality, Label):
        chance_KRC = parameters.float().softmax(1).unflatten(0, (count, -1))
        most, likeliest = chance_KRC.mean(0).max(1)
        first = likeliest if number is None else drawn(chance_KRC[0].log(), number[:, 0])
        return first, 1 - most
    said = modality.mean(parameters).unflatten(0, (count, -1))
    if isinstance(modality, Tokens):
        votes_KR = (said[:, None] == said[None]).all(3).sum(1)
        most, which = votes_KR.cpu().numpy().max(0), votes_KR.cpu().numpy().argmax(0)  # of several the first
        rows = torch.arange(len(which), device=said.device)
        texts = said[torch.from_numpy(which).to(said.device), rows]
        if number is not None:
            one = parameters.unflatten(0, (count, -1))[0]
            texts = said[0] if modality.autoregressive else modality.sample(one, number)
        return texts, 1 - torch.from_numpy(most / count)
    if isinstance(modality, Attributes):
        chance = said.mean(0)
        applies = chance if number is None else (number < said[0]).float()
        return applies, 1 - torch.maximum(chance, 1 - chance).flatten(1).mean(1)
    mean = said.mean(0)
    squares = (said - mean).square_().sum(0).div_(count - 1)  # ten times as fast on a CPU as `std` over the first place
    deviation = squares.sqrt_().flatten(1).mean(1)
    if isinstance(modality, Features):
        deviation = deviation / (deviation + modality.scale)
    return mean if number is None else said[0], deviation


def storable(modality: Modality, values: np.ndarray) -> np.ndarray:
    """What `Modality.encode` takes, of values (R, *shape) as `decode` gives them or of means that a decoder gives.

    A text that does not end in time is cut, and start tokens within it, which no text holds, are left out.
    """
    if isinstance(modality, Image):
        levels = np.rint(values.clip(0, 1) * modality.levels).astype(np.uint8)
        return levels if levels.ndim == 3 else np.ascontiguousarray(np.moveaxis(levels, 1, 3))
    if isinstance(modality, Tokens):
        return np.stack([_text(words, modality.length) for words in values])
    return values > 0.5 if isinstance(modality, Attributes) else values


def _text(words: np.ndarray, length: int) -> np.ndarray:
    words = words[: np.argmax(words == END) if (words == END).any() else None]
    words = words[words != START][: length - 1]
    return np.concatenate([words, np.full(length - len(words), END)])
