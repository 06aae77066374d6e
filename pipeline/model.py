"""MultimodalVAE: encode everything once, fuse all terms, decode everything once.

Shape legend: T terms, B rows, M modalities, Z latent dimensions, P pairs (term, row).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from modalities import Modality
from modalities.networks import JointEncoder
from pipeline.batch import Batch
from pipeline.experts import Gaussian, product
from pipeline.objectives.plan import Plan
from pipeline.posteriors import Expert, Posterior, Products, Recipe


@dataclass(frozen=True)
class Scores:
    """What every term says of every row, in nats, float32, unweighted."""

    log_likelihood_TBM: Tensor
    """log p(x_m | z_tb) where the term reconstructs modality m of the row, else 0."""
    kl_TB: Tensor
    """KL(q(z | A_tb) || p(z)); 0 where the term sees nothing."""
    kl_PB: Tensor
    """KL(q_t || q_s) of the pairs of terms that were asked for."""
    anchor: Tensor
    """A zero that every parameter leads to, also those that no row of this rank needed."""


class MultimodalVAE(nn.Module):
    """Experts and one decoder per modality around one latent space with prior N(0, I)."""

    def __init__(self, modalities: Mapping[str, Modality], latent: int, family: Posterior | None = None) -> None:
        """`family` says how posteriors are made of experts; MVAE's product with the prior where it is not given."""
        super().__init__()
        self.modalities = dict(modalities)
        self.latent = latent
        self.family = family or Products(list(modalities), prior=True)
        self.encoders = nn.ModuleDict({expert.name: self._network(expert) for expert in self.family.experts})
        self.decoders = nn.ModuleDict({name: m.decoder(latent) for name, m in self.modalities.items()})

    def _network(self, expert: Expert) -> nn.Module:
        if len(expert.inputs) == 1:
            return self.modalities[expert.inputs[0]].encoder(self.latent)
        return JointEncoder([self.modalities[name].features() for name in expert.inputs], self.latent)

    def encode_all(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Every expert once: (mean times precision_EBZ, precision_EBZ, anchor); zeros where an input is absent."""
        device = batch.row_B.device
        weighted_means, precisions = [], []
        anchor = torch.zeros((), device=device)
        for expert in self.family.experts:
            rows, inputs = _rows_with(batch, expert.inputs)
            mu, raw = (part.float() for part in self.encoders[expert.name](*inputs))
            weighted, precision = self.family.natural(mu, raw)
            if len(rows) == len(batch):
                weighted_means.append(weighted)
                precisions.append(precision)
                continue
            empty = torch.zeros((len(batch), self.latent), device=device)
            if len(rows):
                index = torch.from_numpy(rows).to(device, non_blocking=True)
                weighted_means.append(empty.index_copy(0, index, weighted))
                precisions.append(empty.index_copy(0, index, precision))
            else:  # the network ran on one zero row; nothing of it may count, not even a NaN
                anchor = anchor + _nothing(mu) + _nothing(raw)
                weighted_means.append(empty)
                precisions.append(empty)
        return torch.stack(weighted_means), torch.stack(precisions), anchor

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

    def forward(self, batch: Batch, plan: Plan, noise_TBZ: Tensor) -> Scores:
        """Score every term of a plan: its posterior, and the likelihood of the modalities that it wants.

        What the plan wants lies within the present modalities; experts that it names have all their inputs.
        """
        weighted, precision, anchor = self.encode_all(batch)
        posterior = self._fused(weighted, precision, plan.recipe)
        log_likelihood, decoder_anchor = self.decode_all(batch, posterior.sample(noise_TBZ), plan.wanted_TBM)
        return Scores(log_likelihood, posterior.kl_to_prior(), _kl(posterior, plan.pairs_P2), anchor + decoder_anchor)

    def posterior(self, batch: Batch) -> Gaussian:
        """q(z | all that is present) of each row: (B, Z)."""
        weighted, precision, _ = self.encode_all(batch)
        fused = self._fused(weighted, precision, self.family.of(batch.present_BM[None]))
        return Gaussian(fused.mu[0], fused.logvar[0])

    def _fused(self, weighted_EBZ: Tensor, precision_EBZ: Tensor, recipe: Recipe) -> Gaussian:
        mask = torch.from_numpy(recipe.mask_TBE).to(precision_EBZ.device, non_blocking=True)
        prior = torch.from_numpy(recipe.prior_TB).to(precision_EBZ.device, non_blocking=True)
        return product(weighted_EBZ, precision_EBZ, mask, prior)

    def decode(self, name: str, z_BZ: Tensor) -> Tensor:
        """The parameters of p(x_name | z), in the form that the modality's own functions take."""
        precision = next(self.decoders[name].parameters()).dtype
        parameters: Tensor = self.decoders[name](z_BZ.to(precision))
        return parameters


def _rows_with(batch: Batch, names: tuple[str, ...]) -> tuple[np.ndarray, list[Tensor]]:
    """The rows that have all these modalities, and their values; one zero row's where there is none."""
    if len(names) == 1:
        return batch.rows_of[names[0]], [batch.values[names[0]]]
    rows = reduce(np.intersect1d, [batch.rows_of[name] for name in names])
    if not len(rows):
        return rows, [torch.zeros_like(batch.values[name][:1]) for name in names]
    places = [torch.from_numpy(np.searchsorted(batch.rows_of[name], rows)) for name in names]
    return rows, [batch.values[n].index_select(0, p.to(batch.row_B.device)) for n, p in zip(names, places, strict=True)]


def _kl(posterior: Gaussian, pairs_P2: np.ndarray) -> Tensor:
    """KL(q_t || q_s) of each pair (t, s): (P, B)."""
    one, other = torch.from_numpy(pairs_P2).to(posterior.mu.device).unbind(1)
    first = Gaussian(posterior.mu[one], posterior.logvar[one])
    return first.kl(Gaussian(posterior.mu[other], posterior.logvar[other]))


def _nothing(output: Tensor) -> Tensor:
    """A zero that leads back to `output` and stays zero whatever it holds."""
    return torch.where(torch.zeros_like(output, dtype=torch.bool), output, 0.0).float().sum()
