"""Diagnostics of the latent space against torch.distributions, and against experts' outputs taken one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, kl_divergence

from pipeline import experts
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.evaluate.latents import latents, per_dimension
from pipeline.evaluate.precision import precision_names, precision_shares
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.model import MultimodalVAE
from pipeline.settings import Examine, Model
from pipeline.stream import in_order
from tests.pipeline.judging import digit_run, lively, on_a_rank, stripes, subject_of
from tests.ranks import Ranks

NAMES = ("top", "bottom", "label")


def run_of(data: Path, system: str) -> Run:
    return digit_run(data, **{"model.system": system})


def whole(subject: Subject) -> Batch:
    """The split in one batch."""
    names = list(subject.run.modalities)
    rows = len(subject.manifest.split(subject.split))
    return Collator([subject.manifest], subject.run.modalities)(
        next(in_order(subject.manifest, subject.split, names, rows))
    )


def by_torch(posterior: experts.Gaussian | experts.Laplace) -> Distribution:
    if isinstance(posterior, experts.Laplace):
        return Laplace(posterior.mu.double(), posterior.logscale.double().exp())
    return Normal(posterior.mu.double(), (posterior.logvar.double() / 2).exp())


def single(model: MultimodalVAE, batch: Batch, name: str) -> experts.Gaussian | experts.Laplace:
    """q(z | one modality), by its expert alone where experts are mixed."""
    posterior = model.posterior(batch.only(frozenset([name])))
    if not isinstance(posterior, experts.Mixture):
        return posterior
    mu, raw = model.encoders[name](batch.values[name])
    if model.prior_raw is None:
        return experts.Gaussian(mu, raw)
    return experts.Laplace(mu, raw.softmax(1).clamp_min(1e-6).log() + np.log(raw.shape[1]))


@pytest.mark.parametrize("system", ["mvae", "mvae-q", "svae", "vaevae-b", "jmvae", "mmvae", "mopoe", "bivcca"])
@torch.no_grad()
def test_divergences_are_those_of_torch(digits_dir: Path, system: str) -> None:
    subject = subject_of(run_of(digits_dir, system))
    model, batch = subject.model, whole(subject)
    found, told = per_dimension(subject), latents(subject)
    prior = by_torch(model.prior(torch.device("cpu")))
    posteriors = {name: single(model, batch, name) for name in NAMES}
    everything = model.posterior(batch)
    mixed = isinstance(everything, experts.Mixture)
    if not mixed:
        posteriors["all"] = everything
    for name, posterior in posteriors.items():
        kl = kl_divergence(by_torch(posterior), prior)
        np.testing.assert_allclose(found[f"kl/{name}"], kl.mean(0), rtol=1e-4, atol=1e-5)
        scored = told[f"latents/kl.{name}"]
        assert scored.value == pytest.approx(float(kl.sum(1).mean()), rel=1e-4)
        assert scored.error == pytest.approx(float(kl.sum(1).std()) / np.sqrt(270), rel=1e-3)
        assert scored.count == 270
    assert ("latents/kl.all" in told) == (not mixed)
    for one, other in combinations(NAMES, 2):
        p, q = by_torch(posteriors[one]), by_torch(posteriors[other])
        both = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
        np.testing.assert_allclose(found[f"symmetric_kl/{one}+{other}"], both.mean(0), rtol=1e-4, atol=1e-5)
        scored = told[f"latents/symmetric_kl.{one}+{other}"]
        assert scored.value == pytest.approx(float(both.sum(1).mean()), rel=1e-4)
        assert scored.error == pytest.approx(float(both.sum(1).std()) / np.sqrt(270), rel=1e-3)
    means = {name: posterior.mu for name, posterior in posteriors.items()} | {"all": everything.mu}
    for name, mean in means.items():
        variance = mean.numpy().astype(np.float64).var(0)
        np.testing.assert_allclose(found[f"variance/{name}"], variance, rtol=1e-4, atol=1e-9)
        assert told[f"latents/active.{name}"].value == (variance > 0.01).sum()
        assert told[f"latents/active.{name}"].count == 270
    expected = {f"latents/active.{name}" for name in means} | {f"latents/kl.{name}" for name in posteriors}
    expected |= {f"latents/decided.{name.removeprefix('precision.')}" for name in precision_names(subject.run)}
    assert set(told) == expected | {f"latents/symmetric_kl.{one}+{other}" for one, other in combinations(NAMES, 2)}


@pytest.mark.parametrize(("system", "prior"), [("mvae", 1), ("svae", 0), ("vaevae-a", 0), ("mvae-q", 0)])
@torch.no_grad()
def test_precisions_are_shares_of_the_joint_posterior_s(digits_dir: Path, system: str, prior: int) -> None:
    subject = subject_of(run_of(digits_dir, system))
    model, batch = subject.model, whole(subject)
    precision = {}
    for name in NAMES:
        _, raw = model.encoders[name](batch.values[name])
        if system == "mvae-q":  # 1 / V, less what the quotient takes off it
            precision[name] = 1 / (3 / 2 * raw.sigmoid()) - 2 / 3
        else:
            precision[name] = torch.exp(-raw)
    total = sum(precision.values()) + prior
    posterior = model.posterior(batch)
    assert isinstance(posterior, experts.Gaussian)
    torch.testing.assert_close(total, torch.exp(-posterior.logvar), rtol=1e-3, atol=1e-4)
    found, told = per_dimension(subject), precision_shares(model, model, subject.run, batch)
    decided = {name: latents(subject)[f"latents/decided.{name}"] for name in NAMES}
    assert list(told) == precision_names(subject.run) == [f"precision.{name}" for name in NAMES]
    for name, own in precision.items():
        share = own / total
        np.testing.assert_allclose(found[f"precision/{name}"], share.mean(0), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(told[f"precision.{name}"], share.mean(1), rtol=1e-3, atol=1e-5)
        assert decided[name].value == (share.mean(0) > 0.5).sum()
        assert decided[name].count == 270
    together = sum(float(share.mean()) for share in told.values())
    assert together < 1 if prior else together == pytest.approx(1)


@pytest.mark.parametrize("system", ["mmvae", "mopoe", "bivcca", "vaevae-b", "jmvae", "cvae"])
def test_what_is_no_product_of_experts_has_no_shares(digits_dir: Path, system: str) -> None:
    subject = subject_of(run_of(digits_dir, system))
    told = latents(subject)
    assert precision_names(subject.run) == []
    assert not [name for name in per_dimension(subject) if "precision" in name]
    if system == "cvae":  # one network of everything
        assert set(told) == {"latents/active.all", "latents/kl.all"}


def test_a_posterior_that_ignores_its_input_is_inactive_and_one_that_is_the_prior_costs_nothing(
    digits_dir: Path,
) -> None:
    run = run_of(digits_dir, "vaevae-a")
    model = lively(run)
    with torch.no_grad():
        for parameter in model.encoders["bottom"].parameters():
            parameter.zero_()
    told = latents(subject_of(run, model))
    assert told["latents/active.bottom"].value == 0
    assert told["latents/kl.bottom"] == Scored(0.0, 0.0, 270)
    assert told["latents/active.top"].value == 4


def means_of(model: MultimodalVAE, batch: Batch, given: list[str]) -> Tensor:
    rows = np.flatnonzero(batch.present_BM[:, [list(batch.values).index(name) for name in given]].all(1))
    return model.posterior(batch.only(frozenset(given))).mu[rows]


@torch.no_grad()
def test_only_rows_count_that_have_what_is_given(tmp_path: Path) -> None:
    rows: list[dict[str, int]] = [
        {"upper": 0, "lower": 1},
        {"upper": 1},
        {"upper": 2, "lower": 0, "label": 1},
        {"lower": 2},
        {"lower": 1, "label": 2},
        {"lower": 1},
    ]
    run = stripes(tmp_path / "d", [("test", row) for row in rows])
    subject = subject_of(run)
    told, found, batch = latents(subject), per_dimension(subject), whole(subject)
    counts = {"upper": 3, "lower": 5, "all": 2}
    for name, count in counts.items():
        given = ["upper", "lower"] if name == "all" else [name]
        assert told[f"latents/kl.{name}"].count == told[f"latents/active.{name}"].count == count
        variance = means_of(subject.model, batch, given).double().numpy().var(0)
        np.testing.assert_allclose(found[f"variance/{name}"], variance, rtol=1e-4, atol=1e-12)
    shares = precision_shares(subject.model, subject.model, run, batch)
    assert [int((~share.isnan()).sum()) for share in shares.values()] == [2, 2]
    both = [single(subject.model, batch, name).map(lambda tensor: tensor[[0, 2]]) for name in ("upper", "lower")]
    p, q = map(by_torch, both)
    symmetric = (kl_divergence(p, q) + kl_divergence(q, p)).mean(0) / 2
    np.testing.assert_allclose(found["symmetric_kl/upper+lower"], symmetric, rtol=1e-4, atol=1e-6)


def test_what_no_row_has_is_nan(tmp_path: Path) -> None:
    run = stripes(tmp_path / "d", [("test", {"upper": n}) for n in range(3)] + [("train", {"upper": 0, "lower": 1})])
    subject = subject_of(run)
    assert np.isnan(latents(subject)["latents/kl.lower"].value)
    found = per_dimension(subject)
    assert np.isnan(found["kl/lower"]).all()
    assert np.isnan(found["variance/all"]).all()
    assert np.isfinite(found["kl/upper"]).all()


def test_with_many_modalities_no_pairs_are_compared(tmp_path: Path) -> None:
    run = stripes(tmp_path / "d", [("test", {"upper": n % 3, "lower": 0, "label": 1}) for n in range(3)])
    single = replace(run, modalities={"upper": run.modalities["upper"]}, model=Model(2, "vae"), examine=Examine())
    assert set(per_dimension(subject_of(single))) == {"kl/upper", "variance/upper"}


def both_studies(subject: Subject) -> tuple[dict[str, Scored], dict[str, np.ndarray]]:
    return latents(subject), per_dimension(subject)


@pytest.mark.parametrize("system", ["svae", "mmvae"])
def test_two_ranks_say_what_one_says(ranks: Ranks, digits_dir: Path, tmp_path: Path, system: str) -> None:
    run = run_of(digits_dir, system)
    told, found = on_a_rank(both_studies, run, tmp_path)
    (told_1, found_1), (told_2, found_2) = ranks.run(on_a_rank, both_studies, run, tmp_path)
    assert list(told_1) == list(told_2) == list(told)
    for name, scored in told.items():
        assert told_1[name].value == told_2[name].value == pytest.approx(scored.value, rel=1e-6)
        assert told_1[name].count == scored.count
        assert told_1[name].error == pytest.approx(scored.error, rel=1e-4, nan_ok=True)
    for name, array in found.items():
        np.testing.assert_array_equal(found_1[name], found_2[name])
        np.testing.assert_allclose(found_1[name], array, rtol=1e-5, atol=1e-7)
