"""Networks that are alike run as one: N small ones cost one batched product a layer, not N products.

Shape legend: N networks, R rows of the longest of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map

FEWEST = 4
"""Networks that are stacked; fewer gain nothing."""
STACKABLE = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.SiLU, nn.Flatten, nn.Unflatten)
"""Layers of which stacked networks are made: convolutions would become grouped ones, which are slower."""


class Stacked(nn.Module):
    """N networks of one structure as one: (N, R, …) -> (N, R, …), network n on the rows [n]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """The networks' own parameters, stacked: (N, …) each; weights of linear layers as (N, inputs, outputs).

        That is how the batched product takes them, and how their gradients come, so nothing has to be copied.
        """
        super().__init__()
        linear = {f"{name}.weight" for name, layer in networks[0].named_modules() if isinstance(layer, nn.Linear)}
        self._turned = {name: name in linear for name, _ in networks[0].named_parameters()}
        for name, turned in self._turned.items():
            together = torch.stack([network.get_parameter(name).detach() for network in networks])
            stored = together.transpose(1, 2).contiguous() if turned else together
            self.register_parameter(name.replace(".", "__"), nn.Parameter(stored))
        self._one = (networks[0].to("meta"),)  # in a tuple it is no submodule: its parameters are placeholders

    def forward(self, *inputs: Tensor) -> Any:
        own = {name: getattr(self, name.replace(".", "__")) for name in self._turned}
        parameters = {name: own[name].transpose(1, 2) if turned else own[name] for name, turned in self._turned.items()}
        return torch.vmap(lambda own, *rows: functional_call(self._one[0], own, rows))(parameters, *inputs)


class Bank(nn.ModuleDict):
    """Networks by name; those that are alike are one entry, named after the first."""

    def __init__(self, networks: Mapping[str, nn.Module], kinds: Mapping[str, Hashable]) -> None:
        """`kinds`: networks of one kind have the same structure."""
        alike: dict[Hashable, list[str]] = {}
        for name, network in networks.items():
            alike.setdefault(kinds[name] if _stackable(network) else (name,), []).append(name)
        self.groups = [
            group for names in alike.values() for group in ([names] if len(names) >= FEWEST else [[n] for n in names])
        ]
        """The names behind each entry."""
        super().__init__(
            {
                group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more": networks[group[0]]
                if len(group) == 1
                else Stacked([networks[name] for name in group])
                for group in self.groups
            }
        )

    def entries(self) -> Iterator[tuple[list[str], nn.Module]]:
        """(names, the network or the stack of networks) one after the other."""
        return zip(self.groups, self.values(), strict=True)

    def alone(self, name: str, *inputs: Tensor) -> Any:
        """What the network of this name alone makes of (R, …). Raises KeyError."""
        for names, network in self.entries():
            if name in names:
                if len(names) == 1:
                    return network(*inputs)
                outputs = network(*(value.expand(len(names), *value.shape) for value in inputs))
                return tree_map(itemgetter(names.index(name)), outputs)
        raise KeyError(name)


def _stackable(network: nn.Module) -> bool:
    return all(isinstance(layer, STACKABLE) for layer in network.modules() if not list(layer.children()))


class Ragged:
    """Rows of several networks, of different number, side by side: padded to one number, and flat again.

    Of one network alone they have no axis N. The number is the largest, rounded up to a multiple of `bucket`, so that
    networks see few different shapes however many rows a batch happens to have of a modality.
    """

    def __init__(self, counts: Sequence[int], bucket: int = 1) -> None:
        self.counts = np.asarray(counts)
        self.total = int(self.counts.sum())
        self._longest = -(-max(1, int(self.counts.max())) // bucket) * bucket

    def padded(self, inputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The networks' inputs, from those of each; of several networks (N, R, …)."""
        if len(inputs) == 1:
            return [self._filled(value, 0) for value in inputs[0]]
        return [self._filled(pad_sequence(list(values), batch_first=True), 1) for values in zip(*inputs, strict=True)]

    def _filled(self, values: Tensor, axis: int) -> Tensor:
        missing = self._longest - values.shape[axis]
        if not missing:
            return values
        shape = list(values.shape)
        shape[axis] = missing
        return torch.cat([values, values.new_zeros(shape)], axis)

    def index(self, chosen: Sequence[np.ndarray]) -> np.ndarray:
        """Indices of the rows of each network as one array (N, R), or (R,); 0 where there is none."""
        padded = np.zeros((len(chosen), self._longest), np.int64)
        for row, some in zip(padded, chosen, strict=True):
            row[: len(some)] = some
        return padded[0] if len(chosen) == 1 else padded

    def flat(self, output: Tensor) -> Tensor:
        """The rows of all networks one after the other: (total, …); all of the padding where there are none."""
        if len(self.counts) == 1:
            return output[: self.total or None]
        together = output.flatten(0, 1)
        if not self.total or (self.counts == self._longest).all():
            return together
        places = [number * self._longest + np.arange(count) for number, count in enumerate(self.counts)]
        return together.index_select(0, torch.from_numpy(np.concatenate(places)).to(output.device, non_blocking=True))


def scattered(values: Tensor, places: np.ndarray, size: int) -> Tensor:
    """(size, …) with the rows of `values` at their places, which differ, and zeros elsewhere."""
    if len(places) == size and (np.diff(places) == 1).all():
        return values
    index = torch.from_numpy(places).to(values.device, non_blocking=True)
    return values.new_zeros(size, *values.shape[1:]).index_copy(0, index, values)
