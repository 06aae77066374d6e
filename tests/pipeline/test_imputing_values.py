"""What is made of a row, and how sure the model is of it, against plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalities import Attributes, Image, Label, Sentences, Text
from modalities.text import ended
from pipeline.completing import batch_of, completed
from pipeline.config import Run
from pipeline.imputing.settings import Settings
from pipeline.imputing.values import _told, made, storable
from pipeline.settings import Model
from tests.pipeline.imputed import KINDS, NAMES, Trained, has, lively, marks, members, value
from tests.pipeline.test_resuming import tree


def test_a_row_is_what_the_model_says_of_it_alone(trained: Trained, source: Path, tmp_path: Path) -> None:
    """Against a plain loop over the samples of z, one row at a time."""
    trained.impute(source, tmp_path / "out", samples=5, seed=4)
    after, count = members(tmp_path / "out"), 0
    found = {(mark["key"], mark["modality"]): mark for mark in marks(tmp_path / "out")}
    for number in range(40):
        key, held = f"train/{number:04d}", has(number)
        lacking = [name for name in NAMES if name not in held]
        if not held or not lacking:
            continue
        first = {n: v[0] if isinstance(v, list) else v for n, v in ((n, value(n, number)) for n in held)}
        columns = {n: [KINDS[n].decode([KINDS[n].encode(first[n])])[0] if n in held else None] for n in NAMES}
        batch = replace(batch_of(KINDS, columns), row_B=torch.tensor([number]))
        needs = {name: np.array([0]) for name in lacking}
        one, variance = made(trained.model, batch, needs, Settings(samples=5, seed=4))
        for name in lacking:
            decoded = KINDS[name].decode(after[key][name])[0]
            expected = KINDS[name].decode([KINDS[name].encode(storable(KINDS[name], one[name].values)[0])])[0]
            np.testing.assert_allclose(decoded, expected, atol=1e-5 if name != "image" else 1 / 16)
            assert found[key, name]["spread"] == pytest.approx(one[name].spread[0], abs=1e-4)
            assert found[key, name]["log_weight_variance"] == pytest.approx(variance[0], rel=1e-3, abs=1e-4)
            count += 1
    assert count > 50


def test_values_are_what_the_samples_of_z_say_together() -> None:
    """Against the model's own posterior and decoders, and a softmax in float64."""
    model = lively(Run("toy", "", KINDS, model=Model(4)))
    held = [KINDS["image"].decode([KINDS["image"].encode(value("image", n))])[0] for n in range(6)]
    columns: Any = {name: held if name == "image" else [None] * 6 for name in NAMES}
    batch, rows, count = batch_of(KINDS, columns), np.array([1, 4]), 400
    settings = Settings(samples=count)
    found, variance = made(model, batch, dict.fromkeys(NAMES[1:], rows), settings)
    torch.manual_seed(0)
    with torch.no_grad():
        posterior = model.posterior(batch)
        z = posterior.sample(torch.randn(4000, 6, 4))
        flat = z[:, rows].flatten(0, 1)
        logits = model.decode("label", flat, batch).view(4000, 2, 5).double()
        chance = torch.exp(logits - logits.logsumexp(2, keepdim=True)).mean(0).numpy()
        tags = torch.sigmoid(model.decode("tags", flat, batch)).view(4000, 2, 3).mean(0).numpy()
        numbers = model.decode("numbers", flat, batch).view(4000, 2, 3).numpy()
        likely = KINDS["image"].log_likelihood(
            model.decode("image", z.flatten(0, 1), batch), batch.values["image"].repeat(4000, 1, 1)
        )
        standard, normal = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal
        own = normal(posterior.mu, (0.5 * posterior.logvar).exp())
        weights = likely.view(4000, 6) + standard.log_prob(z).sum(2) - own.log_prob(z).sum(2)
    np.testing.assert_allclose(found["label"].spread, 1 - chance.max(1), atol=0.03)
    np.testing.assert_array_equal(found["label"].values, chance.argmax(1))
    np.testing.assert_allclose(found["tags"].values, tags, atol=0.03)
    np.testing.assert_allclose(found["tags"].spread, (1 - np.maximum(tags, 1 - tags)).mean(1), atol=0.03)
    np.testing.assert_allclose(found["numbers"].values, numbers.mean(0), atol=0.2)
    deviation = numbers.std(0).mean(1)
    np.testing.assert_allclose(found["numbers"].spread, deviation / (1 + deviation), rtol=0.1)
    np.testing.assert_allclose(variance, weights.var(0).numpy(), rtol=0.4)


