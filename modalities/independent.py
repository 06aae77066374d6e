"""Values whose elements are independent given z: an MLP in, and an MLP out to one number per element.

What that number says depends on the likelihood: for Bernoulli variables it is the logit; for Gaussian or Laplace ones
of one fixed scale, what `location` makes the element's mean or median of.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modalities.spec import Modality

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Independent(Modality):
    """The networks and the likelihood of such values; what their bytes are, a subclass says."""

    @property
    @abstractmethod
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers of the encoder; the decoder has them in reverse."""

    @property
    def likelihood(self) -> Literal["bernoulli", "gaussian", "laplace"]:
        """The distribution of an element given z."""
        return "bernoulli"

    @property
    def scale(self) -> float:
        """The standard deviation of gaussian, the diversity b of laplace (density exp(-|x - location| / b) / 2b)."""
        return 1.0

    @property
    def activation(self) -> Literal["swish", "relu", "elu"]:
        """What follows each hidden layer."""
        return "swish"

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}: choose a number above 0")
        if self.likelihood == "bernoulli" and self.scale != 1:
            raise ValueError(
                f"scale is {self.scale}: a Bernoulli has none, so choose gaussian or laplace, or scale 1.0"
            )

    def encoder(self, latent: int) -> nn.Module:
        from modalities.networks import GaussianEncoder, mlp

        sizes = (math.prod(self.shape), *self.hidden)
        return GaussianEncoder(mlp(sizes, activation=self.activation), self.hidden[-1], latent)

    def features(self) -> tuple[nn.Module, int]:
        from modalities.networks import mlp

        return mlp((math.prod(self.shape), self.hidden[0]), activation=self.activation), self.hidden[0]

    def decoder(self, latent: int) -> nn.Module:
        from modalities.networks import mlp

        sizes = (latent, *reversed(self.hidden), math.prod(self.shape))
        return mlp(sizes, last_activation=False, activation=self.activation)

    def location(self, output: Tensor) -> Tensor:
        """The mean of each element, or for laplace its median, of what the decoder gives: within 0 to 1."""
        return output.sigmoid()

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

        output, target = parameters.float(), value.flatten(1).float()
        if self.likelihood == "bernoulli":
            return -binary_cross_entropy_with_logits(output, target, reduction="none").sum(1)
        location, elements = self.location(output), target.shape[1]
        if self.likelihood == "gaussian":
            squares = mse_loss(location, target, reduction="none").sum(1)
            return -squares / (2 * self.scale**2) - elements * math.log(self.scale * math.sqrt(2 * math.pi))
        distances = l1_loss(location, target, reduction="none").sum(1)
        return -distances / self.scale - elements * math.log(2 * self.scale)

    def mean(self, parameters: Tensor) -> Tensor:
        return self.location(parameters.float()).unflatten(1, self.shape)
