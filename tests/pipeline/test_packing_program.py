"""A packed step against the same steps of each model in a plain loop: every system, and networks that do not stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from infra.distributed import World
from modalities import AnyModality, Attributes, Image, Label, Sentences, Text
from pipeline import stacking
from pipeline.augment import augment
from pipeline.batch import Batch
from pipeline.config import Run, override
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import SYSTEMS, plan_of
from pipeline.objectives.terms import beta_at, combine
from pipeline.packing.joined import join, join_plans
from pipeline.packing.model import Pack
from pipeline.packing.program import Program
from pipeline.packing.rows import Rows
from pipeline.settings import Model, Training
from pipeline.train import build
from tests.pipeline.batches import patterns
from tests.pipeline.test_no_waiting import META, on_meta

ROWS, LATENT = 7, 5
CPU = World(0, 1, 0, torch.device("cpu"))
SMALL: dict[str, AnyModality] = {
    "picture": Image(2, 3, levels=16, hidden=(7, 6)),
    "class": Label(3, hidden=(5, 6)),
    "sort": Label(3, hidden=(5, 6)),
}
OTHERS: dict[str, AnyModality] = {
    "picture": Image(32, 32, network="conv", hidden=(6,), shift=1.0, rotate=20.0),
    "class": Label(3, hidden=(5, 6)),
    "word": Text(12, 5, 4, 4),
    "sentence": Sentences(9, 6, 4, 4, word_dropout=0.3),
    "answers": Attributes(2, hidden=(4,)),
}
LIMITS = {"label": (0, 3), "attributes": (0, 2), "text": (3, 9), "sentences": (3, 9)}
"""Which whole numbers the values of a kind are drawn from."""
CHANGES: list[dict[str, Any]] = [
    {},
    {"seed": 3, "objective.beta": 0.3, "optim.lr": 3e-3},
    {"objective.lambda.class": 20.0, "optim.clip": 0.5, "seed": 2**40 + 1},
    {"objective.anneal": 0.5, "optim.betas": [0.8, 0.99], "optim.decay": 1.0},
]


def runs_of(system: str, modalities: dict[str, AnyModality] = SMALL, **changes: Any) -> list[Run]:
    """Runs that differ in numbers, of systems with random subsets in their number too."""
    base = Run("test", "nowhere", modalities, model=Model(LATENT, system), train=Training(ROWS, steps=8))  # type: ignore[arg-type]
    found = [override(base, {**one, **changes}) for one in CHANGES]
    if "k" in SYSTEMS[system].uses:
        found = [override(run, {"objective.k": k, "objective.cross": k / 4}) for k, run in enumerate(found)]
    return found


def batches_of(run: Run, number: int, steps: int) -> list[Batch]:
    """Rows of any pattern, of each run others, three of them whole; in one step a run has none of "class"."""
    found = []
    for step in range(steps):
        present, rng = patterns(ROWS, len(run.modalities), 10 * number + step), np.random.default_rng((number, step))
        present[:3] = True
        if step == number:
            present[:, list(run.modalities).index("class")] = False
        values, rows_of = {}, {}
        for column, (name, modality) in enumerate(run.modalities.items()):
            rows_of[name] = np.flatnonzero(present[:, column])
            shape = (max(1, len(rows_of[name])), *modality.shape)
            drawn = rng.random(shape) if isinstance(modality, Image) else rng.integers(*LIMITS[modality.kind], shape)
            values[name] = torch.from_numpy(drawn.astype(modality.dtype))
        row_B = torch.arange(step * ROWS, (step + 1) * ROWS)
        keys = [f"row{row}" for row in row_B.tolist()]
        found.append(Batch(values, rows_of, present, torch.from_numpy(present.any(1).astype(np.float32)), row_B, keys))
    return found


def alone(run: Run, batches: Sequence[Batch]) -> tuple[list[float], MultimodalVAE, torch.optim.Adam]:
    """The plain loop: autograd, torch's own clipping, Adam."""
    model = build(run)
    adam = torch.optim.Adam(model.parameters(), lr=run.optim.lr, betas=run.optim.betas)
    losses = []
    for step, plain in enumerate(batches):
        batch = augment(plain, run.modalities, run.seed)
        plan = plan_of(run, batch.present_BM, step)
        noise = plan.noise(run.seed, "train", batch.row_B, LATENT, run.objective.shared_noise)
        beta = beta_at(run.objective, step, run.train.steps)
        terms = combine(model(batch, plan, noise), plan, batch, run.weights(), beta, ROWS)
        adam.zero_grad()
        terms.loss.backward()
        if run.optim.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.clip)
        adam.param_groups[0]["lr"] = run.optim.rate(step, run.train.steps)
        adam.step()
        losses.append(float(terms.loss.detach()))
    return losses, model, adam


def compare(runs: Sequence[Run], steps: int = 4, atol: float = 3e-6) -> Program:
    models = [build(run) for run in runs]
    program = Program(models, runs, CPU)
    batches = [batches_of(run, number, steps) for number, run in enumerate(runs)]
    losses: list[list[float]] = [[] for _ in runs]
    for step in range(steps):
        ballots = program.step([step] * len(runs), join([some[step] for some in batches]), False)
        for found, ballot in zip(losses, ballots, strict=True):
            found.append(ballot.count()[1])
    for number, run in enumerate(runs):
        expected, model, adam = alone(run, batches[number])
        assert losses[number] == pytest.approx(expected, rel=1e-5)
        state = dict(program.state(number))
        assert float(state["step"]) == steps
        for name, parameter in model.named_parameters():
            told = {"model": parameter.detach(), **{k: adam.state[parameter][k] for k in ("exp_avg", "exp_avg_sq")}}
            for kind, tensor in told.items():
                torch.testing.assert_close(state[f"{kind}.{name}"], tensor, rtol=1e-3, atol=atol)
            torch.testing.assert_close(models[number].get_parameter(name), parameter, rtol=1e-3, atol=atol)
    return program


