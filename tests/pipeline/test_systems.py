"""Every system of the papers: its objective against plain loops, one run of every network, and partial rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from modalities import Attributes, Image, Label
from modalities.networks import parameter_count
from pipeline.batch import empty_batch
from pipeline.config import override
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.plan import joint_plan
from pipeline.objectives.subsampled import random_subsets
from pipeline.objectives.systems import SYSTEMS, remark
from pipeline.objectives.terms import metrics
from pipeline.recipes import recipe
from pipeline.settings import Objective
from tests.pipeline.batches import (
    assert_close,
    batch_of,
    counted,
    gradients,
    networks,
    patterns,
    score,
    small_model,
    some_modalities,
)
from tests.pipeline.papers import naive, rows_of

ROWS = 7
SIZES = {"vae": [1], "mvae": [2, 3, 6], "mvae-q": [2, 3, 6]}
EVERY = [(system, size) for system in SYSTEMS for size in SIZES.get(system, [2, 3])]
AT_ITS_LARGEST = [(system, SIZES.get(system, [3])[-1]) for system in SYSTEMS]
CALLS = ("system", "size")


def presence(rows: int, size: int, seed: int) -> np.ndarray:
    """Random presence in which some rows are whole, one has nothing, and one a single modality."""
    present = patterns(rows, size, seed)
    present[:2] = True
    present[2] = False
    present[3] = np.arange(size) == seed % size
    return present


def some_objective(seed: int, names: list[str]) -> Objective:
    """Weights that no two parts of an objective share."""
    rng = np.random.default_rng(seed)
    return Objective(
        k=2, cross=[0.0, 0.6][seed % 2], alpha=float(rng.uniform(0.1, 2)), mu=float(rng.uniform(0.2, 0.8)),
        lambda_={name: float(rng.uniform(0, 3)) for name in names[::2]}, shared_noise=seed % 3 == 0,
    )  # fmt: skip


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(CALLS, [*(some for some in EVERY if some[0] != "mmvae"), ("telbo, later", 3)])
def test_loss_and_gradients_are_those_of_the_papers(system: str, size: int, case: int) -> None:
    """MMVAE has a test of its own (test_mmvae.py)."""
    name, *second = system.split(", ")
    seed = 100 * case + 10 * size + list(SYSTEMS).index(name)
    rng = np.random.default_rng(seed)
    kinds = some_modalities(size)
    present = presence(ROWS, size, seed)
    if case == 2 and size > 1:  # a modality that the whole batch lacks
        present[:, rng.integers(size)] = False
    weight = list(present.any(1) * (rng.random(ROWS) < 0.8))
    batch = batch_of(kinds, present, weight, numbers=list(rng.permutation(100)[:ROWS]))
    objective, beta = some_objective(seed, list(kinds)), float(rng.uniform(0.1, 2))
    model, later = small_model(kinds, seed, name), bool(second)

    fast = score(model, batch, objective, rows=ROWS, beta=beta, seed=seed, step=case, system=name, later=later)
    fast_gradients = gradients(model, fast.loss)

    subsets = [tuple(np.flatnonzero(subset)) for subset in random_subsets(objective.k, size, seed, case)]
    noise = normal(seed, "train", batch.row_B, 1 if objective.shared_noise else 20, model.latent).expand(20, -1, -1)
    exact = model.double()
    rows = rows_of(system, exact, batch, objective, subsets, noise, beta)
    loss, per_row = naive(rows, batch.weight_B, ROWS)
    assert fast.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert fast.row_objective_B.tolist() == pytest.approx(per_row, rel=1e-5, abs=1e-5)
    assert_close(fast_gradients, gradients(exact, loss), 1e-5)
    taken = [
        row for row, part in zip(rows, weight, strict=True)
        if part and not later and (not SYSTEMS[name].whole_rows or row.whole())
    ]  # fmt: skip
    assert float(fast.sums["elbo"]) == pytest.approx(sum(row.joint() for row in taken), rel=1e-5, abs=1e-5)
    assert fast.counts["elbo"] == len(taken)


@pytest.mark.parametrize("case", ["any", "one row", "without the first", "without the last", "nothing", "empty"])
@pytest.mark.parametrize(CALLS, EVERY)
def test_each_network_runs_once_and_every_parameter_takes_part(system: str, size: int, case: str) -> None:
    kinds = some_modalities(size)
    present = presence(ROWS, size, size)
    if case == "one row":
        present = present[3:4]
    elif case.startswith("without"):
        present[:, 0 if case == "without the first" else -1] = False
    elif case == "nothing":
        present[:] = False
    batch = empty_batch(kinds, torch.device("cpu")) if case == "empty" else batch_of(kinds, present)
    model = small_model(kinds, 0, system)
    runs = counted(model)
    terms = score(model, batch, some_objective(1, list(kinds)), rows=ROWS, system=system)
    assert runs == Counter(networks(model).keys())
    assert terms.loss.isfinite()
    found = gradients(model, terms.loss)  # raises for a parameter that takes no part
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize(CALLS, AT_ITS_LARGEST)
def test_every_parameter_learns_from_whole_and_single_rows(system: str, size: int) -> None:
    """No network is idle: SVAE's stand-ins learn from what lacks something, JMVAE's and VAEVAE's joint ones from pairs.

    The anchor alone would give a gradient of zero.
    """
    kinds = some_modalities(size)
    batch = batch_of(kinds, np.concatenate([np.ones((3, size), bool), np.repeat(np.eye(size, dtype=bool), 3, 0)]))
    model = small_model(kinds, 0, system)
    loss = score(model, batch, Objective(), rows=1, system=system).loss
    if SYSTEMS[system].later:
        loss = loss + score(model, batch, Objective(), rows=1, system=system, later=True).loss
    found = gradients(model, loss)
    heads = {name: found[f"encoders.{name}.heads.bias"] for name in model.encoders}
    assert all((bias != 0).all() for bias in heads.values())
    assert all((gradient != 0).any() for gradient in found.values())


@pytest.mark.parametrize(CALLS, AT_ITS_LARGEST)
def test_a_batch_is_the_sum_of_its_rows(system: str, size: int) -> None:
    kinds = some_modalities(size)
    present, numbers = presence(ROWS, size, 5), [3, 14, 15, 92, 65, 35, 89]
    weight = [1.0, 1, 0, 1, 1, 0, 1]
    objective, model = some_objective(1, list(kinds)), small_model(kinds, 0, system)
    whole = score(model, batch_of(kinds, present, weight, numbers), objective, rows=1, system=system)
    rows = [batch_of(kinds, present[b : b + 1], weight[b : b + 1], numbers[b : b + 1]) for b in range(ROWS)]
    alone = [score(model, row, objective, rows=1, system=system) for row in rows]
    assert whole.loss.item() == pytest.approx(sum(terms.loss.item() for terms in alone), rel=1e-5)
    assert whole.row_objective_B.tolist() == pytest.approx([t.row_objective_B.item() for t in alone], rel=1e-5)
    parts = [gradients(model, terms.loss) for terms in alone]
    assert_close(gradients(model, whole.loss), {name: sum(part[name] for part in parts) for name in parts[0]})
    for name, total in whole.sums.items():
        assert float(total) == pytest.approx(sum(float(terms.sums[name]) for terms in alone), rel=1e-5, abs=1e-5)
        assert whole.counts[name] == sum(terms.counts[name] for terms in alone)


@pytest.mark.parametrize("absent", [0, 1])
@pytest.mark.parametrize(CALLS, [(system, size) for system, size in AT_ITS_LARGEST if size > 1])
def test_rows_without_a_modality_teach_its_networks_nothing(system: str, size: int, absent: int) -> None:
    kinds = some_modalities(size)
    present = presence(ROWS, size, 8)
    more = patterns(ROWS, size, 9)
    more[:, absent] = False
    more[0] = np.arange(size) != absent
    objective, model = some_objective(1, list(kinds)), small_model(kinds, 0, system)
    before = gradients(model, score(model, batch_of(kinds, present), objective, rows=ROWS, system=system).loss)
    with_more = batch_of(kinds, np.concatenate([present, more]))
    after = gradients(model, score(model, with_more, objective, rows=ROWS, system=system).loss)
    looking = {expert.name for expert in model.family.experts if f"m{absent}" in expert.inputs}
    mine = [f"encoders.{name}." for name in looking] + [f"decoders.m{absent}."]
    for prefix in mine:
        assert_close(after, before, 1e-6, prefix)
    others = [name for name in before if not name.startswith(tuple(mine))]
    learnt = [not torch.allclose(after[name], before[name], rtol=1e-3, atol=0) for name in others]
    assert any(learnt) != SYSTEMS[system].whole_rows


@pytest.mark.parametrize(CALLS, [(system, size) for system, size in EVERY if size > 1])
def test_partial_rows_count_except_where_a_system_takes_whole_ones_only(system: str, size: int) -> None:
    kinds = some_modalities(size)
    present, whole = presence(12, size, 1), np.flatnonzero(presence(12, size, 1).all(1))
    objective, model = some_objective(1, list(kinds)), small_model(kinds, 0, system)
    every = score(model, batch_of(kinds, present), objective, rows=12, system=system)
    only = score(model, batch_of(kinds, present[whole], numbers=list(whole)), objective, rows=12, system=system)
    partial = ~present.all(1) & present.any(1)
    if SYSTEMS[system].whole_rows:
        assert (every.row_objective_B[~torch.from_numpy(present.all(1))] == 0).all()
        assert every.loss.item() == pytest.approx(only.loss.item(), rel=1e-6)
        assert_close(gradients(model, every.loss), gradients(model, only.loss), 1e-6)
    else:
        assert (every.row_objective_B[torch.from_numpy(partial)] != 0).all()
        assert every.loss.item() > only.loss.item() + 0.1  # every row's objective is negative
    assert (every.row_objective_B[torch.from_numpy(~present.any(1))] == 0).all()
    torch.testing.assert_close(every.row_objective_B[torch.from_numpy(whole)], only.row_objective_B)


def test_who_takes_whole_rows_only() -> None:
    assert [name for name, system in SYSTEMS.items() if system.whole_rows] == ["jmvae", "cvae", "telbo"]


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("mvae", ""),
        ("vaevae-a", "makes no use of objective.k"),
        ("mmvae", "makes no use of objective.k, objective.cross"),
        ("cvae", "makes no use of objective.k, objective.cross"),
    ],
)
def test_what_a_system_makes_no_use_of_is_said(system: str, said: str) -> None:
    """The digits' recipe sets both, for MVAE."""
    last = remark(override(recipe("digits"), {"model.system": system})).splitlines()[-1:]
    assert last == ([f"model.system = {system} {said}"] if said else [])


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_bivcca_with_all_the_weight_on_one_side(mu: float) -> None:
    """Rows that have the other side only weigh nothing: 0 / 0 is nowhere."""
    kinds = some_modalities(2)
    model = small_model(kinds, 0, "bivcca")
    terms = score(model, batch_of(kinds, [[1, 1], [1, 0], [0, 1]]), Objective(mu=mu), rows=3, system="bivcca")
    assert (terms.row_objective_B != 0).tolist() == [True, mu == 1, mu == 0]
    assert all(gradient.isfinite().all() for gradient in gradients(model, terms.loss).values())


