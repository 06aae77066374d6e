"""Models that are alike as rows of one matrix: one optimizer step, one norm and one clipping for all of them.

Shape legend: N models, P numbers of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

ALIGNED = 16
"""Numbers to a multiple of which each parameter begins: 64 bytes, for vectorised loads."""


class Rows:
    """The parameters of N alike models and their gradients, two (N, P).

    The models go on as they are: their parameters become views of their rows, and so do the parameters' gradients,
    into which backward adds.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._places: dict[str, tuple[int, torch.Size, tuple[int, ...]]] = {}
        size = 0
        for name, parameter in models[0].named_parameters():
            self._places[name] = (size, parameter.shape, parameter.stride())  # as it lies: convolutions channels last
            size += math.ceil(parameter.numel() / ALIGNED) * ALIGNED
        device = next(models[0].parameters()).device
        self.values_NP, self.gradients_NP = (torch.zeros((len(models), size), device=device) for _ in range(2))
        self.each: list[nn.Parameter] = []
        """What the optimizer moves: the row (P,) of each model."""
        for model, values_P, gradients_P in zip(models, self.values_NP, self.gradients_NP, strict=True):
            for name, parameter in model.named_parameters():
                view = self.view(values_P, name)
                view.copy_(parameter.detach())
                parameter.data, parameter.grad = view, self.view(gradients_P, name)
            self.each.append(nn.Parameter(values_P))
            self.each[-1].grad = gradients_P

    def view(self, row_P: Tensor, name: str) -> Tensor:
        """One parameter's part of a row, be it of values or of moments."""
        start, shape, stride = self._places[name]
        return row_P.as_strided(shape, stride, row_P.storage_offset() + start)

    def views(self, row_P: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Every parameter's part of a row, by name."""
        return ((name, self.view(row_P, name)) for name in self._places)

    def stacked(self, name: str) -> nn.Parameter:
        """A parameter of all models as one, (N, …), whose gradient is theirs."""
        start, shape, stride = self._places[name]
        count, size = self.values_NP.shape
        of_all = (count, *shape), (size, *stride), start
        together = nn.Parameter(self.values_NP.as_strided(*of_all))
        together.grad = self.gradients_NP.as_strided(*of_all)
        return together
