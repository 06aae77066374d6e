"""Pseudo-labels: what they add to the loss, what they leave alone, and that nobody looks at a hidden label."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infra import distributed
from infra.errors import UserError
from modalities import Image, Label
from pipeline.augment import augment
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.corpora import digits
from pipeline.corpora.corpus import Entry
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.plan import Plan
from pipeline.objectives.pseudo import Guesses, guess
from pipeline.objectives.systems import SYSTEMS, remark
from pipeline.objectives.terms import Terms, combine
from pipeline.settings import Objective
from pipeline.stream import rows_for_rank
from pipeline.train import _score, build
from pipeline.writing import write
from pipeline.zero import building
from tests.pipeline.batches import assert_close, batch_of, counted, gradients, small_model
from tests.pipeline.test_no_waiting import on_meta
from tests.pipeline.training import APART, ROWS, a_run, global_rows, whole
from tests.ranks import Ranks

KINDS = {"image": Image(3, 4, hidden=(9, 8)), "label": Label(3, hidden=(7, 6)), "other": Image(2, 3, hidden=(5, 6))}
PRESENT = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]], bool)
LACKING = [1, 2, 3, 6]
"""Rows that have something, but not the label."""
USING = [name for name, system in SYSTEMS.items() if "pseudo" in system.uses]
LAMBDAS = {"image": 0.7, "label": 3.0, "other": 1.3}


def planned(model: MultimodalVAE, batch: Batch, system: str, objective: Objective) -> tuple[Plan, Tensor]:
    plan = SYSTEMS[system].plan(batch.present_BM, objective, model.family, 0, 0)
    return plan, plan.noise(0, "train", batch.row_B, model.latent)


def scored(
    model: MultimodalVAE, system: str, objective: Objective, batch: Batch, shown: Batch | None = None
) -> tuple[Terms, Guesses]:
    """As training does it; `shown` is what augmentation made of the batch."""
    shown = shown or batch
    plan, noise = planned(model, shown, system, objective)
    guesses = guess(model, batch, shown, objective.confidence)
    plan = guesses.targets(plan, objective.pseudo)
    scores = guesses.trusted(model(shown, plan, noise, guesses.told))
    return guesses.tallied(combine(scores, plan, shown, LAMBDAS, 0.8, len(batch))), guesses


def without(model: MultimodalVAE, system: str, objective: Objective, batch: Batch) -> Terms:
    plan, noise = planned(model, batch, system, objective)
    return combine(model(batch, plan, noise), plan, batch, LAMBDAS, 0.8, len(batch))


@torch.no_grad()
def own_labels(model: MultimodalVAE, batch: Batch) -> dict[int, tuple[int, float]]:
    """Row by row: the most likely label at the posterior's mean, and its probability."""
    found = {}
    for row in LACKING:
        one = batch_of(KINDS, PRESENT[[row]], numbers=[int(batch.row_B[row])])
        chance = model.decoders["label"](model.posterior(one).mu).softmax(1)[0]
        found[row] = (int(chance.argmax()), float(chance.max()))
    return found