@pytest.mark.parametrize(CALLS, AT_ITS_LARGEST)
def test_networks_in_bf16_are_fused_and_scored_in_float32(system: str, size: int) -> None:
    kinds = some_modalities(size)
    batch, model = batch_of(kinds, presence(ROWS, size, 2)), small_model(kinds, 0, system)
    full = score(model, batch, Objective(k=2), rows=ROWS, system=system)
    half = score(model.to(torch.bfloat16), batch, Objective(k=2), rows=ROWS, system=system)
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(full.loss.item(), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, half.loss).values())


@pytest.mark.parametrize(CALLS, AT_ITS_LARGEST)
def test_the_objective_is_counted_over_the_rows_that_have_one(system: str, size: int) -> None:
    """`train/objective` is a mean over rows: a row in the sum that is not in the count inflates it."""
    kinds = some_modalities(size)
    weight = [1.0, 0, 0, 1, 1, 0, 1]
    batch = batch_of(kinds, presence(ROWS, size, 5), weight)
    terms = score(small_model(kinds, 0, system), batch, Objective(), rows=ROWS, system=system)
    assert terms.counts["objective"] == ((terms.row_objective_B != 0) & (batch.weight_B > 0)).sum()


README = (Path(__file__).parents[2] / "README.md").read_text()
MNIST = {"image": Image(28, 28), "label": Label(10)}
CELEBA = {
    "image": Image(64, 64, channels=3, codec="jpg", network="conv", hidden=(512,)),
    "attributes": Attributes(18),
}
TABLE_1 = {
    "vae": (730_240, 4_070_472),
    "bivcca": (1_063_680, 4_447_504),
    "jmvae": (2_061_184, 9_052_504),
    "mvae-q": (1_063_680, 4_447_504),
    "mvae": (1_063_680, 4_447_504),
}


