"""What is made agrees with what is given, differs from z to z, and follows the distributions that it is said to."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from infra.errors import UserError
from modalities import AnyModality, Features, Image
from modalities.text import END
from pipeline import generating
from pipeline.completing import completed
from pipeline.config import Run
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.generating import generate, tempered
from pipeline.model import MultimodalVAE
from pipeline.packaging import Packaged
from pipeline.pictures.generated import lines, sheet
from pipeline.settings import Model
from pipeline.train import build
from tests.pipeline.drawn import KINDS, panels

VALUES = {
    "label": np.asarray(2), "traits": np.array([0, 1, 1], np.float32), "numbers": np.arange(5, dtype=np.float32),
    "string": np.array([3, 4, 0, 0]), "says": np.array([4, 3, 0, 0, 0]),
}  # fmt: skip


@cache
def model_of(*names: str, system: str = "mvae", **others: AnyModality) -> MultimodalVAE:
    """An untrained model."""
    kinds = {name: KINDS[name] for name in names} | others
    model = build(Run("toy", "", kinds, seed=2, model=Model(4, system=system))).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # initial networks hardly look at what they are given
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def test_pictures_of_a_class_are_of_that_class(trained_digits: Packaged) -> None:
    """Judged by a classifier that has seen real digits only: right for 10 % by chance."""
    raw = load_digits()
    oracle = LogisticRegression(max_iter=200).fit(raw.data / 16, raw.target)
    right = []
    for label in range(10):
        made = generate(trained_digits.model, {"label": np.asarray(label)}, ["top", "bottom"], 8)
        pictures = np.concatenate([made["top"], made["bottom"]], 1).reshape(8, 64)
        right += (oracle.predict(pictures) == label).tolist()
    assert np.mean(right) > 0.4


def test_the_class_of_a_picture_is_told(trained_digits: Packaged) -> None:
    raw, right = load_digits(), []
    for image, label in zip(raw.images[:100] / 16, raw.target, strict=False):
        halves = {"top": image[:4].astype(np.float32), "bottom": image[4:].astype(np.float32)}
        right.append(int(generate(trained_digits.model, halves, ["label"], 1, temperature=0)["label"][0]) == label)
    assert np.mean(right) > 0.7


def test_samples_of_the_prior_differ_from_each_other_and_make_one_picture_at_temperature_0(
    trained_digits: Packaged,
) -> None:
    names = list(trained_digits.run.modalities)
    made = generate(trained_digits.model, {}, names, 8)["top"]
    apart = np.abs(made[:, None] - made[None]).max((2, 3))
    assert apart[~np.eye(8, dtype=bool)].min() > 0.05
    still = generate(trained_digits.model, {}, names, 8, temperature=0)["top"]
    np.testing.assert_allclose(still, np.broadcast_to(still[0], still.shape), atol=1e-6)
    nothing = completed(trained_digits.model, {name: [None] for name in names})["top"][0]  # at the mean of the prior
    np.testing.assert_allclose(still[0], nothing, atol=1e-6)


def test_a_seed_makes_the_same_again_and_another_seed_something_else(
    trained_digits: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"label": np.asarray(3)}
    for sample in (False, True):
        first = generate(trained_digits.model, given, ["top"], 8, sample=sample, seed=1)["top"]
        assert np.array_equal(first, generate(trained_digits.model, given, ["top"], 8, sample=sample, seed=1)["top"])
        assert not np.array_equal(
            first, generate(trained_digits.model, given, ["top"], 8, sample=sample, seed=2)["top"]
        )
        assert len({one.tobytes() for one in first}) == 8
    four = generate(trained_digits.model, given, ["top"], 4, seed=1)["top"]
    whole = generate(trained_digits.model, given, ["top"], 8, seed=1)["top"]
    np.testing.assert_allclose(four, whole[:4], atol=1e-6)
    monkeypatch.setattr(generating, "TOGETHER", 3)
    np.testing.assert_allclose(generate(trained_digits.model, given, ["top"], 8, seed=1)["top"], whole, atol=1e-6)


def test_the_temperature_scales_what_z_has_beside_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    mu, log = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 4, generator=generator)
    weight = torch.tensor([0.2, 0.5, 0.3])[:, None].expand(3, 5)
    noise = torch.randn(50, 5, 5, generator=generator)
    for source in (Gaussian(mu[0], log[0]), Laplace(mu[0], log[0]), Mixture(Gaussian(mu, log), weight)):
        own = noise if isinstance(source, Mixture) else noise[..., :4]
        one, some, none = (tempered(source, temperature).sample(own) for temperature in (1, 0.3, 0))
        torch.testing.assert_close(one, source.sample(own))
        torch.testing.assert_close(some, none + 0.3 * (one - none))
        means = {tuple(z) for z in none[:, 0].tolist()}
        assert means == (
            {tuple(z) for z in mu[:, 0].tolist()} if isinstance(source, Mixture) else {tuple(mu[0, 0].tolist())}
        )


SAMPLED: dict[str, AnyModality] = {
    "grey": Image(4, 6, hidden=(8,)),
    "soft": Image(4, 6, hidden=(8,), likelihood="gaussian", scale=0.2),
    "sharp": Image(4, 6, hidden=(8,), likelihood="laplace", scale=0.1),
    "numbers": Features(5, hidden=(8,), likelihood="gaussian", scale=3.0),
    "traits": KINDS["traits"],
}


@pytest.mark.parametrize("name", list(SAMPLED))
def test_samples_of_p_have_its_mean_and_its_spread(name: str) -> None:
    """At one z: 4,000 draws."""
    model, modality = model_of("label", **SAMPLED), SAMPLED[name]
    given = {"label": np.asarray(1)}
    mean = generate(model, given, [name], 1, temperature=0)[name][0]
    drawn = generate(model, given, [name], 4000, temperature=0, sample=True)[name]
    scale = getattr(modality, "scale", 1.0)
    likelihood = modality.likelihood  # type: ignore[union-attr]
    of_scale = {"gaussian": scale, "laplace": np.sqrt(2) * scale}
    spread = np.sqrt(mean * (1 - mean)) if likelihood == "bernoulli" else of_scale[likelihood]
    np.testing.assert_allclose(drawn.mean(0), mean, atol=6 * float(np.max(spread)) / np.sqrt(4000))
    np.testing.assert_allclose(drawn.std(0), np.broadcast_to(spread, mean.shape), rtol=0.15, atol=0.02)
    if likelihood == "bernoulli":
        assert set(np.unique(drawn)) <= {0.0, 1.0}
    flat = drawn.reshape(4000, -1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1])).max() < 0.12, "elements are independent"


def test_classes_are_drawn_as_often_as_they_are_likely() -> None:
    model = model_of("label", "traits")
    given = {"traits": VALUES["traits"]}
    drawn = generate(model, given, ["label"], 4000, temperature=0, sample=True)["label"]
    batch = generating.batch_of(model.modalities, {"label": [None], "traits": [VALUES["traits"]]})
    with torch.no_grad():
        likely = model.decode("label", model.posterior(batch).mu, batch).softmax(1)[0].numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, likely, atol=0.04)
    assert likely.std() > 0.02


@pytest.mark.parametrize("name", ["string", "caption"])
def test_drawn_texts_are_texts_and_differ(name: str) -> None:
    model = model_of("label", "string", "caption")
    drawn = generate(model, {"label": np.asarray(1)}, [name], 50, temperature=0, sample=True)[name]
    assert drawn.shape == (50, *KINDS[name].shape)
    assert len({one.tobytes() for one in drawn}) > 5
    for text in drawn:
        assert (text[np.argmax(text == END) :] == END).all() or END not in text
    likeliest = generate(model, {"label": np.asarray(1)}, [name], 5, temperature=0)[name]
    assert len({one.tobytes() for one in likeliest}) == 1


@pytest.mark.parametrize("system", ["mvae-moe", "mmvae", "mopoe", "svae", "vaevae-b"])
@pytest.mark.parametrize("given", [("label",), ("label", "traits"), ()])
def test_every_system_makes_any_modality_of_any(system: str, given: tuple[str, ...]) -> None:
    model = model_of("label", "traits", "numbers", system=system)
    made = generate(model, {name: VALUES[name] for name in given}, ["numbers", "label"], 6)
    assert len({one.tobytes() for one in made["numbers"]}) == 6
    assert made["label"].shape == (6,)


def test_a_mean_at_temperature_0_is_what_a_row_is_completed_with() -> None:
    model = model_of("label", "traits", "numbers")
    made = generate(model, {"label": VALUES["label"]}, ["numbers", "traits", "label"], 2, temperature=0)
    whole = completed(model, {"label": [VALUES["label"]], "traits": [None], "numbers": [None]})
    for name in ("numbers", "traits"):
        np.testing.assert_allclose(made[name][0], whole[name][0], atol=1e-6)


def test_a_conditional_model_s_words_see_what_is_given() -> None:
    model = model_of("says", "label", system="cvae")
    for sample in (False, True):
        made = [
            generate(model, {"label": np.asarray(label)}, ["says"], 40, sample=sample)["says"].tobytes()
            for label in range(4)
        ]
        assert len(set(made)) > 1


@pytest.mark.parametrize(
    ("system", "given", "wanted", "words"),
    [
        ("jmvae", ("label", "traits"), ["numbers"], "makes no numbers from label, traits alone: give one of them"),
        ("cvae", ("traits",), ["label"], "makes no label from traits alone: it needs traits, numbers"),
        ("cvae", (), ["label"], "makes no label from nothing alone: it needs traits, numbers"),
        ("cvae", ("traits", "numbers"), ["traits"], "makes no traits from traits, numbers"),
    ],
)  # fmt: skip
def test_what_a_system_does_not_make_is_refused(
    system: str, given: tuple[str, ...], wanted: list[str], words: str
) -> None:
    model = model_of("label", "traits", "numbers", system=system)
    with pytest.raises(UserError, match=words):
        generate(model, {name: VALUES[name] for name in given}, wanted, 2)


def test_a_page_shows_what_was_given_and_made(trained_digits: Packaged) -> None:
    given = {"bottom": np.full((4, 8), 0.5, np.float32), "label": np.asarray(3)}
    made = generate(trained_digits.model, given, ["top", "label"], 10)
    page = sheet(trained_digits, given, made)
    assert page
    assert page.title == "digits, mvae: made of bottom and label “3”"
    found = panels(page)
    assert list(found) == ["given: top + bottom", "top + bottom"]
    tiles = [tile for row in found["top + bottom"].rows for tile in row]
    assert [len(row) for row in found["top + bottom"].rows] == [8, 2]
    assert [tile.words for tile in tiles] == [str(label) for label in made["label"]]
    for row, tile in enumerate(tiles):
        assert tile.pixels is not None
        np.testing.assert_array_equal(tile.pixels[:4, :, 0], made["top"][row])
        np.testing.assert_array_equal(tile.pixels[4:, :, 0], given["bottom"])
    assert lines(trained_digits, made) == [f"label: {label}" for label in made["label"]]
    assert sheet(trained_digits, given, {"label": made["label"]}) is None
    assert lines(trained_digits, {"top": made["top"]}) == []


def test_texts_and_attributes_stand_below_the_pictures() -> None:
    names = ("photo", "traits", "label")
    run = Run("toy", "", {name: KINDS[name] for name in names}, model=Model(4))
    files = {"traits.names.json": b'["old", "red", "big"]', "label.names.json": b'["ant", "bee", "cat", "dog"]'}
    packaged = Packaged(run, build(run).eval(), {}, {}, files)
    made = {"photo": np.full((2, 3, 8, 8), 0.5, np.float32), "traits": np.array([[0, 1, 1], [0.2, 0, 0.7]])}
    page = sheet(packaged, {"label": np.asarray(2)}, made)
    assert page
    assert page.title == "toy, mvae: made of label “cat”"
    assert page.notes == ["From the left:", "1  traits: red, big", "2  traits: big"]
    assert lines(packaged, made) == ["traits: red, big", "traits: big"]
