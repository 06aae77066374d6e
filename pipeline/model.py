"""MultimodalVAE: encode everything once, fuse all terms, decode everything once.

Shape legend: T terms, B rows, M modalities, E experts, Z latent dimensions, P pairs of terms, K samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalities import Modality
from modalities.networks import JointEncoder, as_input
from pipeline.batch import Batch, on_device
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.noise import uniform
from pipeline.objectives.plan import Plan
from pipeline.posteriors import Distribution, Expert, Posterior, Products, Recipe, log_scale
from pipeline.scores import Densities, Scores
from pipeline.stacking import Bank, Ragged, scattered


class MultimodalVAE(nn.Module):
    """Experts and one decoder per modality around one latent space.

    The prior is N(0, I), or where the family says so a Laplace distribution with a scale that is learnt. Networks of
    modalities that are alike may run as one (`Bank`).
    """

    def __init__(self, modalities: Mapping[str, Modality], latent: int, family: Posterior | None = None) -> None:
        """`family` says how posteriors are made of experts; MVAE's product with the prior where it is not given."""
        super().__init__()
        self.modalities = dict(modalities)
        self.latent = latent
        self.bucket = 1
        """Networks run on multiples of so many rows (`compile_networks`)."""
        self.family = family or Products(list(modalities), prior=True)
        features = {name: self.modalities[name].features() for name in self.family.conditions}
        width = latent + sum(outputs for _, outputs in features.values())
        self.generated = [name for name in modalities if name not in features]
        self._experts = {expert.name: expert for expert in self.family.experts}
        self._order = {name: number for number, name in enumerate(self._experts)}
        """By encoder: the number of its expert."""
        self._made = {name: name for name in self.generated}
        """By decoder: the modality that it generates."""
        self.encoders = Bank(
            {name: self._encoder(expert) for name, expert in self._experts.items()},
            {
                name: tuple(self.modalities[m].network_kind for m in expert.inputs)
                for name, expert in self._experts.items()
            },
        )
        self.decoders = Bank(
            {name: self.modalities[name].decoder(width) for name in self.generated},
            {name: self.modalities[name].network_kind for name in self.generated},
        )
        self.context = nn.ModuleDict({name: network for name, (network, _) in features.items()})
        self.prior_raw = nn.Parameter(torch.zeros(latent)) if self.family.laplace else None

    def _encoder(self, expert: Expert) -> nn.Module:
        if len(expert.inputs) == 1:
            return self.modalities[expert.inputs[0]].encoder(self.latent)
        return JointEncoder([self.modalities[name].features() for name in expert.inputs], self.latent)

    def compile_networks(self, bucket: int, **options: Any) -> None:
        """Have torch.compile make each network's code, for row numbers that are multiples of `bucket`.

        What lies between the networks stays as it is: which rows a network sees is known to the host, step by step.
        """
        self.bucket = bucket
        self.encoders.compile_all(**options)
        self.decoders.compile_all(**options)
        for network in self.context.values():
            network.compile(**options)

    def single_experts(self) -> Iterator[nn.Parameter]:
        """The parameters of the experts that look at one modality alone."""
        for name, expert in self._experts.items():
            if len(expert.inputs) == 1:
                yield from self.encoders[name].parameters()

    def prior(self, device: torch.device) -> Distribution:
        """p(z): (1, Z)."""
        nothing = torch.zeros(1, self.latent, device=device)
        if self.prior_raw is None:
            return Gaussian(nothing, nothing)
        return Laplace(nothing, log_scale(self.prior_raw.float())[None])

    def encode_all(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Every expert once: what the family sums up of each, two (E, B, Z), and the anchor.

        Zeros where an input is absent.
        """
        anchor = torch.zeros((), device=batch.row_B.device)
        means, raws, places = [], [], []
        inputs = self._inputs(batch)
        for names in self.encoders.together({name: len(rows) for name, (rows, _) in inputs.items()}):
            seen = [inputs[name] for name in names]
            ragged = Ragged([len(rows) for rows, _ in seen], self.bucket)
            outputs = self.encoders.run_together(names, ragged.padded([values for _, values in seen]))
            mu, raw = (ragged.flat(output.float()) for output in outputs)
            if not ragged.total:  # the network ran on zero rows; nothing of it may count, not even a NaN
                anchor = anchor + _nothing(mu) + _nothing(raw)
                continue
            means.append(mu)
            raws.append(raw)
            places += [self._order[name] * len(batch) + rows for name, (rows, _) in zip(names, seen, strict=True)]
        shape = (len(self._experts), len(batch), self.latent)
        if not means:
            nothing = torch.zeros(shape, device=anchor.device)
            return nothing, nothing, anchor
        sums = self.family.natural(torch.cat(means), torch.cat(raws))
        weighted, precision = (
            scattered(part, np.concatenate(places), shape[0] * shape[1]).view(shape) for part in sums
        )
        return weighted, precision, anchor

    def _inputs(self, batch: Batch) -> dict[str, tuple[np.ndarray, list[Tensor]]]:
        """By encoder: the rows that it looks at, and their values."""
        return {name: rows_with(batch, expert.inputs) for name, expert in self._experts.items()}

    def decode_all(
        self, batch: Batch, z_TBZ: Tensor, wanted_TBM: np.ndarray, noise_TBZ: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Every decoder once, on the pairs (t, b) that want its modality: (log_likelihood_TBM, anchor).

        Autoregressive decoders read the values too; with the terms' noise, which training gives, not every word.
        """
        terms, rows, _ = z_TBZ.shape
        columns = {name: column for column, name in enumerate(self.modalities)}
        z_flat = z_TBZ.reshape(terms * rows, self.latent)
        context, anchor = self._context(batch)
        pairs_of = self._pairs(wanted_TBM)
        groups = self.decoders.together({name: len(pairs) for name, pairs in pairs_of.items()})
        raggeds = [Ragged([len(pairs_of[name]) for name in names], self.bucket) for names in groups]
        index = [ragged.index([pairs_of[n] for n in names]) for names, ragged in zip(groups, raggeds, strict=True)]
        # one gather for all decoders: each would have a gradient of z's whole size of its own
        together = on_device(np.concatenate([some.ravel() for some in index]), z_flat.device)
        z_all = z_flat.index_select(0, together)
        if context is not None:
            z_all = torch.cat([z_all, context.index_select(0, together % rows)], 1)
        scores, places = [], []
        z_parts, row_parts = (whole.split([some.size for some in index]) for whole in (z_all, together))
        for names, ragged, some, z, z_rows in zip(groups, raggeds, index, z_parts, row_parts, strict=True):
            made, pairs = [self._made[name] for name in names], [pairs_of[name] for name in names]
            modality = self.modalities[made[0]]
            values = torch.cat([_values(batch, name, some % rows) for name, some in zip(made, pairs, strict=True)])
            inputs = [z.to(next(self.decoders[names[0]].parameters()).dtype).view(*some.shape, -1)]
            if modality.autoregressive:  # of one network: recurrent layers are not stacked
                inputs += ragged.padded([[values]])
                if noise_TBZ is not None:
                    first = noise_TBZ[..., 0].flatten().index_select(0, z_rows)
                    inputs.append(uniform(first, made[0], values.shape[1]))
            parameters = ragged.flat(self.decoders.run_together(names, inputs))
            if not ragged.total:
                anchor = anchor + _nothing(parameters)
                continue
            scores.append(modality.log_likelihood(parameters, values))
            places += [columns[name] * terms * rows + some for name, some in zip(made, pairs, strict=True)]
        if not scores:
            return torch.zeros((terms, rows, len(columns)), device=z_flat.device), anchor
        flat = scattered(torch.cat(scores), np.concatenate(places), len(columns) * terms * rows)
        return flat.view(len(columns), terms, rows).permute(1, 2, 0), anchor

    def _pairs(self, wanted_TBM: np.ndarray) -> dict[str, np.ndarray]:
        """By decoder: the pairs (t, b) that want its modality, as t * B + b."""
        wanted_MP = wanted_TBM.reshape(-1, wanted_TBM.shape[2]).T
        columns = {name: column for column, name in enumerate(self.modalities)}
        return {name: np.flatnonzero(wanted_MP[columns[made]]) for name, made in self._made.items()}

    def forward(self, batch: Batch, plan: Plan, noise_TBZ: Tensor, told: Batch | None = None) -> Scores | Densities:
        """Score every term of a plan: its posterior, and the likelihood of the modalities that it wants.

        What the plan wants lies within the present modalities; experts that it names have all their inputs. With K
        samples a term (`plan.sampling`) the noise is (K · T, B, Z). With `told`, the same rows with more present
        (pseudo-labels), decoders score what is there; encoders see `batch`, each once.
        """
        weighted, precision, anchor = self.encode_all(batch)
        posterior = self._fused(weighted, precision, plan.recipe)
        if self.prior_raw is not None:
            anchor = anchor + _nothing(self.prior_raw)
        prior, dropping = self.prior(noise_TBZ.device), noise_TBZ if self.training else None
        if plan.sampling is None:
            z = posterior.sample(noise_TBZ)
            likely, decoder_anchor = self.decode_all(told or batch, z, plan.wanted_TBM, dropping)
            divergence = posterior.kl_to_prior() if isinstance(posterior, Gaussian) else posterior.kl(prior)  # type: ignore[arg-type]
            return Scores(likely, divergence, _kl(posterior, plan.pairs_P2), anchor + decoder_anchor)
        samples, linear = plan.sampling.samples, plan.sampling.bound == "linear"
        z = posterior.sample(noise_TBZ.view(samples, -1, *noise_TBZ.shape[1:]))
        decoded = z.view_as(z)
        wanted = np.tile(plan.decoded_TBM, (samples, 1, 1))
        likely, decoder_anchor = self.decode_all(batch, decoded.flatten(0, 1), wanted, dropping)
        density = posterior.map(Tensor.detach) if plan.sampling.gradient == "dreg" and not linear else posterior
        return Densities(
            likely.unflatten(0, (samples, -1)),
            prior.log_prob(z),
            density.log_prob(z[:, :, None]),
            posterior.log_prob(z.detach()[:, :, None]) if linear else None,
            z,
            decoded,
            anchor + decoder_anchor,
        )

    def posterior(self, batch: Batch) -> Distribution | Mixture:
        """q(z | all that is present) of each row: (B, Z)."""
        weighted, precision, _ = self.encode_all(batch)
        seen, weight = self.family.components(batch.present_BM)
        fused = self._fused(weighted, precision, self.family.of(seen))
        if len(seen) == 1:
            return fused.map(lambda tensor: tensor[0])
        return Mixture(fused, on_device(weight, fused.mu.device))

    def _fused(self, weighted_EBZ: Tensor, precision_EBZ: Tensor, recipe: Recipe) -> Distribution:
        mask, prior = (on_device(array, precision_EBZ.device) for array in (recipe.mask_TBE, recipe.prior_TB))
        return self.family.fuse(weighted_EBZ, precision_EBZ, mask, prior)

    def _context(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """What decoders see beside z, (B, H) or nothing, and its anchor; zeros where a condition is absent."""
        anchor, parts = torch.zeros((), device=batch.row_B.device), []
        for name, network in self.context.items():
            found = network(as_input(batch.values[name], next(network.parameters()).dtype)).float()
            if len(batch.rows_of[name]):
                parts.append(scattered(found, batch.rows_of[name], len(batch)))
            else:
                anchor = anchor + _nothing(found)
                parts.append(torch.zeros((len(batch), found.shape[1]), device=anchor.device))
        return (torch.cat(parts, 1) if parts else None), anchor

    def decode(self, name: str, z_BZ: Tensor, batch: Batch) -> Tensor:
        """The parameters of p(x_name | z), in the form that the modality's own functions take.

        Of the batch the decoder sees what the family takes as given beside z.
        """
        parameters: Tensor = self.decoders[name](self.decoded_from(name, z_BZ, batch))
        return parameters

    def decoded_from(self, name: str, z_BZ: Tensor, batch: Batch) -> Tensor:
        """What a modality's decoder reads: z, and beside it what the family takes as given."""
        context, _ = self._context(batch)
        z = z_BZ if context is None else torch.cat([z_BZ, context], 1)
        return z.to(next(self.decoders[name].parameters()).dtype)


def rows_with(batch: Batch, names: tuple[str, ...]) -> tuple[np.ndarray, list[Tensor]]:
    """The rows that have all these modalities, and their values; one zero row's where there is none."""
    if len(names) == 1:
        return batch.rows_of[names[0]], [batch.values[names[0]]]
    rows = reduce(np.intersect1d, [batch.rows_of[name] for name in names])
    if not len(rows):
        return rows, [torch.zeros_like(batch.values[name][:1]) for name in names]
    return rows, [_values(batch, name, rows) for name in names]


def _values(batch: Batch, name: str, rows: np.ndarray) -> Tensor:
    """A modality's values of these rows of the batch, all of which have it."""
    places = np.searchsorted(batch.rows_of[name], rows)
    return batch.values[name].index_select(0, on_device(places, batch.row_B.device))


def _kl(posterior: Distribution, pairs_P2: np.ndarray) -> Tensor:
    """KL(q_t || q_s) of each pair (t, s): (P, B)."""
    if not len(pairs_P2):
        return posterior.mu.new_zeros((0, posterior.mu.shape[1]))
    one, other = on_device(pairs_P2, posterior.mu.device).unbind(1)
    return posterior.map(lambda tensor: tensor[one]).kl(posterior.map(lambda tensor: tensor[other]))  # type: ignore[arg-type]


def _nothing(output: Tensor) -> Tensor:
    """A zero that leads back to `output` and stays zero whatever it holds."""
    return torch.where(torch.zeros_like(output, dtype=torch.bool), output, 0.0).float().sum()
