"""Several models that are alike as one: their rows go side by side, and networks of one place run as one (`Bank`).

What lies between the networks (fusing, sampling, divergences, the objective) is a function of each row by itself, so
all runs' rows are one batch there. Shape legend: N runs, B rows of all of them, T terms, M modalities, Z latent
dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batch import Batch
from pipeline.experts import Laplace
from pipeline.model import MultimodalVAE, rows_with
from pipeline.packing.joined import Joined
from pipeline.packing.rows import Rows
from pipeline.posteriors import Distribution, log_scale
from pipeline.stacking import Bank


class Places(Bank):
    """The networks of all runs by NUMBER/NAME; those of one name are alike, and their parameters lie side by side."""

    def __init__(self, banks: Sequence[nn.Module], rows: Rows, prefix: str) -> None:
        """`prefix` is the banks' name in their models."""
        every = [cast(Bank, bank) for bank in banks]
        super().__init__(
            {f"{number}/{name}": network for number, bank in enumerate(every) for name, network in bank.items()},
            {f"{number}/{name}": name for number, bank in enumerate(every) for name in bank},
        )
        self._side_by_side = {
            first: {key: rows.stacked(f"{prefix}.{first.partition('/')[2]}.{key}") for key in parameters}
            for first, parameters in self._own.items()
        }

    def _stacked(self, first: str) -> dict[str, Tensor]:
        return dict(self._side_by_side[first])


class Pack(MultimodalVAE):
    """N models on joined batches, each on its part of the rows. Their parameters become those of `rows`."""

    def __init__(self, models: Sequence[MultimodalVAE], share: int) -> None:
        """`share`: rows of each run in a batch."""
        one = models[0]
        with torch.device("meta"):  # the networks are the models' own
            super().__init__(one.modalities, one.latent, one.family)
        self.share, self._models = share, list(models)
        self.rows = Rows(models)
        self.encoders = Places([model.encoders for model in models], self.rows, "encoders")
        self.decoders = Places([model.decoders for model in models], self.rows, "decoders")
        self.context = nn.ModuleDict()
        if self.prior_raw is not None:
            self.prior_raw = self.rows.stacked("prior_raw")
        numbers = range(len(models))
        self._order = {f"{number}/{name}": order for number in numbers for name, order in self._order.items()}
        self._made = {f"{number}/{name}": made for number in numbers for name, made in self._made.items()}

    def prior(self, device: torch.device) -> Distribution:
        """p(z) of each row, (B, Z), or of all of them."""
        if self.prior_raw is None:
            return super().prior(device)
        log_scale_NZ = log_scale(self.prior_raw.float())
        return Laplace(torch.zeros(1, self.latent, device=device), log_scale_NZ.repeat_interleave(self.share, 0))

    def _inputs(self, batch: Batch) -> dict[str, tuple[np.ndarray, list[Tensor]]]:
        found = {}
        for number, part in enumerate(self._parts(batch)):
            for name, expert in self._experts.items():
                rows, values = rows_with(part, expert.inputs)
                found[f"{number}/{name}"] = rows + number * self.share, values
        return found

    def _pairs(self, wanted_TBM: np.ndarray) -> dict[str, np.ndarray]:
        terms, rows, modalities = wanted_TBM.shape
        columns = {name: column for column, name in enumerate(self.modalities)}
        wanted_NMTB = wanted_TBM.reshape(terms, len(self._models), self.share, modalities).transpose(1, 3, 0, 2)
        found = {}
        for name, made in self._made.items():
            number = int(name.partition("/")[0])
            term, row = np.nonzero(wanted_NMTB[number, columns[made]])
            found[name] = term * rows + number * self.share + row
        return found

    def _context(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        parts = [model._context(part) for model, part in zip(self._models, self._parts(batch), strict=True)]
        seen = [context for context, _ in parts if context is not None]
        return (torch.cat(seen) if seen else None), torch.stack([anchor for _, anchor in parts]).sum()

    def _parts(self, batch: Batch) -> list[Batch]:
        assert isinstance(batch, Joined)
        return [batch.part(number) for number in range(batch.runs)]
