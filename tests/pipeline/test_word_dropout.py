"""Sentences in a model: decoders that read what they score, and which of its words training hides from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from infra import distributed
from modalities import Label, Modality, Sentences, Text, recurrent
from modalities.text import END
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.engine import Engine
from pipeline.evaluate import metric_names
from pipeline.evaluate.importance import log_likelihood
from pipeline.evaluate.tokens import tokens_per_text
from pipeline.model import MultimodalVAE
from pipeline.noise import normal, uniform
from pipeline.objectives.systems import SYSTEMS, joint_of
from pipeline.order import seed_of
from pipeline.settings import Engine as EngineSettings
from pipeline.settings import Model, Objective, Training
from pipeline.train import _score, build
from tests.pipeline.batches import LATENT, assert_close, gradients, score
from tests.ranks import Ranks

EN = Sentences(12, 6, embedding=8, hidden=9, word_dropout=0.4)
VI = Sentences(15, 8, embedding=7, hidden=9, network="gru", word_dropout=0.4)
CUB = Sentences(12, 8, embedding=32, network="cnn")
TWO: dict[str, Modality] = {"en": EN, "vi": VI}
ROWS = 8


def sentence(modality: Sentences, row: int) -> np.ndarray:
    rng = np.random.default_rng(row)
    tokens = rng.integers(3, modality.vocabulary, modality.length)
    tokens[rng.integers(modality.length) :] = END
    return tokens


def a_batch(modalities: dict[str, Any], present_BM: Any, numbers: Sequence[int]) -> Batch:
    present, values, rows_of = np.asarray(present_BM, bool), {}, {}
    for column, (name, modality) in enumerate(modalities.items()):
        rows_of[name] = np.flatnonzero(present[:, column])
        there = [sentence(modality, numbers[row]) for row in rows_of[name]]
        values[name] = torch.from_numpy(np.stack(there or [np.zeros(modality.shape, np.int64)]))
    weight = torch.from_numpy(present.any(1).astype(np.float32))
    return Batch(values, rows_of, present, weight, torch.tensor(numbers), [str(number) for number in numbers])


def whole(numbers: Sequence[int]) -> Batch:
    return a_batch(TWO, np.ones((len(numbers), 2)), numbers)


def a_model(modalities: dict[str, Modality] = TWO, system: str = "mvae") -> MultimodalVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultimodalVAE(modalities, LATENT, SYSTEMS[system].posterior(list(modalities)))


def given(model: MultimodalVAE, batch: Batch, **settings: Any) -> dict[str, list[Tensor]]:
    """What every decoder is called with when this batch is scored."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: list(inputs)}))
        for name, network in model.decoders.items()
    ]
    score(model, batch, Objective(samples=2), len(batch), **settings)
    for hook in hooks:
        hook.remove()
    return seen


# The numbers


def test_the_numbers_are_uniform_and_apart() -> None:
    first = normal(0, "train", torch.arange(500), 4, 3)[..., 0].flatten()
    drawn = uniform(first, "en", 30).double()
    assert drawn.shape == (2000, 30)
    assert 0 <= float(drawn.min()) < 1e-3 < 0.999 < float(drawn.max()) < 1
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 1e-3
    assert float((torch.corrcoef(drawn.T) - torch.eye(30)).abs().max()) < 5.5 / 2000**0.5
    rows = drawn[:500].T
    for lag in (1, 7):
        assert abs(float(torch.corrcoef(torch.stack([rows[:, lag:].flatten(), rows[:, :-lag].flatten()]))[0, 1])) < 0.04
    with_noise = torch.corrcoef(torch.stack([first.double(), drawn[:, 0]]))[0, 1]
    assert abs(float(with_noise)) < 4.5 / 2000**0.5
    assert not (drawn == uniform(first, "vi", 30)).any()
    assert torch.equal(uniform(first[7:9], "en", 12).double(), drawn[7:9, :12])