@pytest.mark.parametrize("in_cache", [0, stacking.IN_CACHE])
@pytest.mark.parametrize("system", sorted(SYSTEMS.keys() - {"vae", "telbo"}))
def test_a_packed_step_is_each_models_own(system: str, in_cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "IN_CACHE", in_cache)
    program = compare(runs_of(system))
    groups = program.pack.decoders.together(dict.fromkeys(program.pack.decoders, ROWS))
    assert {len(names) for names in groups} == ({4} if in_cache else {1})


@pytest.mark.parametrize("bound", ["stratified", "tight", "linear"])
def test_bounds_by_samples_are_packed(bound: str) -> None:
    compare(runs_of("mmvae", **{"objective.samples": 3, "objective.bound": bound}))


def test_networks_that_are_not_stacked_and_augmented_pictures_are_packed() -> None:
    compare(runs_of("mvae", OTHERS), atol=1e-4)  # of half a million weights a few have gradients of next to nothing


def test_shared_noise_is_packed() -> None:
    compare(runs_of("mvae", **{"objective.shared_noise": True}))


def test_terms_that_a_run_lacks_weigh_nothing() -> None:
    runs = runs_of("mvae")
    present = patterns(ROWS, 3, 1)
    plans = [plan_of(run, present, 0) for run in runs]
    assert [len(plan.weight_TB) for plan in plans] == [4, 5, 6, 7]
    joined = join_plans(plans)
    assert joined.weight_TB.shape == (7, 4 * ROWS)
    for number, plan in enumerate(plans):
        mine = slice(number * ROWS, (number + 1) * ROWS)
        np.testing.assert_array_equal(joined.weight_TB[: 4 + number, mine], plan.weight_TB)
        assert not joined.weight_TB[4 + number :, mine].any()
        assert not joined.wanted_TBM[4 + number :, mine].any()


def test_a_joined_batch_has_the_parts_it_was_made_of() -> None:
    runs = runs_of("mvae")
    batches = [batches_of(run, number, 4)[number] for number, run in enumerate(runs)]
    joined = join(batches)
    for number, batch in enumerate(batches):
        part = joined.part(number)
        assert part.keys == batch.keys
        assert (part.present_BM == batch.present_BM).all()
        for name, values in batch.values.items():
            np.testing.assert_array_equal(part.rows_of[name], batch.rows_of[name])
            if len(batch.rows_of[name]):
                assert torch.equal(part.values[name], values)
            else:
                assert len(part.values[name]) == 1


def test_a_bad_number_stays_in_its_own_run() -> None:
    """Clipping and a stacked product see all runs at once."""
    runs = runs_of("mvae")
    models = [build(run) for run in runs]
    with torch.no_grad():
        next(models[1].parameters()).fill_(torch.nan)
    program = Program(models, runs, CPU)
    ballots = program.step([0] * 4, join([batches_of(run, n, 1)[0] for n, run in enumerate(runs)]), False)
    losses = [ballots[number].losses[number] for number in range(4)]
    assert [bool(np.isfinite(loss)) for loss in losses] == [True, False, True, True]
    for number, values_P in enumerate(program.rows.values_NP):
        assert bool(values_P.isfinite().all()) == (number != 1)


def test_rows_are_the_models_parameters_and_gradients() -> None:
    models = [build(run) for run in runs_of("mvae", OTHERS)]
    for model in models:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    rows = Rows(models)
    for model, old in zip(models, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())
    name, weight = next((name, p) for name, p in models[2].named_parameters() if p.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    (3 * rows.stacked(name)[2] ** 2 / 2).sum().backward()
    torch.testing.assert_close(weight.grad, 3 * weight.detach())
    torch.testing.assert_close(rows.view(rows.each[2].grad, name), 3 * weight.detach())
    rows.each[2].data.zero_()
    assert not weight.any()


@pytest.mark.parametrize("system", ["mvae", "mmvae", "svae", "jmvae"])
def test_a_packed_step_reads_nothing_back(system: str) -> None:
    kinds = {"picture": Image(8, 8, hidden=(8,)), "class": Label(3, hidden=(4, 4)), "more": Label(5, hidden=(4, 4))}
    runs = runs_of(system, kinds)
    pack = Pack([build(run).to(META) for run in runs], ROWS)
    host = [on_meta(patterns(ROWS, 3, number), kinds) for number in range(4)]
    batch = join(host)
    plan = join_plans([plan_of(run, one.present_BM, 0) for run, one in zip(runs, host, strict=True)])
    noise = plan.noise([0] * 4, "train", batch.row_B, LATENT)
    lambdas, beta = np.ones((4 * ROWS, 3), np.float32), torch.ones(4 * ROWS, device=META)
    terms = combine(pack(batch, plan, noise), plan, batch, lambdas, beta, ROWS, 4)
    terms.loss.sum().backward()
    assert terms.loss.shape == (4,)
    assert {tensor.device for tensor in (terms.loss, *terms.sums.values(), pack.rows.gradients_NP)} == {META}