@pytest.mark.parametrize("system", TABLE_1)
def test_inference_networks_have_as_many_parameters_as_mvae_table_1(system: str) -> None:
    """MNIST with 64 latent dimensions, CelebA with 100."""
    found = []
    for modalities, latent in ((MNIST, 64), (CELEBA, 100)):
        taken = {"image": modalities["image"]} if system == "vae" else modalities
        model = MultimodalVAE(taken, latent, SYSTEMS[system].posterior(list(taken)))
        found.append(parameter_count(model.encoders))
    assert tuple(found) == TABLE_1[system]


MNIST_PARAMETERS = {
    "cvae": 997_504, "telbo": 2_061_184, "mvae-moe": 1_063_680, "vaevae-a": 1_063_680, "vaevae-b": 2_061_184,
    "vaevae-star": 2_061_184, "svae": 2_127_360, "svae-star": 2_127_360, "mmvae": 1_063_680, "mopoe": 1_063_680,
}  # fmt: skip


@pytest.mark.parametrize("system", MNIST_PARAMETERS)
def test_inference_networks_of_the_others_have_as_many_parameters_as_readme_says(system: str) -> None:
    model = MultimodalVAE(MNIST, 64, SYSTEMS[system].posterior(list(MNIST)))
    assert parameter_count(model.encoders) == MNIST_PARAMETERS[system]
    assert f"{MNIST_PARAMETERS[system]:,}" in next(
        line for line in README.splitlines() if line.startswith(f"| `{system}` ")
    )


def test_evaluation_leaves_out_rows_that_a_family_has_no_posterior_for() -> None:
    """JMVAE has one of all modalities and of each alone: rows with two of three are no part of its ELBO."""
    present = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    modalities = some_modalities(3)
    model = small_model(modalities, system="jmvae")
    plan = joint_plan(present, model.family)
    assert plan.weight_TB.tolist() == [[1, 0, 1, 0]]
    batch = batch_of(modalities, present)
    noise = normal(0, "evaluate", batch.row_B, 1, model.latent)
    assert metrics(model(batch, plan, noise), plan, batch)[1]["elbo"] == 2
