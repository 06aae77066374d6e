"""Importance-sampled log-likelihoods against the exact ones of a linear-Gaussian model."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from itertools import permutations
from types import SimpleNamespace
from typing import Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modalities import Modality
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.evaluate.importance import importance_sampled, log_likelihood
from pipeline.model import MultimodalVAE

LATENT, NOISE = 3, 0.5
SIZES = {"a": 4, "b": 3, "c": 5}


def orthogonal(size: int) -> Tensor:
    """(size, LATENT) with orthogonal columns of different lengths: posteriors under it are diagonal, so exact."""
    generator = torch.Generator().manual_seed(size)
    columns = torch.linalg.qr(torch.randn(size, LATENT, generator=generator))[0]
    return columns * torch.linspace(0.4, 1.2, LATENT)


WEIGHTS = {name: orthogonal(size) for name, size in SIZES.items()}


class Exact(nn.Module):
    """The likelihood of z as an expert, with precision Wᵀ W / σ²; its log-variance is made larger by `loose`."""

    def __init__(self, weight: Tensor, loose: float) -> None:
        super().__init__()
        self.weight, self.loose = nn.Parameter(weight, requires_grad=False), loose

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        precision = (self.weight.square().sum(0) / NOISE**2).expand(len(value), -1)
        return value @ self.weight / NOISE**2 / precision, -precision.log() + self.loose


@dataclass(frozen=True)
class Linear(Modality):
    """x = W z + σ ε: everything about it is known."""

    name: str
    loose: float = 0.0
    kind: Literal["linear"] = "linear"
    extension = "npy"

    @property
    def shape(self) -> tuple[int, ...]:
        return (SIZES[self.name],)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def encode(self, value: np.ndarray) -> bytes:
        raise NotImplementedError

    def decode(self, members: object) -> np.ndarray:
        raise NotImplementedError

    def encoder(self, latent: int) -> nn.Module:
        return Exact(WEIGHTS[self.name], self.loose)

    def decoder(self, latent: int) -> nn.Module:
        layer = nn.Linear(latent, SIZES[self.name], bias=False)
        layer.weight = nn.Parameter(WEIGHTS[self.name])
        return layer

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        return torch.distributions.Normal(parameters, NOISE).log_prob(value).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters


def exact(batch: Batch, names: list[str]) -> Tensor:
    """log N(x; 0, W Wᵀ + σ² I) of each row."""
    weight = torch.cat([WEIGHTS[name] for name in names])
    covariance = weight @ weight.T + NOISE**2 * torch.eye(len(weight))
    value = torch.cat([batch.values[name] for name in names], 1)
    return torch.distributions.MultivariateNormal(torch.zeros(len(weight)), covariance).log_prob(value)


def model(loose: float = 0.5) -> MultimodalVAE:
    """Posteriors are a little too wide, as an importance distribution should be."""
    return MultimodalVAE({name: Linear(name, loose) for name in SIZES}, LATENT)


def batch(rows: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, LATENT, generator=generator)
    values = {n: z @ w.T + NOISE * torch.randn(rows, len(w), generator=generator) for n, w in WEIGHTS.items()}
    return Batch(
        values, {name: np.arange(rows) for name in SIZES}, np.ones((rows, 3), bool), torch.ones(rows),
        torch.arange(rows), [str(row) for row in range(rows)],
    )  # fmt: skip


SUBSETS = [["a"], ["b"], ["a", "b"], ["b", "c"], ["a", "b", "c"]]


@pytest.mark.parametrize("wanted", SUBSETS)
@pytest.mark.parametrize("more", [[], ["c"]])
def test_estimates_converge_to_the_evidence_from_every_posterior(wanted: list[str], more: list[str]) -> None:
    rows = batch()
    found = log_likelihood(model(), rows, frozenset(wanted), frozenset(wanted + more), 20_000)
    assert (found.log_p_B - exact(rows, wanted)).abs().mean() < 0.05


def test_samples_of_the_prior_estimate_the_evidence_too() -> None:
    rows = batch()
    found = log_likelihood(model(), rows, frozenset("b"), frozenset(), 50_000)
    assert (found.log_p_B - exact(rows, ["b"])).abs().mean() < 0.05


@pytest.mark.parametrize("source", ["a", "c", "all"])
@pytest.mark.parametrize("noise", [0.5, 0.05])
def test_conditionals_converge_also_where_the_prior_does_not_find_the_condition(
    source: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "NOISE", noise)
    rows, name = batch(), "a_given_c" if source == "c" else f"a_given_c.by_{source}"
    found = importance_sampled(model(), model(), cast(Run, SimpleNamespace(seed=3)), rows, 1000)[f"log_p/{name}"]
    truth = exact(rows, ["a", "c"]) - exact(rows, ["c"])
    assert (found - truth).abs().mean() < 0.15


@pytest.mark.parametrize("source", ["a", "all"])
def test_of_many_modalities_the_first_is_given_the_others(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.importance.MANY", 2)
    rows = batch()
    told = importance_sampled(model(), model(), cast(Run, SimpleNamespace(seed=3)), rows, 1000)
    assert {name for name in told if "_given_" in name} == {"log_p/a_given_others.by_a", "log_p/a_given_others.by_all"}
    truth = exact(rows, ["a", "b", "c"]) - exact(rows, ["b", "c"])
    assert (told[f"log_p/a_given_others.by_{source}"] - truth).abs().mean() < 0.15


def test_the_bound_rises_with_the_number_of_samples() -> None:
    """IWAE: ELBO <= L_1 ... <= L_K <= log p(x), on average over rows and draws (Burda et al. 2016)."""
    rows, everything = batch(400), frozenset(SIZES)
    means = [
        np.mean([log_likelihood(model(1.5), rows, everything, everything, k, seed).means()[0] for seed in range(5)])
        for k in (1, 3, 10, 100, 1000)
    ]
    assert means == sorted(means)
    truth = float(exact(rows, list(SIZES)).mean())
    assert means[-1] < truth + 0.02
    assert means[0] < truth - 0.2


@pytest.mark.parametrize("samples", [1, 7, 60])
@pytest.mark.parametrize("names", SUBSETS)
def test_the_exact_posterior_gives_the_evidence_from_any_number_of_samples(names: list[str], samples: int) -> None:
    """All weights are p(x): with -log K, without any variance."""
    rows, subset = batch(), frozenset(names)
    found = log_likelihood(model(0.0), rows, subset, subset, samples)
    torch.testing.assert_close(found.log_p_B, exact(rows, names), atol=1e-4, rtol=1e-4)
    if samples > 1:
        assert float(found.variance_B.max()) < 1e-6


def test_variance_is_that_of_the_log_weights_and_falls_with_a_better_posterior() -> None:
    rows = batch()
    good = log_likelihood(model(0.5), rows, frozenset("abc"), frozenset("abc"), 2000).means()[1]
    bad = log_likelihood(model(2.5), rows, frozenset("abc"), frozenset("abc"), 2000).means()[1]
    assert 0 < good < bad


def test_rows_that_lack_something_are_left_out() -> None:
    rows = batch(6)
    present = rows.present_BM.copy()
    present[[1, 4], 0] = False
    values = {name: value[present[:, i]] for i, (name, value) in enumerate(rows.values.items())}
    partial = replace(
        rows, values=values, present_BM=present, rows_of={n: np.flatnonzero(present[:, i]) for i, n in enumerate(SIZES)}
    )
    whole = log_likelihood(model(), rows, frozenset("ab"), frozenset("ab"), 100)
    found = log_likelihood(model(), partial, frozenset("ab"), frozenset("ab"), 100)
    assert found.log_p_B.isnan().tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(found.log_p_B[[0, 2, 3, 5]], whole.log_p_B[[0, 2, 3, 5]])
    assert found.means()[2] == 4
    assert math.isfinite(found.means()[0])
    only_b = log_likelihood(model(), partial, frozenset("b"), frozenset("b"), 100)
    assert not only_b.log_p_B.isnan().any()


def test_a_row_s_estimate_does_not_depend_on_its_batch() -> None:
    rows = batch(6)
    alone = replace(
        rows, values={n: v[3:4] for n, v in rows.values.items()}, rows_of={n: np.arange(1) for n in SIZES},
        present_BM=rows.present_BM[3:4], weight_B=rows.weight_B[3:4], row_B=rows.row_B[3:4], keys=rows.keys[3:4],
    )  # fmt: skip
    one = log_likelihood(model(), alone, frozenset("ab"), frozenset("a"), 130)
    all_of_them = log_likelihood(model(), rows, frozenset("ab"), frozenset("a"), 130)
    torch.testing.assert_close(one.log_p_B[0], all_of_them.log_p_B[3])


def test_metrics_answer_every_question_over_the_rows_that_can() -> None:
    rows, vae = batch(12), model()
    run = cast(Run, SimpleNamespace(seed=3))
    with torch.no_grad():
        told = importance_sampled(vae, vae, run, rows, 60)
    usual = [*SIZES, "all", *(f"{one}_given_{other}" for one in SIZES for other in SIZES if one != other)]
    others = [
        *(f"{one}.by_{other}" for one in SIZES for other in [*SIZES, "all"] if one != other),
        *(f"all.by_{other}" for other in SIZES),
        *(f"{one}_given_{other}.by_{by}" for one, other in permutations(SIZES, 2) for by in (one, "all")),
    ]
    assert set(told) == {f"log_p/{name}" for name in usual + others} | {
        f"log_weight_variance/{name}" for name in usual + others if "_given_" not in name
    }
    assert not any(values.isnan().any() for values in told.values())

    def from_posterior(wanted: str, given: str) -> Tensor:
        return log_likelihood(vae, rows, frozenset(wanted), frozenset(given), 60, 3).log_p_B

    for name, wanted, given in [
        ("all", "abc", "abc"),
        ("a", "a", "a"),
        ("b.by_all", "b", "abc"),
        ("all.by_c", "abc", "c"),
    ]:
        torch.testing.assert_close(told[f"log_p/{name}"], from_posterior(wanted, given))
    torch.testing.assert_close(told["log_p/b.by_a"], from_posterior("b", "a"))
