"""A batch of partially present samples. Shape legend: B rows, M modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from modalities import Modality


@dataclass(frozen=True)
class Batch:
    """Rows of which some modalities are absent.

    values[m]: the values of the rows that have modality m, compacted: (len(rows_of[m]), *shape). Where no row has
    it, one zero row stands in (and rows_of[m] is empty), so that every network runs on every rank in every step.
    """

    values: dict[str, Tensor]
    rows_of: dict[str, np.ndarray]
    present_BM: np.ndarray
    weight_B: Tensor
    """1, or 0 for a row that only fills up the batch or was damaged; such a row should have nothing present."""
    row_B: Tensor
    """Number of each row in the whole run (step * global batch + slot): the noise of a row hangs on it."""
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on a device (non-blocking)."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            values={name: value.to(device, non_blocking=True) for name, value in self.values.items()},
            weight_B=self.weight_B.to(device, non_blocking=True),
            row_B=self.row_B.to(device, non_blocking=True),
        )

    def pinned(self) -> Self:
        """The same batch in page-locked memory."""
        return replace(
            self,
            values={name: value.pin_memory() for name, value in self.values.items()},
            weight_B=self.weight_B.pin_memory(),
            row_B=self.row_B.pin_memory(),
        )

    def only(self, names: frozenset[str]) -> Batch:
        """The same rows with just these modalities present; the others are as if they had never been there."""
        shown = np.array([name in names for name in self.values])
        values, rows_of = dict(self.values), dict(self.rows_of)
        for name in self.values:
            if name not in names:
                values[name] = torch.zeros_like(values[name][:1])
                rows_of[name] = np.empty(0, np.int64)
        return replace(self, values=values, rows_of=rows_of, present_BM=self.present_BM & shown)


def on_device(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An array as a tensor on a device, without waiting for what the device is doing."""
    return torch.from_numpy(array).to(device, dtype, non_blocking=True)


def empty_batch(modalities: Mapping[str, Modality], device: torch.device) -> Batch:
    """One row that has no modality and weighs nothing."""
    return Batch(
        values={name: torch.from_numpy(np.zeros((1, *m.shape), m.dtype)).to(device) for name, m in modalities.items()},
        rows_of={name: np.empty(0, np.int64) for name in modalities},
        present_BM=np.zeros((1, len(modalities)), bool),
        weight_B=torch.zeros(1, device=device),
        row_B=torch.zeros(1, dtype=torch.int64, device=device),
        keys=[""],
    )
