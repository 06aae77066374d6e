"""MultimodalVAE: encode everything once, fuse all terms, decode everything once.

Shape legend: T terms, B rows, M modalities, Z latent dimensions, P pairs (term, row).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modalities import Modality
from pipeline.batch import Batch
from pipeline.experts import Gaussian, product_with_prior


@dataclass(frozen=True)
class Scores:
    """What every term says of every row, in nats, float32, unweighted."""

    log_likelihood_TBM: Tensor
    """log p(x_m | z_tb) where the term reconstructs modality m of the row, else 0."""
    kl_TB: Tensor
    """KL(q(z | A_tb) || p(z)); 0 where the term sees nothing."""
    anchor: Tensor
    """A zero that every parameter leads to, also those that no row of this rank needed."""


class MultimodalVAE(nn.Module):
    """One encoder and one decoder per modality around one latent space with prior N(0, I)."""

    def __init__(self, modalities: Mapping[str, Modality], latent: int) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.latent = latent
        self.encoders = nn.ModuleDict({name: m.encoder(latent) for name, m in self.modalities.items()})
        self.decoders = nn.ModuleDict({name: m.decoder(latent) for name, m in self.modalities.items()})

    def encode_all(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Every encoder once: (mu_MBZ, precision_MBZ, anchor). Absent modalities have precision 0."""
        device = batch.row_B.device
        means, precisions = [], []
        anchor = torch.zeros((), device=device)
        for name in self.modalities:
            rows = batch.rows_of[name]
            mu, logvar = (part.float() for part in self.encoders[name](batch.values[name]))
            if len(rows) == len(batch):
                means.append(mu)
                precisions.append(torch.exp(-logvar))
                continue
            empty = torch.zeros((len(batch), self.latent), device=device)
            if len(rows):
                index = torch.from_numpy(rows).to(device, non_blocking=True)
                means.append(empty.index_copy(0, index, mu))
                precisions.append(empty.index_copy(0, index, torch.exp(-logvar)))
            else:  # the network ran on one zero row; nothing of it may count, not even a NaN
                anchor = anchor + _nothing(mu) + _nothing(logvar)
                means.append(empty)
                precisions.append(empty)
        return torch.stack(means), torch.stack(precisions), anchor

    def decode_all(self, batch: Batch, z_TBZ: Tensor, wanted_TBM: np.ndarray) -> tuple[Tensor, Tensor]:
        """Every decoder once, on the pairs (t, b) that want its modality: (log_likelihood_TBM, anchor)."""
        terms, rows, _ = z_TBZ.shape
        z_flat = z_TBZ.reshape(terms * rows, self.latent)
        anchor = torch.zeros((), device=z_TBZ.device)
        columns = []
        for column, (name, modality) in enumerate(self.modalities.items()):
            pairs = np.flatnonzero(wanted_TBM[:, :, column])
            nothing = torch.zeros(terms * rows, device=z_TBZ.device)
            precision = next(self.decoders[name].parameters()).dtype
            if not len(pairs):
                anchor = anchor + _nothing(self.decoders[name](torch.zeros_like(z_flat[:1], dtype=precision)))
                columns.append(nothing)
                continue
            place = np.zeros(rows, np.int64)  # where a row's value lies among the compacted values
            place[batch.rows_of[name]] = np.arange(len(batch.rows_of[name]))
            index = torch.from_numpy(pairs).to(z_flat.device, non_blocking=True)
            value_index = torch.from_numpy(place[pairs % rows]).to(z_flat.device, non_blocking=True)
            parameters = self.decoders[name](z_flat.index_select(0, index).to(precision))
            scored = modality.log_likelihood(parameters, batch.values[name].index_select(0, value_index))
            columns.append(nothing.index_copy(0, index, scored))
        return torch.stack(columns, 1).view(terms, rows, -1), anchor

    def forward(self, batch: Batch, seen_TBM: np.ndarray, wanted_TBM: np.ndarray, noise_TBZ: Tensor) -> Scores:
        """Score every term: the posterior from the modalities it sees, the likelihood of those it wants.

        `seen_TBM` (A_tb) and `wanted_TBM` (D_tb) are boolean and lie within the present modalities.
        """
        mu, precision, anchor = self.encode_all(batch)
        mask = torch.from_numpy(seen_TBM).to(mu.device, non_blocking=True)
        posterior = product_with_prior(mu, precision, mask)
        log_likelihood, decoder_anchor = self.decode_all(batch, posterior.sample(noise_TBZ), wanted_TBM)
        return Scores(log_likelihood, posterior.kl_to_prior(), anchor + decoder_anchor)

    def posterior(self, batch: Batch) -> Gaussian:
        """q(z | all that is present) of each row: (B, Z)."""
        mu, precision, _ = self.encode_all(batch)
        present = torch.from_numpy(batch.present_BM).to(mu.device)
        fused = product_with_prior(mu, precision, present[None])
        return Gaussian(fused.mu[0], fused.logvar[0])

    def decode(self, name: str, z_BZ: Tensor) -> Tensor:
        """The parameters of p(x_name | z), in the form that the modality's own functions take."""
        precision = next(self.decoders[name].parameters()).dtype
        parameters: Tensor = self.decoders[name](z_BZ.to(precision))
        return parameters


def _nothing(output: Tensor) -> Tensor:
    """A zero that leads back to `output` and stays zero whatever it holds."""
    return torch.where(torch.zeros_like(output, dtype=torch.bool), output, 0.0).float().sum()
