"""Gradients on two ranks against plain loops in float64: every ZeRO stage, both precisions, any modality missing.

The reference is `papers.py`, which takes one row, one term and one network at a time, and which knows nothing of ranks,
plans, anchors or zero rows. Every step starts from the weights that the engine has at that moment.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infra import distributed
from modalities import Attributes
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.subsampled import random_subsets
from pipeline.objectives.systems import SYSTEMS
from pipeline.settings import Objective
from pipeline.stream import rows_for_rank
from pipeline.train import _score, build
from pipeline.zero import building
from tests.pipeline.batches import batch_of, patterns, score
from tests.pipeline.papers import Row, naive
from tests.pipeline.training import APART, ROWS, STAGES, a_run, global_rows, reference_steps, whole
from tests.ranks import Ranks

Pattern = np.ndarray | None
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Norm of a parameter's error, relative to the norm of its gradient."""
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
LABEL, TOP = 2, 0


def without(column: int, rows: slice = slice(None)) -> np.ndarray:
    """Random presence of which these rows lack a modality; one row of each rank has nothing at all."""
    present = patterns(ROWS, 3, 5)
    present[[0, ROWS // 2]] = True
    present[[1, ROWS // 2 + 1]] = False
    present[rows, column] = False
    return present


MIXED = without(LABEL, slice(0))
ON_RANK_0, ON_RANK_1 = slice(ROWS // 2), slice(ROWS // 2, None)
NOTHING = np.zeros((ROWS, 3), bool)
ANY: list[Pattern] = [
    APART, None, MIXED, without(LABEL, ON_RANK_0), without(TOP, ON_RANK_1), without(LABEL), NOTHING, APART[::-1],
]  # fmt: skip
"""A pattern for every step of a run; None is what the run's view shows."""


@dataclass(frozen=True)
class Step:
    """One optimizer step as a rank sees it."""

    loss: float
    """Of the global batch."""
    gradients: dict[str, Tensor]
    """Whole and averaged over the ranks, between backward and the optimizer's step."""
    reached: set[str]
    """Parameters to which this rank's own backward came."""
    weights: dict[str, Tensor]
    """Before the step."""


def steps_of(run: Run, shown: list[Pattern]) -> list[Step]:
    """Training as `train` does it, looked at from inside. Runs on every rank."""
    world = distributed.start("cpu", 1)
    with building(run, world):
        model = build(run)
    engine = Engine(model, run, world)
    from deepspeed.utils import safe_get_full_grad

    named = dict(engine.module.module.named_parameters())
    assert engine.stage == run.engine.zero_stage
    assert {one.dtype for one in named.values()} == {DTYPE[run.engine.precision]}
    collate, micro = Collator([open_manifest(run.data)], run.modalities), run.engine.accumulate
    gradients: dict[str, Tensor] = {}
    reached: set[str] = set()
    take = engine.module.step

    def look_and_take() -> None:
        if engine.module.is_gradient_accumulation_boundary():
            gradients.update({name: safe_get_full_grad(one).float().clone() for name, one in named.items()})
        take()

    engine.module.step = look_and_take
    for name, parameter in named.items():
        parameter.register_hook(lambda _, name=name: reached.add(name))
    steps = []
    for number, pattern in enumerate([*shown, MIXED]):  # the last one for the weights before it
        weights = {name.removeprefix("model."): tensor for name, tensor in whole(engine).items() if "model." in name}
        refs = rows_for_rank(global_rows(run, number, pattern), world.rank, world.size)
        size = len(refs.sample_B) // micro
        batches = [collate(refs[i * size : (i + 1) * size]) for i in range(micro)]
        gradients.clear()
        reached.clear()
        total = 0.0
        for batch in batches:
            micro_loss = _score(engine, model, run, batch, number, world).loss
            total += micro_loss.item()
            engine.step(micro_loss)
        loss = world.sum([total])[0] / world.size / micro
        steps.append(Step(loss, dict(gradients), set(reached), weights))
    return steps


def exact(run: Run, weights: dict[str, Tensor], number: int, pattern: Pattern) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step's global batch, in float64."""
    model = build(run)
    model.load_state_dict(weights)
    model.double()
    batch = Collator([open_manifest(run.data)], run.modalities)(global_rows(run, number, pattern))
    loss, _ = naive(rows_of(run, model, batch, number), torch.ones(ROWS), ROWS)
    named = dict(model.named_parameters())
    return loss.item(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def rows_of(run: Run, model: MultimodalVAE, batch: Batch, number: int) -> list[Row]:
    subsets = [
        tuple(np.flatnonzero(one)) for one in random_subsets(run.objective.k, len(run.modalities), run.seed, number)
    ]
    noise = normal(run.seed, "train", batch.row_B, 20, run.model.latent)
    place = {name: {int(b): i for i, b in enumerate(rows)} for name, rows in batch.rows_of.items()}
    rows = []
    for b in range(len(batch)):
        values = {m: batch.values[n][place[n][b]] for m, n in enumerate(run.modalities) if batch.present_BM[b, m]}
        rows.append(
            Row(run.model.system, model, values, noise[:, b].double(), run.objective, run.objective.beta, subsets)
        )
    return rows


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error of a parameter's gradient, and the parameter's name; a NaN counts as infinite."""
    off = {n: float((found[n] - g).norm() / g.norm().clamp_min(1e-30)) for n, g in expected.items()}
    return max((value if value == value else np.inf, name) for name, value in off.items())


def a_small(data: Path, system: str = "mvae", stage: int = 0, precision: str = "fp32", **changes: Any) -> Run:
    """A run in which no two weights of the objective are alike."""
    weights = {"objective.k": 2, "objective.cross": 0.3, "objective.lambda.label": 3.0, "objective.lambda.top": 0.6}
    weights |= {"objective.beta": 0.7, "objective.anneal": 0, "objective.alpha": 0.4}
    engine = {"model.system": system, "engine.zero_stage": stage, "engine.precision": precision}
    return a_run(data, **weights, **engine, **changes)


def belongs(name: str, modality: str) -> bool:
    """Whether a parameter is one of an encoder that looks at the modality, or of its decoder."""
    expert = name.split(".")[1]
    return modality in expert.split(" for ")[0].split("+")


CASES = [("mvae", stage, precision, 1) for precision in TOLERANCE for stage in STAGES]
CASES += [("mvae", stage, "fp32", 2) for stage in STAGES]
CASES += [(name, stage, "fp32", 1) for name, stage in (("jmvae", 1), ("svae", 2), ("vaevae-star", 3))]
CASES += [(name, stage, "fp32", 1) for name, stage in (("mvae-moe", 0), ("mvae-moe", 3), ("mvae-q", 2))]


@pytest.mark.parametrize(("system", "stage", "precision", "accumulate"), CASES)
def test_gradients_are_those_of_plain_loops(
    ranks: Ranks, digits_dir: Path, system: str, stage: int, precision: str, accumulate: int
) -> None:
    """Promises 1, 4: images on one rank and labels on the other; mixed rows; a modality that a rank or all lack."""
    run = a_small(digits_dir, system, stage, precision, **{"engine.accumulate": accumulate})
    shown = ANY if system == "mvae" else ANY[1:6]
    both = ranks.run(steps_of, run, shown)
    for number, pattern in enumerate(shown):
        loss, expected = exact(run, both[0][number].weights, number, pattern)
        for step in (mine[number] for mine in both):
            assert step.loss == pytest.approx(loss, rel=TOLERANCE[precision])
            assert error(step.gradients, expected) <= (TOLERANCE[precision], "zz"), number
            assert step.reached == set(expected), number  # no rank left a parameter out


def test_the_patterns_are_what_they_should_be(digits_dir: Path) -> None:
    """Mixed presence on both ranks, whole rows among them (JMVAE learns from nothing else), and rows of nothing."""
    natural = global_rows(a_small(digits_dir), 1).member_BM >= 0
    for present in (natural, MIXED):
        for rank in (ON_RANK_0, ON_RANK_1):
            assert len(np.unique(present[rank], axis=0)) >= 3
    assert MIXED[ON_RANK_0].all(1).any()
    assert MIXED[ON_RANK_1].all(1).any()
    assert not MIXED[[1, 7]].any()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("stage", STAGES)
def test_a_modality_that_nobody_has(ranks: Ranks, digits_dir: Path, stage: int, precision: str) -> None:
    """Its gradients are exactly zero (README). Its networks stay as they began, and once seen Adam's momentum moves
    them on, as far as in a plain loop."""
    run = a_small(digits_dir, "mvae", stage, precision)
    shown: list[Pattern] = [without(LABEL)] * 5 + [MIXED] + [without(LABEL)] * 2
    steps, others = ranks.run(steps_of, run, shown)
    for number, (step, other) in enumerate(zip(steps[:-1], others, strict=False)):
        assert np.isfinite(step.loss)
        for name, gradient in step.gradients.items():
            assert torch.equal(gradient, other.gradients[name])
            absent = belongs(name, "label") and number != 5
            assert bool((gradient == 0).all()) == absent, (number, name)
            moved = not torch.equal(step.weights[name], steps[number + 1].weights[name])
            assert moved == (number >= 5 or not belongs(name, "label")), (number, name)
    if precision == "fp32":
        _, model = reference_steps(run, len(shown), shown, run.objective.beta)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(steps[-1].weights[name], parameter.detach(), rtol=1e-4, atol=2e-6)


def test_sixty_four_modalities_train_without_a_pool_of_subsets() -> None:
    kinds = {f"m{i}": Attributes(count=2, hidden=(8,)) for i in range(64)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MultimodalVAE(kinds, 5)
    present = patterns(16, 64, 0)
    present[:, 7] = False
    batch, objective = batch_of(kinds, present), Objective(k=50, cross=0.2)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        tracemalloc.start()  # what numpy and Python hold
        plan = SYSTEMS["mvae"].plan(present, objective, model.family, 0, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert plan.seen_TBM.shape == (1 + 64 + 50, 16, 64)
        assert peak < 4e6  # as many bytes as 2^16 subsets of 64 modalities
        adam.zero_grad()
        loss = score(model, batch, objective, rows=16).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert bool((parameter.grad == 0).all()) == belongs(name, "m7"), name
        adam.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
