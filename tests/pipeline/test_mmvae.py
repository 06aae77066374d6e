"""MMVAE's objective: bounds, gradients and metrics against plain loops, runs of the networks, partial rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch

from pipeline.experts import Laplace, Mixture
from pipeline.model import MultimodalVAE
from pipeline.objectives.plan import joint_plan
from pipeline.objectives.sampled import mmvae, mmvae_joint
from pipeline.objectives.terms import metrics
from pipeline.settings import Bound, Gradient, Objective
from tests.pipeline.batches import (
    LATENT,
    assert_close,
    batch_of,
    gradients,
    networks,
    patterns,
    score,
    small_model,
    some_modalities,
)
from tests.pipeline.mixtures import rows_of

BOUNDS: list[Bound] = ["stratified", "tight", "linear"]
KINDS: list[tuple[Bound, Gradient]] = list(product(BOUNDS, ("iwae", "dreg")))
SINGLE = torch.float32
CALLS = ("name", "gradient")


def presence(rows: int, size: int, seed: int) -> np.ndarray:
    """Random presence in which a row is whole, one has nothing, and one a single modality."""
    present = patterns(rows, size, seed)
    present[:3] = [[True] * size, [False] * size, np.arange(size) == seed % size]
    return present


def model_of(size: int, seed: int) -> MultimodalVAE:
    """Experts that disagree, and a prior that has learnt something."""
    model = small_model(some_modalities(size), seed, "mmvae")
    with torch.no_grad():
        model.prior_raw.copy_(torch.linspace(-0.7, 0.5, LATENT))
    return model


@contextmanager
def in_float64() -> Iterator[None]:
    """What the project computes in float32 otherwise, whose rounding the normalised weights magnify."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(SINGLE)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(CALLS, KINDS)
def test_bounds_gradients_and_metrics_are_the_paper_s(name: Bound, gradient: Gradient, samples: int, size: int) -> None:
    seed = 100 * KINDS.index((name, gradient)) + 10 * samples + size
    rng, rows = np.random.default_rng(seed), 6
    model, present = model_of(size, seed), presence(rows, size, seed)
    if size > 1 and seed % 2:  # a modality that the whole batch lacks
        present[:, rng.integers(size)] = False
    weight = list(present.any(1) * (np.arange(rows) != 4))
    batch = batch_of(model.modalities, present, weight, list(rng.permutation(100)[:rows]))
    lambdas, beta = {f"m{m}": float(rng.uniform(0, 3)) for m in range(0, size, 2)}, float(rng.uniform(0.1, 2))
    shared = seed % 3 == 0
    objective = Objective(samples=samples, bound=name, gradient=gradient, lambda_=lambdas, shared_noise=shared)
    fast = score(model, batch, objective, rows, beta, seed, system="mmvae")
    found = gradients(model, fast.loss)
    exact = model.double()
    with in_float64():
        precise = gradients(exact, score(exact, batch, objective, rows, beta, seed, system="mmvae").loss)
        plan = mmvae(present, objective, model.family, 0, 0)
        drawn = plan.noise(seed, "train", batch.row_B, LATENT, shared)

    naive = rows_of(exact, batch, drawn.view(samples, size, rows, LATENT), lambdas, beta)
    values, estimators = zip(*(row.bound(name, gradient) for row in naive), strict=True)
    per_row = torch.stack(values).detach()
    assert fast.row_objective_B.tolist() == pytest.approx(per_row.tolist(), rel=1e-5, abs=1e-5)
    assert fast.loss.item() == pytest.approx(float(-(batch.weight_B * per_row).sum()) / rows, rel=1e-5)
    anchor = torch.stack([0.0 * parameter.sum() for parameter in exact.parameters()]).sum()
    expected = gradients(exact, anchor - (batch.weight_B.double() * torch.stack(estimators)).sum() / rows)
    assert_close(precise, expected, 1e-6)
    assert_close(found, expected, 1e-4 if samples > 1 else 1e-5)

    taken = [row for row, part in zip(naive, weight, strict=True) if part]
    each = [row.metrics(name) for row in taken]
    for key in each[0]:
        total = sum(metric[key] for metric in each)
        assert float(fast.sums[key]) == pytest.approx(total, rel=1e-5, abs=1e-5), key
        having = sum(int(key[7:]) in row.values for row in taken) if key.startswith("recon") else len(taken)
        assert fast.counts[key] == having


def test_noise_is_each_sample_s_own_unless_it_is_shared() -> None:
    model, rows = model_of(2, 0), torch.arange(4)
    plan = mmvae(np.ones((4, 2), bool), Objective(samples=3), model.family, 0, 0)
    drawn, shared = (plan.noise(0, "train", rows, LATENT, also).view(3, 2, 4, LATENT) for also in (False, True))
    assert len(drawn.flatten(0, 2).unique(dim=0)) == 24
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert len(shared.flatten(0, 2).unique(dim=0)) == 12


def test_evaluation_has_the_elbo_of_the_mixture() -> None:
    model = model_of(3, 1)
    batch = batch_of(model.modalities, presence(6, 3, 0))
    plan = mmvae_joint(batch.present_BM, Objective(samples=7, bound="linear"), model.family)
    noise = plan.noise(0, "val", batch.row_B, LATENT)
    with torch.no_grad():
        sums, counts = metrics(model(batch, plan, noise), plan, batch)
    naive = rows_of(model.double(), batch, noise[None], {}, 1.0)
    elbo = sum(row.bound("stratified", "iwae")[0].item() for row in naive)
    assert float(sums["elbo"]) == pytest.approx(elbo, 1e-5)
    assert counts["elbo"] == batch.present_BM.any(1).sum()