@pytest.mark.parametrize("system", ["mvae", "mvae-moe", "mvae-q", "vaevae-a", "svae-star"])
def test_what_they_add_to_the_loss(system: str) -> None:
    """-weight · λ · log p(label | z) of every term of the rows whose label the model is sure of, and nothing else."""
    model, batch = small_model(KINDS, 1, system), batch_of(KINDS, PRESENT)
    own = own_labels(model, batch)
    confidence = sorted(chance for _, chance in own.values())[1] + 1e-4
    sure = [row for row, (_, chance) in own.items() if chance > confidence]
    assert len(sure) == 2
    objective = Objective(cross=0.4, pseudo=0.6, confidence=confidence)
    with_them, guesses = scored(model, system, objective, batch)
    plain = without(model, system, objective, batch)

    plan, noise = planned(model, batch, system, objective)
    weighted, precision, _ = model.encode_all(batch)
    z_TBZ = model._fused(weighted, precision, plan.recipe).sample(noise)
    added = torch.zeros(())
    for row in sure:
        for term in np.flatnonzero(plan.weight_TB[:, row] > 0):
            chance = model.decoders["label"](z_TBZ[term, row][None]).log_softmax(1)[0, own[row][0]]
            added = added - 0.6 * 3.0 * float(plan.weight_TB[term, row]) * chance / len(batch)
    assert float(added.detach()) > 0.01
    torch.testing.assert_close(with_them.loss - plain.loss, added, atol=1e-5, rtol=1e-4)
    ours, theirs = gradients(model, with_them.loss), gradients(model, plain.loss + added)
    assert_close(ours, theirs, 1e-5)
    labels = dict(zip(guesses.told.rows_of["label"].tolist(), guesses.told.values["label"].tolist(), strict=True))
    known = dict(zip(batch.rows_of["label"].tolist(), batch.values["label"].tolist(), strict=True))
    assert labels == known | {row: label for row, (label, _) in own.items()}
    assert (float(with_them.sums["pseudo.label"]), float(with_them.counts["pseudo.label"])) == (2, 4)
    assert float(with_them.counts["pseudo.image"]) == 0


@pytest.mark.parametrize("system", USING)
def test_no_elbo_counts_them(system: str) -> None:
    model, batch = small_model(KINDS, 0, system), batch_of(KINDS, PRESENT)
    objective = Objective(k=2, pseudo=1.0, confidence=0.0)
    terms, _ = scored(model, system, objective, batch)
    plain = without(model, system, objective, batch)
    assert float((terms.loss - plain.loss).detach()) > 0.01
    for name in plain.sums.keys() - {"objective"}:
        torch.testing.assert_close(terms.sums[name], plain.sums[name])
        assert int(terms.counts[name]) == int(plain.counts[name])
    assert float(terms.sums["pseudo.label"]) == float(terms.counts["pseudo.label"]) == len(LACKING)
    gradients(model, terms.loss)  # fails for a parameter that takes no part


@pytest.mark.parametrize("system", USING)
def test_with_full_confidence_nothing_changes(system: str) -> None:
    """No probability is above 1."""
    model, batch = small_model(KINDS, 0, system), batch_of(KINDS, PRESENT)
    objective = Objective(k=1, pseudo=1.0, confidence=1.0)
    terms, _ = scored(model, system, objective, batch)
    plain = without(model, system, objective, batch)
    torch.testing.assert_close(terms.loss, plain.loss)
    assert_close(gradients(model, terms.loss), gradients(model, plain.loss))
    assert float(terms.sums["pseudo.label"]) == 0


def test_networks_run_once_for_the_guess_and_once_for_the_score() -> None:
    model, batch = small_model(KINDS), batch_of(KINDS, PRESENT)
    runs = counted(model)
    guess(model, batch, batch, 0.0)
    assert runs == Counter({"encoders.image": 1, "encoders.label": 1, "encoders.other": 1, "decoders.label": 1})
    scored(model, "mvae", Objective(pseudo=1.0, confidence=0.0), batch)
    assert set(runs.values()) == {3, 1}
    assert [runs[name] for name in ("encoders.label", "decoders.label", "decoders.image")] == [3, 3, 1]


def test_the_expert_of_the_label_never_sees_one() -> None:
    """Its input are the labels that rows show, and its gradient is what it is without pseudo-labels."""
    model, batch = small_model(KINDS), batch_of(KINDS, PRESENT)
    seen: list[list[int]] = []
    model.encoders["label"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].tolist()))
    learning: list[bool] = []
    model.encoders["image"].register_forward_pre_hook(lambda *_: learning.append(torch.is_grad_enabled()))
    objective = Objective(cross=0.5, pseudo=1.0, confidence=0.0)
    terms, _ = scored(model, "mvae", objective, batch)
    assert seen == [batch.values["label"].tolist()] * 2
    assert learning == [False, True]
    plain = gradients(model, without(model, "mvae", objective, batch).loss)
    found = gradients(model, terms.loss)
    assert_close(found, plain, prefix="encoders.label")
    assert float((found["decoders.label.2.weight"] - plain["decoders.label.2.weight"]).abs().max()) > 1e-4
    assert (found["encoders.image.heads.weight"] - plain["encoders.image.heads.weight"]).abs().max() > 1e-4