def test_the_spread_of_pictures_and_texts() -> None:
    picture = Image(height=1, width=2)
    logits = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[-2.0, 0.0]]]).flatten(0, 1)
    values, spread = _told(picture, logits, 3, None)
    levels = torch.sigmoid(logits)[:, 0].numpy()
    np.testing.assert_allclose(values, [[[levels.mean(), 0.5]]], rtol=1e-6)
    np.testing.assert_allclose(spread, [levels.std(ddof=1) / 2], rtol=1e-6)
    said = torch.tensor([[[4, 0]], [[5, 0]], [[5, 0]], [[6, 0]]]).flatten(0, 1)
    sentence = Sentences(vocabulary=9, length=2, embedding=4, hidden=4)
    values, spread = _told(sentence, said, 4, None)
    assert values.tolist() == [[5, 0]]
    assert spread.tolist() == [0.5]
    assert _told(sentence, said, 4, torch.tensor([[0.5, 0.5]]))[0].tolist() == [[4, 0]]
    words = Text(vocabulary=5, length=2, embedding=4, hidden=4)
    likely = torch.nn.functional.one_hot(torch.tensor([[[2, 0]], [[3, 0]]]), 5).float().mul(9).flatten(0, 1)
    drawn = _told(words, likely, 2, torch.tensor([[0.5, 0.5]]))[0]
    assert drawn.tolist() == ended(torch.tensor([[2, 0]])).tolist()
    assert _told(words, likely, 2, None)[1].tolist() == [0.5]


def test_a_drawn_class_follows_the_first_sample_of_z() -> None:
    chance = np.array([0.1, 0.6, 0.3])
    logits = torch.from_numpy(np.log(np.stack([chance, chance[::-1].copy()]))).float()[:, None].expand(2, 2000, 3)
    number = torch.linspace(0, 0.9999, 2000)[:, None]
    drawn, spread = _told(Label(3), logits.flatten(0, 1), 2, number)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 2000, chance, atol=0.002)
    np.testing.assert_allclose(spread, np.full(2000, 0.4), atol=1e-6)
    logits = torch.logit(torch.tensor([0.3, 0.9]))[:, None, None].expand(2, 2000, 1)
    applies, _ = _told(Attributes(1), logits.flatten(0, 1), 2, number)
    assert float(applies.mean()) == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize("kind", [Image(2, 3, levels=16), Image(2, 3, channels=3), Image(2, 3, codec="png")])
def test_pictures_are_stored_as_they_were_read(kind: Image) -> None:
    shape = (2, 3) if kind.channels == 1 else (2, 3, 3)
    pixels = np.random.default_rng(0).integers(0, kind.levels + 1, shape)
    np.testing.assert_array_equal(storable(kind, kind.decode([kind.encode(pixels)]))[0], pixels)


def test_a_text_that_does_not_end_is_cut() -> None:
    text = Text(vocabulary=9, length=4, embedding=4, hidden=4)
    told = {(6, 2, 6, 2): [6, 2, 6, 0], (1, 5, 1, 0): [5, 0, 0, 0], (4, 0, 3, 3): [4, 0, 0, 0], (0, 0, 0, 0): [0] * 4}
    for said, stored in told.items():
        assert storable(text, np.array([said])).tolist() == [stored]
        text.encode(storable(text, np.array([said]))[0])


def test_the_mean_is_near_what_one_z_says(trained: Trained, source: Path, tmp_path: Path) -> None:
    """Numbers from the mean of z (`completed`) lie within a few deviations of what the samples say."""
    trained.impute(source, tmp_path / "out", samples=16)
    after, near = members(tmp_path / "out"), []
    for mark in marks(tmp_path / "out"):
        if mark["modality"] == "numbers":
            held = has(int(mark["key"][-4:]))
            first = {n: after[mark["key"]][n][:1] for n in held}
            whole = completed(trained.model, {n: [KINDS[n].decode(first[n])[0] if n in held else None] for n in NAMES})
            deviation = mark["spread"] / (1 - mark["spread"])
            apart = KINDS["numbers"].decode(after[mark["key"]]["numbers"])[0] - whole["numbers"][0]
            near.append(np.abs(apart).mean() < 2 * deviation + 1e-6)
    assert np.mean(near) > 0.95


@pytest.mark.parametrize("value_", ["mean", "sample"])
def test_samples_differ_from_means_and_hang_on_the_seed(
    trained: Trained, source: Path, tmp_path: Path, value_: str
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained.impute(source, tmp_path / name, value=value_, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    a, c = members(tmp_path / "a"), members(tmp_path / "c")
    apart = [
        a[m["key"]][m["modality"]] != c[m["key"]][m["modality"]]
        for m in marks(tmp_path / "a")
        if m["modality"] == "label"
    ]
    assert np.mean(apart) > 0.3 if value_ == "sample" else np.mean(apart) < 0.3