def test_fixed_for_ever() -> None:
    """SplitMix64 of the normal number's bits. Another formula would mean that a run cannot be continued."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    golden = 0x9E3779B97F4A7C15
    for number in (0.0, 1.5, -0.3, 4e-9):
        bits = int(np.float32(number).view(np.int32))
        key = mix((bits * golden + seed_of("uniform", "en")) % 2**64)
        expected = [(mix((key + (place + 1) * golden) % 2**64) >> 40) / 2**24 for place in range(4)]
        assert uniform(torch.tensor([number]), "en", 4)[0].tolist() == expected


# What decoders are given


def test_a_decoder_reads_the_values_of_its_pairs() -> None:
    """Row 0 has both and so two single terms and a joint one; the others have one term each."""
    model, batch = a_model(), a_batch(TWO, [[1, 1], [1, 0], [0, 1], [0, 0]], [5, 6, 7, 8])
    z, en, hidden = given(model, batch)["en"]
    assert z.shape == (3, LATENT)
    assert en.tolist() == [sentence(EN, number).tolist() for number in (5, 6, 5)]
    assert hidden.shape == en.shape
    assert given(model, batch)["vi"][1].tolist() == [sentence(VI, number).tolist() for number in (5, 7, 5)]


def test_training_hides_words_by_chance_and_evaluation_none() -> None:
    model, batch = a_model(), whole(range(400))
    hidden = given(model, batch)["en"][2]
    assert float((hidden < 0.4).float().mean()) == pytest.approx(0.4, abs=4.5 * (0.24 / hidden.numel()) ** 0.5)
    other = given(model, batch)["vi"][2]
    assert not (hidden == other[:, :6]).any()  # each language has numbers of its own
    model.eval()
    assert [len(inputs) for inputs in given(model, batch).values()] == [2, 2]
    model.train()
    seen: list[int] = []
    model.decoders["en"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs)))
    log_likelihood(model, whole(range(3)), frozenset(TWO), frozenset(TWO), samples=2)
    assert seen == [2]


@pytest.mark.parametrize("system", ["mvae", "mmvae"])
def test_what_is_hidden_hangs_on_seed_step_row_and_term_alone(system: str) -> None:
    model = a_model(system=system)

    def of(numbers: Sequence[int], seed: int = 0) -> Tensor:
        """Of every row: (rows, terms, places)."""
        found = given(model, whole(numbers), seed=seed, system=system)["en"][2]
        return found.view(-1, len(numbers), EN.length).transpose(0, 1)

    one = of(range(16, 24))
    assert one.shape == (8, 2 if system == "mvae" else 4, 6)  # joint and alone; two samples of each expert
    assert len(one.unique()) > 0.999 * one.numel()  # and so other numbers for every row, term and place
    halves = torch.cat([of(range(16, 20)), of(range(20, 24))])
    assert torch.equal(halves, one)
    order = [19, 16, 23, 17]
    assert torch.equal(of(order), one[[number - 16 for number in order]])
    for other in (of(range(24, 32)), of(range(16, 24), seed=1)):  # the next step, another run
        assert not (other == one).any()


def test_padded_rows_change_nothing() -> None:
    """Compiled networks run on multiples of so many rows."""
    batch = a_batch(TWO, [[1, 1], [1, 0], [0, 1]], [5, 6, 7])
    model, padded = a_model(), a_model()
    padded.bucket = 4
    assert [len(one) for one in given(padded, batch)["en"]] == [4, 4, 4]
    ours, theirs = (score(one, batch, Objective(), 3) for one in (model, padded))
    torch.testing.assert_close(ours.row_objective_B, theirs.row_objective_B)
    assert_close(gradients(padded, theirs.loss), gradients(model, ours.loss))


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_rank_without_sentences_runs_the_decoder_on_one_that_is_empty(bad: float) -> None:
    model, batch = a_model(), a_batch(TWO, [[1, 0], [1, 0]], [1, 2])
    assert [one.shape for one in given(model, batch)["vi"]] == [(1, LATENT), (1, 8), (1, 8)]
    assert not given(model, batch)["vi"][1].any()
    model.decoders["vi"].register_forward_hook(lambda _, __, scores: scores + bad)
    terms = score(model, batch, Objective(), 2)
    for name, gradient in gradients(model, terms.loss).items():  # fails for a parameter that takes no part
        assert gradient.isfinite().all()
        assert bool((gradient == 0).all()) == (".vi." in name), name


def test_the_score_is_the_decoders_own() -> None:
    """log p(x|z) of every row and term, from the decoder called by hand with what it was given."""
    model, batch = a_model(), whole(range(5))
    plan = joint_of(Run("toy", "data", TWO), batch.present_BM)  # type: ignore[arg-type]
    noise = plan.noise(0, "train", batch.row_B, LATENT)
    scores = model(batch, plan, noise)
    posterior = model.posterior(batch)
    z = posterior.sample(noise[0])  # type: ignore[union-attr]
    for column, (name, modality) in enumerate(TWO.items()):
        hidden = uniform(noise[0, :, 0], name, modality.shape[0])
        expected = modality.log_likelihood(model.decoders[name](z, batch.values[name], hidden), batch.values[name])
        torch.testing.assert_close(scores.log_likelihood_TBM[0, :, column], expected)
        written = modality.mean(model.decode(name, z, batch))
        assert torch.equal(written, model.decoders[name].write(z))
        assert written.shape == batch.values[name].shape


# Measures


def test_tokens_per_text() -> None:
    """Ends counted once; rows that weigh nothing, and rows without a text, not at all."""
    kinds = {"en": EN, "digits": Text(12, 5), "tag": Label(3), "vi": VI}
    run = Run("toy", "data", kinds)  # type: ignore[arg-type]
    assert [name for name in metric_names(run, "val") if "tokens" in name] == [
        "val/tokens.en", "val/tokens.digits", "val/tokens.vi",
    ]  # fmt: skip
    values = {
        "en": torch.tensor([[3, 4, 5, 6, 7, 0], [0] * 6, [3, 0, 0, 0, 0, 0]]),
        "digits": torch.tensor([[4, 0, 0, 0, 0]]),
        "tag": torch.tensor([1]),
        "vi": torch.zeros(1, 8, dtype=torch.int64),
    }
    rows_of = {"en": np.array([0, 1, 3]), "digits": np.array([2]), "tag": np.array([0]), "vi": np.array([], np.int64)}
    present = np.zeros((4, 4), bool)
    batch = Batch(values, rows_of, present, torch.tensor([1.0, 1, 1, 0]), torch.arange(4), list("abcd"))
    model = a_model()
    told = tokens_per_text(model, model, run, batch)
    assert {name: rows.nan_to_num(-1).tolist() for name, rows in told.items()} == {
        "tokens.en": [6, 1, -1, 2], "tokens.digits": [-1, -1, 2, -1], "tokens.vi": [-1] * 4
    }  # fmt: skip


# Training


@pytest.mark.parametrize(
    ("kind", "rate"), [(replace(EN, hidden=32), 0.01), (replace(VI, hidden=32), 0.01), (CUB, 0.002)]
)
def test_two_languages_are_learnt(kind: Sentences, rate: float) -> None:
    """A handful of pairs by heart: far better than words by chance, and each written from the other."""
    kinds: dict[str, Any] = {"one": replace(kind, word_dropout=0.0 if kind is CUB else 0.2), "other": kind}
    model, numbers = a_model(kinds), range(6)
    batch = a_batch(kinds, np.ones((6, 2)), numbers)
    adam = torch.optim.Adam(model.parameters(), rate)
    losses = []
    for step in range(120):
        rows = replace(batch, row_B=batch.row_B + 6 * step)
        loss = score(model, rows, Objective(), 6, beta=0.01).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 4
    model.eval()
    for given_, wanted in (("one", "other"), ("other", "one")):
        shown = batch.only(frozenset([given_]))
        written = kinds[wanted].mean(model.decode(wanted, model.posterior(shown).mu, shown))
        assert float((written == batch.values[wanted]).float().mean()) > 0.9


PRESENT = [np.repeat([[1, 0], [0, 1]], ROWS // 2, axis=0), np.array([[1, 1], [1, 0], [0, 0], [1, 1]] * 2)]
"""Languages apart on two ranks; mixed."""


def rank_gradients(run: Run) -> list[dict[str, Tensor]]:
    """Whole gradients of steps that this rank shares with another."""
    from deepspeed.utils import safe_get_full_grad

    world = distributed.start("cpu", 1)
    model = build(run)
    engine, found = Engine(model, run, world), []
    share = ROWS // world.size
    with patch.object(recurrent, "LOGITS", 100):  # 8 places of English at a time, 6 of Vietnamese
        for step, present in enumerate(PRESENT):
            mine = slice(world.rank * share, (world.rank + 1) * share)
            batch = a_batch(run.modalities, present[mine], range(ROWS * step, ROWS * (step + 1))[mine])
            engine.module.backward(_score(engine, model, run, batch, step, world).loss)
            found.append({name: safe_get_full_grad(one).float().clone() for name, one in engine._named()})
            engine.module.step()
    return found


@pytest.mark.parametrize("stage", [0, 3])
def test_gradients_on_two_ranks_are_those_of_one_process(ranks: Ranks, stage: int) -> None:
    """With words hidden and logits made in parts, with whole parameters and with partitioned ones."""
    run = Run(
        "toy", "data", TWO, model=Model(LATENT), train=Training(batch=ROWS),  # type: ignore[arg-type]
        engine=EngineSettings(device="cpu", threads=1, zero_stage=stage),
    )  # fmt: skip
    model = build(run)
    adam = torch.optim.Adam(model.parameters(), run.optim.lr, run.optim.betas)
    both = ranks.run(rank_gradients, run)
    for step, present in enumerate(PRESENT):
        batch = a_batch(TWO, present, range(ROWS * step, ROWS * (step + 1)))
        loss = score(model, batch, run.objective, ROWS, step=step, seed=run.seed).loss
        expected = gradients(model, loss)
        for mine in both:
            assert_close({name: one.double() for name, one in mine[step].items()}, expected, 2e-5)
        adam.zero_grad()
        score(model, batch, run.objective, ROWS, step=step, seed=run.seed).loss.backward()
        adam.step()