def test_pictures_are_guessed_as_they_are_and_scored_as_they_are_shown() -> None:
    model, batch = small_model(KINDS), batch_of(KINDS, PRESENT)
    shown = batch_of(KINDS, PRESENT, numbers=range(100, 108))
    shown.values["label"] = batch.values["label"]
    seen: list[Tensor] = []
    model.encoders["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    _, guesses = scored(model, "mvae", Objective(pseudo=1.0), batch, shown)
    assert torch.equal(seen[0], batch.values["image"])
    assert torch.equal(seen[1], shown.values["image"])
    assert guesses.told.values["image"] is shown.values["image"]
    own = own_labels(model, batch)
    assert guesses.told.values["label"].tolist()[1:4] == [own[row][0] for row in LACKING[:3]]


@pytest.mark.parametrize("present", [PRESENT, PRESENT[[0, 7]], PRESENT[[1, 3]], PRESENT[[5]], PRESENT[[4, 5]]])
def test_no_step_waits_for_the_device(present: np.ndarray) -> None:
    model = MultimodalVAE(KINDS, 5, SYSTEMS["mvae"].posterior(list(KINDS))).to("meta")
    terms, _ = scored(model, "mvae", Objective(pseudo=1.0), on_meta(present, KINDS))
    terms.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_settings() -> None:
    for change in ({"pseudo": -1.0}, {"confidence": 1.1}, {"confidence": -0.1}):
        with pytest.raises(UserError, match=r"objective\.(pseudo|confidence) is -?\d"):
            Objective(**change)
    assert USING == ["mvae", "mvae-moe", "mvae-q", "vaevae-a", "vaevae-b", "vaevae-star", "svae", "svae-star"]


# In training


def a_pseudo_run(data: Path, **changes: Any) -> Run:
    """Half of the rows get a label from the first step on; halves of digits are moved a little."""
    moved = {f"modalities.{name}.shift": 1.0 for name in ("top", "bottom")}
    return a_run(data, **moved, **{"objective.pseudo": 1.0, "objective.confidence": 0.11, **changes})


def steps(
    run: Run, first: int, last: int, present_BM: np.ndarray | None = None, state: Any = None, labels: str = ""
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """On every rank: losses, shares of pseudo-labels, and the whole state. `labels`: read the rows from there."""
    world = distributed.start("cpu", 1)
    with building(run, world):
        model = build(run)
    engine, losses, shares = Engine(model, run, world, state), [], []
    collate = Collator([open_manifest(labels or run.data)], run.modalities)
    for step in range(first, last):
        batch = collate(rows_for_rank(global_rows(run, step, present_BM), world.rank, world.size))
        terms = _score(engine, model, run, batch, step, world)
        losses.append(world.sum([float(terms.loss.detach())])[0] / world.size)
        shares.append(world.sum([float(terms.sums.get("pseudo.label", 0))])[0])
        engine.step(terms.loss)
    return losses, shares, whole(engine)


@pytest.mark.parametrize(("stage", "system"), [(0, "mvae"), (3, "mvae"), (2, "svae"), (1, "mvae-moe")])
def test_two_ranks_train_like_one(ranks: Ranks, digits_dir: Path, stage: int, system: str) -> None:
    """Rank 0 has images only and asks for labels, rank 1 labels only."""
    changes = {"model.system": system}
    losses, shares, state = steps(a_pseudo_run(digits_dir, **changes), 0, 4, APART)
    assert min(shares) > 0
    for mine in ranks.run(steps, a_pseudo_run(digits_dir, **changes, **{"engine.zero_stage": stage}), 0, 4, APART):
        assert mine[0] == pytest.approx(losses, rel=1e-5)
        assert mine[1] == shares
        for name in (name for name in state if name.startswith("model.")):
            torch.testing.assert_close(mine[2][name], state[name], rtol=1e-4, atol=2e-6)


def test_what_networks_see_in_training(digits_dir: Path) -> None:
    """The label's expert: shown labels only, twice; a picture's: first as it is, then as it is moved."""
    world = distributed.start("cpu", 1)
    run = a_pseudo_run(digits_dir)
    model = build(run)
    seen: dict[str, list[Tensor]] = {"top": [], "label": []}
    for name, inputs in seen.items():
        model.encoders[name].register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0].clone()))
    engine, collate = Engine(model, run, world), Collator([open_manifest(run.data)], run.modalities)
    present = APART.copy()
    present[:2] = True
    batch = collate(global_rows(run, 0, present))
    terms = _score(engine, model, run, batch, 0, world)
    assert float(terms.counts["pseudo.label"]) == ROWS // 2 - 2
    assert [one.tolist() for one in seen["label"]] == [batch.values["label"].tolist()] * 2
    plain, moved = (one.view_as(batch.values["top"]) for one in seen["top"])
    assert torch.equal(plain, batch.values["top"])
    assert torch.equal(moved, augment(batch, run.modalities, run.seed).values["top"])
    assert not torch.equal(plain, moved)


