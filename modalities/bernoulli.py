"""Values whose elements are independent Bernoulli variables: an MLP in, and an MLP out to one logit per element."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modalities.spec import Modality

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Bernoulli(Modality):
    """The networks and the likelihood of such values; what their bytes are, a subclass says."""

    @property
    @abstractmethod
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers of the encoder; the decoder has them in reverse."""

    def encoder(self, latent: int) -> nn.Module:
        from modalities.networks import GaussianEncoder, mlp

        return GaussianEncoder(mlp((math.prod(self.shape), *self.hidden)), self.hidden[-1], latent)

    def features(self) -> tuple[nn.Module, int]:
        from modalities.networks import mlp

        return mlp((math.prod(self.shape), self.hidden[0])), self.hidden[0]

    def decoder(self, latent: int) -> nn.Module:
        from modalities.networks import mlp

        return mlp((latent, *reversed(self.hidden), math.prod(self.shape)), last_activation=False)

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        target = value.flatten(1).float()
        return -binary_cross_entropy_with_logits(parameters.float(), target, reduction="none").sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.float().sigmoid().unflatten(1, self.shape)
