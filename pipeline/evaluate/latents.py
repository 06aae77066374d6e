"""What the latent dimensions carry: divergences from the prior, active units, and whose expert decides.

Shape legend: E experts, B rows, Z latent dimensions, W numbers of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.evaluate.importance import MANY
from pipeline.evaluate.precision import shares
from pipeline.evaluate.scored import Scored, of_sums
from pipeline.evaluate.subject import Subject
from pipeline.experts import Mixture
from pipeline.objectives.systems import family_of
from pipeline.posteriors import Distribution

ACTIVE = 0.01
"""A dimension is active where its posterior mean varies by more than so much (Burda et al. 2016)."""
OF_ROW = "_of_row"
Moments = dict[str, tuple[float, np.ndarray, np.ndarray]]
"""How many rows, and the sums (W,) of their numbers and of these squared."""


def posteriors(run: Run, without: str = "") -> dict[str, tuple[str, ...]]:
    """Each modality by itself and all together, `all`, where the run's system has a posterior of them; one modality may
    be kept from it."""
    names = list(run.modalities)
    shown = [name for name in names if name != without]
    asked = {name: (name,) for name in shown} | ({"all": tuple(shown)} if len(shown) > 1 else {})
    return {title: given for title, given in asked.items() if _posterior_of(run, given)}


def _posterior_of(run: Run, given: tuple[str, ...]) -> bool:
    family = family_of(run)
    seen = np.array([[name in given for name in run.modalities]])
    return bool(family.of(family.components(seen)[0]).mask_TBE.any())


def latents(subject: Subject) -> dict[str, Scored]:
    """Of each modality and of all together: `latents/active.NAME`, how many dimensions are active, and
    `latents/kl.NAME`, KL(q(z | NAME) || p(z)) in nats; of two modalities `latents/symmetric_kl.ONE+OTHER`, the mean of
    both directions' divergences between their posteriors (MMVAE figure 5). Of each expert of a product
    `latents/decided.EXPERT`: how many dimensions have, in the mean over rows, most of the joint posterior's precision
    from it (`evaluate/precision.py`). Collective.

    A mixture's divergence has no closed form: `latents/kl.all` is missing there.
    """
    result = {}
    for name, (count, sums, squares) in _moments(subject).items():
        kind, _, what = name.partition("/")
        if kind == "mean":
            active = np.sum(_variance(count, sums, squares) > ACTIVE)
            result[f"latents/active.{what}"] = Scored(float(active), float("nan"), int(count))
        elif kind == "precision":
            decided = np.sum(sums > count / 2)
            result[f"latents/decided.{what}"] = Scored(float(decided), float("nan"), int(count))
        elif kind.endswith(OF_ROW):
            result[f"latents/{kind.removesuffix(OF_ROW)}.{what}"] = of_sums(float(sums[0]), float(squares[0]), count)
    return result


def per_dimension(subject: Subject) -> dict[str, np.ndarray]:
    """Arrays (Z,), over rows that have what they need; NaN where there is none (MMVAE figure 5). Collective.

    `kl/NAME`: mean KL(q(z | NAME) || p(z)) in nats. `symmetric_kl/ONE+OTHER`: the mean of both directions' divergences
    between two modalities' posteriors, for at most four modalities. `variance/NAME`: of the posterior's mean over rows.
    `precision/EXPERT`: the mean share of the joint posterior's precision (`evaluate/precision.py`).
    """
    found = {}
    for name, (count, sums, squares) in _moments(subject).items():
        kind, _, what = name.partition("/")
        if kind == "mean":
            found[f"variance/{what}"] = _variance(count, sums, squares)
        elif not kind.endswith(OF_ROW):
            found[name] = sums / count if count else np.full_like(sums, np.nan)
    return found


def _variance(count: float, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
    if not count:
        return np.full_like(sums, np.nan)
    return squares / count - np.square(sums / count)


@torch.no_grad()
def _moments(subject: Subject) -> Moments:
    totals: dict[str, Tensor] = {}
    for batch, _ in subject.batches():
        for name, values_BW in _numbers(subject, batch):
            rows = values_BW.double()
            count = rows.new_full((1, rows.shape[1]), len(rows))
            moments = torch.cat([count, rows.sum(0, keepdim=True), rows.square().sum(0, keepdim=True)])
            totals[name] = totals[name] + moments if name in totals else moments
    flat = subject.world.sum([number for moments in totals.values() for number in moments.flatten().tolist()])
    result: Moments = {}
    for name, moments in totals.items():
        (counts, sums, squares), flat = np.reshape(flat[: moments.numel()], moments.shape), flat[moments.numel() :]
        result[name] = float(counts[0]), sums, squares
    return result


def _numbers(subject: Subject, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """What is counted of each row that has what it needs: (B, Z), or (B, 1) where its name says `of_row`."""
    model, names = subject.model, list(subject.run.modalities)

    def having(given: tuple[str, ...]) -> Tensor:
        whole = batch.present_BM[:, [names.index(name) for name in given]].all(1)
        return torch.from_numpy(np.flatnonzero(whole)).to(subject.world.device)

    prior, singles = model.prior(subject.world.device), {}
    for title, given in posteriors(subject.run).items():
        posterior, rows = model.posterior(batch.only(frozenset(given))), having(given)
        yield f"mean/{title}", posterior.mu[rows]
        if isinstance(posterior, Mixture):
            if len(given) > 1:
                continue
            posterior = _only(posterior)
        divergence = _kl(posterior, prior)[rows]
        yield f"kl/{title}", divergence
        yield f"kl_of_row/{title}", divergence.sum(1, keepdim=True)
        if len(given) == 1:
            singles[title] = posterior
    for one, other in combinations(singles, 2) if len(singles) <= MANY else ():
        both = (_kl(singles[one], singles[other]) + _kl(singles[other], singles[one])) / 2
        divergence = both[having((one, other))]
        yield f"symmetric_kl/{one}+{other}", divergence
        yield f"symmetric_kl_of_row/{one}+{other}", divergence.sum(1, keepdim=True)
    for expert, share in shares(model, batch).items():
        yield f"precision/{expert}", share[having(tuple(names))]


def _only(mixture: Mixture) -> Distribution:
    """The component that is all of a mixture, which one modality's posterior is."""
    which = mixture.weight_TB.argmax(0)
    return mixture.components.map(lambda tensor: tensor[which, torch.arange(len(which), device=which.device)])


def _kl(one: Distribution, other: Distribution) -> Tensor:
    """KL(one || other) of each dimension by itself: (B, Z)."""
    return one.map(lambda tensor: tensor[..., None]).kl(other.map(lambda tensor: tensor[..., None]))  # type: ignore[arg-type]