def test_a_resumed_run_goes_on_bit_for_bit(digits_dir: Path) -> None:
    run = a_pseudo_run(digits_dir)
    whole, head = steps(run, 0, 6), steps(run, 0, 3)
    tail = steps(run, 3, 6, state=head[2])
    assert head[0] + tail[0] == whole[0]
    assert all(torch.equal(tail[2][name], whole[2][name]) for name in whole[2])
    assert sum(whole[1]) > 0


def test_hidden_labels_are_read_nowhere(digits_dir: Path, tmp_path: Path) -> None:
    """The same data with other labels wherever a row does not show them: the same training, bit for bit."""
    run = a_pseudo_run(digits_dir)
    hidden = np.repeat([[True, True, True], [True, True, False]], ROWS // 2, axis=0)  # two of three lack the label
    manifest = open_manifest(digits_dir)
    shown = {key for step in range(4) for key in manifest.keys(global_rows(run, step).sample_B[hidden[:, 2]])}

    def load(entry: Entry) -> dict[str, np.ndarray]:
        values = digits.load(entry)
        if entry.key not in shown:
            values["label"] = np.asarray((values["label"] + 3) % 10)
        return values

    write(tmp_path / "other", replace(digits.DIGITS, load=load), 2**24, 1)
    losses, shares, state = steps(run, 0, 4, hidden)
    other = steps(run, 0, 4, hidden, labels=str(tmp_path / "other"))
    assert min(shares) > 0
    assert (other[0], other[1]) == (losses, shares)
    assert all(torch.equal(other[2][name], state[name]) for name in state)
    everything = np.ones_like(hidden)  # where rows do show them, the labels are others
    assert steps(run, 0, 1, everything)[0] != steps(run, 0, 1, everything, labels=str(tmp_path / "other"))[0]


def test_a_system_without_terms_for_them_says_so_and_trains_as_without(digits_dir: Path) -> None:
    plain = {"objective.k": 0, "objective.cross": 0.0, "model.system": "mopoe"}
    run = a_pseudo_run(digits_dir, **plain)
    assert remark(run) == "model.system = mopoe makes no use of objective.pseudo, objective.confidence"
    without_them = a_pseudo_run(digits_dir, **plain, **{"objective.pseudo": 0.0})
    assert steps(run, 0, 2)[:2] == steps(without_them, 0, 2)[:2]