@pytest.mark.parametrize("name", BOUNDS)
def test_every_network_runs_once_on_as_many_rows_as_the_paper_says(name: Bound) -> None:
    """M² passes over the decoders (section 3), or M (appendix B), of K samples each."""
    model, rows, samples = model_of(3, 0), 4, 5
    seen: list[tuple[str, int]] = []
    for network, module in networks(model).items():
        module.register_forward_hook(lambda _, inputs, __, network=network: seen.append((network, len(inputs[0]))))
    batch = batch_of(model.modalities, np.ones((rows, 3)))
    score(model, batch, Objective(samples=samples, bound=name), rows, system="mmvae")
    each = rows * samples * (1 if name == "linear" else 3)
    assert Counter(seen) == {
        (network, rows if network.startswith("encoders") else each): 1 for network in networks(model)
    }


def test_scales_sum_to_the_number_of_dimensions_and_the_prior_learns() -> None:
    model = model_of(3, 0)
    batch = batch_of(model.modalities, presence(6, 3, 0))
    posterior = model.posterior(batch)
    assert isinstance(posterior, Mixture)
    total = torch.tensor(float(LATENT))
    for distribution in (posterior.components, model.prior(torch.device("cpu"))):
        assert isinstance(distribution, Laplace)
        torch.testing.assert_close(distribution.logscale.exp().sum(-1), total.expand(distribution.mu.shape[:-1]))
    assert posterior.components.logscale[:, 0].std() > 0.1
    for name, gradient in KINDS:
        loss = score(model, batch, Objective(bound=name, gradient=gradient), 6, system="mmvae").loss
        assert (gradients(model, loss)["prior_raw"] != 0).all()


@pytest.mark.parametrize(CALLS, KINDS)
@pytest.mark.parametrize("case", ["bf16", "extreme"])
def test_losses_and_gradients_stay_finite(case: str, name: Bound, gradient: Gradient) -> None:
    model = model_of(3, 0)
    batch = batch_of(model.modalities, presence(6, 3, 0))
    objective = Objective(samples=3, bound=name, gradient=gradient)
    full = score(model, batch, objective, 6, system="mmvae").loss.item()
    if case == "bf16":
        model = model.to(torch.bfloat16)
        assert model.prior(torch.device("cpu")).logscale.dtype == torch.float32
    else:
        with torch.no_grad():
            for number, encoder in enumerate(model.encoders.values()):
                encoder.heads.bias[LATENT:] = torch.tensor([80.0, -80, 80, -80, 0]).roll(number)
            model.prior_raw.copy_(torch.tensor([-80.0, 80, 0, 80, -80]))
    terms = score(model, batch, objective, 6, system="mmvae")
    assert terms.loss.dtype == torch.float32
    assert terms.loss.isfinite()
    assert case == "extreme" or terms.loss.item() == pytest.approx(full, rel=0.05)
    assert all(value.isfinite().all() for value in gradients(model, terms.loss).values())


def test_the_anchor_is_a_zero_that_leads_to_every_parameter() -> None:
    """Also where nothing is there, and the terms are no samples (the engine's rehearsal)."""
    model = model_of(3, 0)
    batch = batch_of(model.modalities, np.zeros((2, 3)))
    for plan in (joint_plan(batch.present_BM, model.family), mmvae(batch.present_BM, Objective(), model.family, 0, 0)):
        anchor = model(batch, plan, plan.noise(0, "train", batch.row_B, LATENT)).anchor
        assert anchor == 0
        assert all((gradient == 0).all() for gradient in gradients(model, anchor).values())


@pytest.mark.parametrize(CALLS, KINDS)
def test_a_batch_is_the_sum_of_its_rows(name: Bound, gradient: Gradient) -> None:
    model, present, rows = model_of(3, 0), presence(7, 3, 5), 7
    numbers, weight = [3, 14, 15, 92, 65, 35, 89], [1.0, 1, 1, 0, 1, 1, 1]
    objective = Objective(samples=2, bound=name, gradient=gradient)
    parts = [slice(0, rows)] + [slice(b, b + 1) for b in range(rows)]
    batches = [batch_of(model.modalities, present[part], weight[part], numbers[part]) for part in parts]
    whole, *alone = [score(model, batch, objective, rows=1, system="mmvae") for batch in batches]
    assert whole.row_objective_B.tolist() == pytest.approx([t.row_objective_B.item() for t in alone], rel=1e-5)
    assert whole.row_objective_B[1] == 0
    found = [gradients(model, terms.loss) for terms in alone]
    assert_close(gradients(model, whole.loss), {key: sum(part[key] for part in found) for key in found[0]})
    assert all((part == 0).all() for b in (1, 3) for part in found[b].values())  # nothing there; weight 0
    for key, total in whole.sums.items():
        assert float(total) == pytest.approx(sum(float(terms.sums[key]) for terms in alone), rel=1e-5, abs=1e-5)
        assert whole.counts[key] == sum(terms.counts[key] for terms in alone)


@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize(CALLS, KINDS)
def test_rows_without_a_modality_teach_its_networks_nothing(name: Bound, gradient: Gradient, absent: int) -> None:
    model = model_of(3, 0)
    present, more = presence(6, 3, 8), np.ones((6, 3), bool)
    more[:, absent] = False
    objective = Objective(samples=2, bound=name, gradient=gradient)
    batches = [batch_of(model.modalities, rows) for rows in (present, np.concatenate([present, more]))]
    before, after = (gradients(model, score(model, b, objective, 6, system="mmvae").loss) for b in batches)
    mine = (f"encoders.m{absent}.", f"decoders.m{absent}.")
    for prefix in mine:
        assert_close(after, before, 1e-5, prefix)
    others = [key for key in before if not key.startswith(mine)]
    assert not any(torch.allclose(after[key], before[key], rtol=1e-3, atol=0) for key in others)
