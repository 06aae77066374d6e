"""Networks that are alike run as one: N small ones cost one batched product a layer, not N products.

Shape legend: N networks, R rows of the longest of them.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from modalities.networks import GaussianEncoder, JointEncoder
from pipeline.batch import on_device

FEWEST = 4
"""Networks that are worth a stack."""
IN_CACHE = 10_000
"""Rows times features of the widest layer up to which a CPU gains by batched products.

Beyond them what lies between the products of all networks no longer fits into its cache, that of one network does.
"""
STACKABLE = {
    nn.Linear, nn.LayerNorm, nn.Embedding, nn.SiLU, nn.ReLU, nn.ELU, nn.Flatten, nn.Unflatten,
    nn.Sequential, GaussianEncoder, JointEncoder,
}  # fmt: skip
"""What stacked networks are made of: convolutions would become grouped ones, which are slower; others are not known."""


class Bank(nn.ModuleDict):
    """Networks by name, of which those that are alike may run as one."""

    def __init__(self, networks: Mapping[str, nn.Module], kinds: Mapping[str, Hashable]) -> None:
        """`kinds`: networks of one kind have the same structure."""
        super().__init__()
        self._alike: list[list[str]] = []
        self._one: dict[str, nn.Module] = {}
        """By the first of its networks what a stack computes; its parameters are placeholders."""
        self._own: dict[str, dict[str, list[Tensor]]] = {}
        """The parameters that take their places: by name, of each network."""
        self._batched = _batched
        self.update(networks)  # refuses the names of what is there already
        alike: dict[Hashable, list[str]] = {}
        for name, network in networks.items():
            alike.setdefault(kinds[name] if _stackable(network) else (name,), []).append(name)
        self._alike = list(alike.values())
        self._one = {
            names[0]: copy.deepcopy(networks[names[0]]).to("meta")
            for names in self._alike
            if len(names) >= FEWEST and not _in_parts(networks[names[0]])
        }
        self._own = self._find_own()

    def _find_own(self) -> dict[str, dict[str, list[Tensor]]]:
        stacks = {names[0]: [self[name] for name in names] for names in self._alike if names[0] in self._one}
        return {
            first: {key: [member.get_parameter(key) for member in members] for key, _ in members[0].named_parameters()}
            for first, members in stacks.items()
        }

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Where a device or precision is changed, parameters may become others."""
        super()._apply(fn, recurse)
        self._own = self._find_own()
        return self

    def together(self, rows: Mapping[str, int]) -> list[list[str]]:
        """Which networks run together in this step, from the rows of each; most run by themselves."""
        found = []
        for names in self._alike:
            if names[0] in self._one and self._pays(names, max(rows[name] for name in names)):
                found.append(names)
            else:
                found += [[name] for name in names]
        return found

    def _pays(self, names: Sequence[str], rows: int) -> bool:
        weight = next(self[names[0]].parameters())
        if _in_parts(self[names[0]]):
            return False
        width = max(layer.out_features for layer in self[names[0]].modules() if isinstance(layer, nn.Linear))
        return not weight.is_cpu or rows * width <= IN_CACHE

    def run_together(self, names: Sequence[str], inputs: Sequence[Tensor]) -> Any:
        """What networks of a group make of their rows: of several (N, R, …), of one (R, …)."""
        if len(names) == 1:
            return self[names[0]](*inputs)
        return self._batched(self._one[names[0]], self._stacked(names[0]), *inputs)

    def _stacked(self, first: str) -> dict[str, Tensor]:
        """The parameters (N, …) of the networks that run together with this one, by name."""
        return {key: torch.stack(parameters) for key, parameters in self._own[first].items()}

    def compile_all(self, **options: Any) -> None:
        """Have torch.compile make the code of each network, and of those that run as one."""
        for network in self.values():
            network.compile(**options)
        self._batched = torch.compile(_batched, **options)


def _batched(one: nn.Module, stacked: dict[str, Tensor], *inputs: Tensor) -> Any:
    return torch.vmap(lambda own, *rows: functional_call(one, own, rows))(stacked, *inputs)


def _stackable(network: nn.Module) -> bool:
    kinds = {type(layer) for layer in network.modules()}
    return nn.Linear in kinds and kinds <= STACKABLE


def _in_parts(network: nn.Module) -> bool:
    """Whether this is ZeRO 3, which gathers a network's parameters when it is called by itself."""
    return hasattr(next(network.parameters()), "ds_id")


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
        return together.index_select(0, on_device(np.concatenate(places), output.device))


def scattered(values: Tensor, places: np.ndarray, size: int) -> Tensor:
    """(size, …) with the rows of `values` at their places, which differ, and zeros elsewhere."""
    if len(places) == size and (np.diff(places) == 1).all():
        return values
    return values.new_zeros(size, *values.shape[1:]).index_copy(0, on_device(places, values.device), values)
