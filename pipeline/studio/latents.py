"""Latent dimensions to drag: where they begin, which of them matter most, and what is made of them when they move.

Shape legend: B rows, C classes or attributes, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalities import Attributes, Label
from modalities.text import Tokens
from pipeline.batch import Batch
from pipeline.completing import batch_of
from pipeline.experts import Mixture
from pipeline.model import MultimodalVAE
from pipeline.posteriors import Distribution

NOTHING = 1e-4
"""Nats below which a dimension's posterior is the prior."""


@dataclass(frozen=True)
class Latent:
    """The mean of q(z | what is given), of the prior where nothing is."""

    mean_Z: Tensor
    step_Z: Tensor
    """The prior's standard deviation."""
    activity_Z: np.ndarray
    """By which dimensions are ranked."""
    measure: str
    """What that is."""
    given: Mapping[str, np.ndarray]

    def moved(self, offsets: Mapping[int, float]) -> Tensor:
        """The mean with some dimensions moved by so many standard deviations of the prior: (1, Z)."""
        z_Z = self.mean_Z.clone()
        for dimension, offset in offsets.items():
            z_Z[dimension] += offset * self.step_Z[dimension]
        return z_Z[None]

    @property
    def strongest(self) -> list[int]:
        """All dimensions, the most active first."""
        order: list[int] = np.argsort(-self.activity_Z, kind="stable").tolist()
        return order


@torch.no_grad()
def latent(model: MultimodalVAE, given: Mapping[str, np.ndarray]) -> Latent:
    """Dimensions are ranked by KL(q(z_d | given) || p(z_d)) in nats, of a mixture by its components' mean KL.

    Where nothing is given, or the posterior is the prior, by how much decoders make of it (`sensitivity`).
    """
    batch = rows(model, given, 1)
    prior = model.prior(batch.row_B.device)
    source = model.posterior(batch) if given else prior
    mean_Z, step_Z = source.mu[0], prior.deviation[0]
    if isinstance(source, Mixture):
        kl_TZ = _by_dimension(source.components.map(lambda tensor: tensor[:, 0]), prior)
        kl_Z = (source.weight_TB * kl_TZ).sum(0)
    else:
        kl_Z = _by_dimension(source, prior)[0]
    if kl_Z.max() > NOTHING:
        return Latent(mean_Z, step_Z, kl_Z.numpy(), f"KL(q(z | {', '.join(given)}) || p(z)) in nats", given)
    measure = "share in what is made, of the strongest one's"
    return Latent(mean_Z, step_Z, sensitivity(model, given, mean_Z, step_Z), measure, given)


def rows(model: MultimodalVAE, given: Mapping[str, np.ndarray], count: int) -> Batch:
    """So many rows that have what is given."""
    return batch_of(model.modalities, {name: [given.get(name)] * count for name in model.modalities})


def decodable(model: MultimodalVAE) -> list[str]:
    """The modalities that have a decoder: what a system takes as given has none."""
    return [name for name in model.modalities if name not in model.family.conditions]


@torch.no_grad()
def decoded(
    model: MultimodalVAE, given: Mapping[str, np.ndarray], names: Sequence[str], z_BZ: Tensor
) -> dict[str, Tensor]:
    """The parameters of p(x_name | z), by modality."""
    batch = rows(model, given, len(z_BZ))
    return {name: model.decode(name, z_BZ, batch) for name in names}


def probabilities(kind: Label | Attributes, parameters: Tensor) -> np.ndarray:
    """Of each class, or of each attribute: (B, C)."""
    found = parameters.float().softmax(1) if isinstance(kind, Label) else kind.mean(parameters)
    return found.numpy()


def sensitivity(model: MultimodalVAE, given: Mapping[str, np.ndarray], mean_Z: Tensor, step_Z: Tensor) -> np.ndarray:
    """How much changes between z_d one standard deviation below and above its mean: (Z,), 1 for the strongest.

    The mean over modalities, each in units of its strongest dimension: of levels, probabilities and numbers the mean
    difference, of texts the share of tokens that are others.
    """
    z_BZ = torch.cat([mean_Z - torch.diag(step_Z), mean_Z + torch.diag(step_Z)])
    total_Z = torch.zeros(len(mean_Z))
    for name, parameters in decoded(model, given, decodable(model), z_BZ).items():
        kind = model.modalities[name]
        values = parameters.float().softmax(1) if isinstance(kind, Label) else kind.mean(parameters)
        below, above = values.flatten(1).chunk(2)
        apart = (below != above).float() if isinstance(kind, Tokens) else (below - above).abs()
        change_Z = apart.mean(1)
        total_Z += change_Z / change_Z.max().clamp_min(1e-12)
    strongest: np.ndarray = (total_Z / total_Z.max().clamp_min(1e-12)).numpy()
    return strongest


def _by_dimension(one: Distribution, prior: Distribution) -> Tensor:
    """KL(one || prior) in nats of each dimension: the shape of `one`."""
    return one.map(lambda tensor: tensor[..., None]).kl(prior.map(lambda tensor: tensor[..., None]))  # type: ignore[arg-type]
