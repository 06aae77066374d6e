"""Pictures of a run: what is on which sheet, and that it shows the arrays which the model makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import UserError
from modalities import Attributes, Image
from pipeline.evaluate.subject import Subject
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.pictures import conditional, generations, prior, transformations, traversals
from pipeline.pictures.looks import coloured
from pipeline.pictures.made import batch_of, decoded, held, lacking, makes, mean_of, rows, samples_of
from pipeline.pictures.page import Panel
from tests.pipeline.drawn import KINDS, NAMES, make, panels, subject


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pictures") / "d")


def words(panel: Panel, row: int) -> list[str]:
    return [tile.words for tile in panel.rows[row]]


def same(picture: np.ndarray | None, other: np.ndarray | None) -> bool:
    return picture is not None and other is not None and np.array_equal(picture, other)


# Samples from the prior


def test_everything_is_decoded_of_the_same_sample_of_the_prior(data: Path) -> None:
    model = subject(data, "grey", "photo", "label", "caption")
    values = prior.samples(model)
    assert {name: np.shape(some) for name, some in values.items()} == {
        "grey": (64, 4, 6), "photo": (64, 3, 8, 8), "label": (64,), "caption": (64, 8)
    }  # fmt: skip
    page = prior.sheet(model)
    sheets = panels(page)
    assert list(sheets) == ["grey", "photo"]
    for name, panel in sheets.items():
        flat = [tile for row in panel.rows for tile in row]
        assert len(panel.rows) == len(panel.rows[0]) == 8
        for place in (0, 9, 63):
            assert same(flat[place].pixels, coloured(KINDS[name], values[name][place]))  # type: ignore[arg-type]
            assert flat[place].words == NAMES["label"][int(values["label"][place])]  # type: ignore[arg-type]
    assert page is not None
    assert len(page.notes) == 9
    assert page.notes[1].startswith("1  caption: ")


def test_the_prior_is_sampled_as_it_is_learnt(data: Path) -> None:
    model = subject(data, "grey", "photo", system="mmvae")
    before = prior.samples(model)
    assert model.model.prior_raw is not None
    with torch.no_grad():
        model.model.prior_raw[0] = 9.0  # nearly all of the scale is the first dimension's
    assert not np.allclose(prior.samples(model)["grey"][3], before["grey"][3])  # type: ignore[arg-type]


def test_seed_and_row_decide_about_samples(data: Path) -> None:
    one, again, other = (prior.samples(subject(data, "grey"))["grey"] for _ in range(3))
    assert np.array_equal(one, again)  # type: ignore[arg-type]
    first = subject(data, "grey")
    second = replace(first, run=replace(first.run, seed=1))  # the same weights, another seed of the noise
    assert not np.allclose(prior.samples(second)["grey"], other)  # type: ignore[arg-type]
    assert np.array_equal(prior.samples(first, 8)["grey"], one[:8]), "a row's noise does not hang on the others"


# Given one modality


def test_classes_make_different_pictures(data: Path) -> None:
    model = subject(data, "grey", "label")
    made = [np.asarray(values["grey"]) for values in conditional.samples(model, "label", np.arange(4), ["grey"])]
    assert np.shape(made) == (conditional.SAMPLES, 4, 4, 6)
    mean = np.mean(made, 0)
    assert min(np.abs(mean[a] - mean[b]).max() for a in range(4) for b in range(a)) > 1e-4
    assert np.abs(made[0] - made[1]).max() > 1e-4, "and each more than one"
    (panel,) = panels(conditional.sheet(model)).values()
    assert panel.title == "grey given label"
    assert list(panel.names) == NAMES["label"]
    assert [len(row) for row in panel.rows] == [conditional.SAMPLES] * 4
    assert same(panel.rows[2][1].pixels, coloured(Image(4, 6), made[1][2]))


@pytest.mark.parametrize("system", ["mvae", "mmvae"])
def test_samples_are_of_the_posterior(data: Path, system: str) -> None:
    model = subject(data, "grey", "label", system=system)
    batch = rows(model, 2, ["grey", "label"])
    z_KBZ = samples_of(model, batch, ["label"], 4000, "test").double()
    mean = mean_of(model, batch, ["label"])
    with torch.no_grad():
        posterior = model.model.posterior(batch.only(frozenset(["label"])))
    spread = posterior.components.map(lambda one: one[1]) if isinstance(posterior, Mixture) else posterior
    deviation = torch.exp(0.5 * spread.logvar) if isinstance(spread, Gaussian) else 2**0.5 * torch.exp(spread.logscale)
    assert torch.allclose(z_KBZ.mean(0).float(), mean, atol=5 * float(deviation.max()) / 4000**0.5)
    assert torch.allclose(z_KBZ.std(0).float(), deviation, rtol=0.15)
    drawn = conditional.samples(model, "label", np.arange(4), ["grey"])
    classes = batch_of(model, "label", np.arange(4))
    z_KBZ = samples_of(model, classes, ["label"], conditional.SAMPLES, "conditional")
    assert np.array_equal(drawn[3]["grey"], decoded(model, ["grey"], z_KBZ[3], classes)["grey"])  # type: ignore[arg-type]


def test_texts_and_attributes_are_those_of_rows_beside_their_pictures(data: Path) -> None:
    sheets = panels(conditional.sheet(subject(data, "photo", "traits", "string", "numbers")))
    assert list(sheets) == ["photo given traits", "photo given string"]
    traits = sheets["photo given traits"]
    assert sorted(traits.names) == ["red", "red, big"], "there are two different ones only"
    for name, row in zip(traits.names, traits.rows, strict=True):
        assert len(row) == 1 + conditional.SAMPLES
        assert row[0].pixels is not None
        assert row[0].pixels[0, 0, 0] == np.float32(250 / 255)
        assert round(row[0].pixels[0, 0, 1] * 255) % 2 == ("big" in name), "the picture is of the same row"
    assert list(traits.heads) == ["data", "samples"]
    strings = sheets["photo given string"]
    assert len(strings.rows) == len(set(strings.names)) == conditional.ROWS


def test_single_attributes_are_given_one_by_one(data: Path) -> None:
    parts = {name: Attributes(1, of="traits", first=n, among=3, hidden=(8,)) for n, name in enumerate(NAMES["traits"])}
    (panel,) = panels(conditional.sheet(subject(data, "grey", **parts))).values()
    assert panel.title == "grey given one attribute"
    assert list(panel.names) == NAMES["traits"]
    pictures = [row[0].pixels for row in panel.rows]
    assert not same(pictures[0], pictures[1])


# Subsets, and the variety of one


def test_what_is_made_of_a_subset_is_decoded_at_its_mean(data: Path) -> None:
    model = subject(data, "grey", "photo", "label")
    batch = rows(model, 20)
    made = generations.from_subsets(model, batch)
    assert list(made) == [
        "given grey", "given photo", "given label", "given grey+photo", "given grey+label", "given photo+label",
        "given grey+photo+label",
    ]  # fmt: skip
    gone = lacking(batch, ["photo"])
    assert 0 < gone.sum() < 20
    at_mean = decoded(model, ["grey"], mean_of(model, batch, ["photo"]), batch)["grey"]
    for row, one in enumerate(made["given photo"]["grey"]):
        assert one is None if gone[row] else same(one, at_mean[row])
    assert made["given photo"].keys() == {"grey", "photo", "label"}


def test_the_sheet_of_subsets_shows_data_first_and_marks_labels_that_differ(data: Path) -> None:
    model = subject(data, "grey", "photo", "label")
    page = generations.cross_generations(model)
    sheets = panels(page)
    batch = rows(model, generations.FEWER)
    real = [NAMES["label"][int(one)] for one in held(batch)["label"] if one is not None]
    for name in ("grey", "photo"):
        panel = sheets[name]
        assert list(panel.names)[:2] == ["data", "given grey"]
        assert words(panel, 0) == real
        assert same(panel.rows[0][0].pixels, coloured(KINDS[name], held(batch)[name][0]))  # type: ignore[arg-type]
        for row in panel.rows:
            for tile, truth in zip(row, real, strict=True):
                assert tile.colour == ("black" if tile.words in (truth, "") else "#d00000")
        assert any(tile.colour == "#d00000" for row in panel.rows for tile in row), "an untrained model errs"
    assert page is not None
    assert page.notes == ["red: differs from the data"]
    plain = generations.cross_generations(subject(data, "grey"))
    assert plain is not None
    assert not plain.notes


def test_samples_below_what_is_given(data: Path) -> None:
    model = subject(data, "grey", "photo", "label")
    page = generations.cross_samples(model)
    sheets = panels(page)
    assert list(sheets) == ["grey → grey", "grey → photo", "photo → grey", "photo → photo"]
    batch = rows(model, generations.INPUTS, ["photo"])
    drawn = generations.variety(model, batch, "photo", ["grey"])
    panel = sheets["photo → grey"]
    assert len(panel.rows) == 1 + generations.SAMPLES
    assert same(panel.rows[0][2].pixels, coloured(KINDS["photo"], held(batch)["photo"][2]))  # type: ignore[arg-type]
    for number, values in enumerate(drawn):
        assert same(panel.rows[1 + number][2].pixels, coloured(Image(4, 6), values["grey"][2]))
    assert np.abs(np.asarray(drawn[0]["grey"]) - np.asarray(drawn[1]["grey"])).max() > 1e-4


def test_of_a_given_part_the_other_is_pale(data: Path) -> None:
    made = subject(data, "grey", parts=("grey", "lower"), lower=KINDS["grey"])
    sheets = panels(generations.cross_samples(made))
    assert list(sheets) == ["grey → grey + lower", "lower → grey + lower"]
    top, bottom = (sheets[title].rows[0][0].pixels for title in sheets)
    assert top is not None
    assert bottom is not None
    assert top.shape == (8, 6, 3)
    assert (top[4:] > 0.8).all()
    assert (bottom[:4] > 0.8).all()
    assert same(top[:4], bottom[4:])
    assert (sheets["grey → grey + lower"].rows[1][0].pixels[4:] < 0.8).any(), "both are made"  # type: ignore[index]


# Pictures made of each other


def versions(data: Path) -> Subject:
    return subject(data, "photo", "grey", second=KINDS["grey"], third=KINDS["grey"])


def test_versions_of_a_picture_are_made_of_each_other(data: Path) -> None:
    model = versions(data)
    sheets = panels(transformations.sheet(model))
    assert list(sheets) == ["photo → everything", "each of the others → photo"]
    left, right = sheets.values()
    assert list(left.names) == ["photo, given", "made"] + [
        name for other in ("grey", "second", "third") for name in (f"{other}, real", "made")
    ]
    assert list(right.names) == ["photo, real"] + [
        name for other in ("grey", "second", "third") for name in (f"{other}, given", "photo, made")
    ]
    batch = rows(model, transformations.COLUMNS, list(model.run.modalities))
    data_of, of_photo = held(batch), generations.from_subset(model, batch, ["photo"])
    of_second = generations.from_subset(model, batch, ["second"])
    for column in (0, 5):
        assert same(left.rows[4][column].pixels, coloured(Image(4, 6), data_of["second"][column]))
        assert same(left.rows[5][column].pixels, coloured(Image(4, 6), of_photo["second"][column]))
        assert same(right.rows[4][column].pixels, coloured(KINDS["photo"], of_second["photo"][column]))  # type: ignore[arg-type]
    assert transformations.sheet(subject(data, "photo", "grey")) is None, "two pictures are no versions"
    assert generations.cross_samples(versions(data)) is None, "four pictures would be sixteen grids"


# Latent dimensions


KL = {"grey": np.array([0.1, 3.0, 0.0, 0.2]), "photo": np.array([0.0, 0.1, 0.0, 2.0]), "grey+photo": np.full(4, 9.0)}


def test_in_the_middle_of_a_traversal_stands_what_the_mean_makes(data: Path) -> None:
    for system in ("mvae", "mmvae"):
        model = subject(data, "grey", "photo", system=system)
        batch = rows(model, 1, ["grey", "photo"])
        made = traversals.moved(model, batch, ["grey"], [2, 0], ["grey", "photo"])
        assert made["photo"].shape == (2, 11, 3, 8, 8)
        mean = mean_of(model, batch, ["grey"])
        at_mean = decoded(model, ["grey", "photo"], mean, batch)
        for name in ("grey", "photo"):
            assert np.allclose(made[name][:, 5], at_mean[name], atol=1e-6)
            assert np.abs(made[name][0, 0] - made[name][0, 5]).max() > 1e-5
        step = model.model.prior(mean.device).deviation[0]
        shifted = mean.clone()
        shifted[0, 2] += 4 * step[2]
        assert np.allclose(made["photo"][0, 9], decoded(model, ["photo"], shifted, batch)["photo"], atol=1e-6)


def test_steps_are_standard_deviations_of_the_prior() -> None:
    logscale = torch.tensor([[0.3, -1.0]])
    laplace = torch.distributions.Laplace(torch.zeros(2), logscale[0].exp())
    assert torch.allclose(Laplace(torch.zeros(1, 2), logscale).deviation, laplace.stddev)
    normal = torch.distributions.Normal(torch.zeros(2), (0.5 * logscale[0]).exp())
    assert torch.allclose(Gaussian(torch.zeros(1, 2), logscale).deviation, normal.stddev)


def test_the_dimensions_that_say_most_of_any_one_modality_are_moved(data: Path) -> None:
    assert traversals.strongest(KL) == [1, 3, 0, 2]
    assert traversals.strongest(KL, 2) == [1, 3]
    assert len(traversals.strongest({"grey": np.arange(40.0)})) == 12
    sheets = panels(traversals.sheet(subject(data, "grey", "photo"), KL))
    assert list(sheets) == ["grey, from grey", "photo, from grey", "grey, from photo", "photo, from photo"]
    panel = sheets["photo, from grey"]
    assert list(panel.names) == ["z 1", "z 3", "z 0", "z 2"]
    assert [len(row) for row in panel.rows] == [11] * 4
    assert panel.heads[5] == "mean"
    assert same(panel.rows[0][5].pixels, panel.rows[3][5].pixels)


def test_divergences_of_another_run_are_refused_in_a_sentence(data: Path) -> None:
    model = subject(data, "grey", "photo")
    with pytest.raises(UserError, match=r"the KL of photo by latent dimension has shape \(3,\), and the model has 4"):
        traversals.sheet(model, {"grey": np.zeros(4), "photo": np.zeros(3)})
    with pytest.raises(UserError, match="need the KL of single modalities"):
        traversals.sheet(model, {"grey+photo": np.zeros(4)})


# Systems and runs that have less


def titles(model: Subject) -> dict[str, list[str]]:
    """The names of the rows of every sheet that is drawn."""
    sheets = {
        "prior": prior.sheet(model),
        "conditional": conditional.sheet(model),
        "subsets": generations.cross_generations(model),
        "cross": generations.cross_samples(model),
        "versions": transformations.sheet(model),
        "traversals": traversals.sheet(model, {name: np.arange(4.0) for name in model.run.modalities}),
    }
    return {name: [t for p in panels(page).values() for t in p.names] for name, page in sheets.items() if page}


def test_a_conditional_model_is_shown_with_its_conditions_only(data: Path) -> None:
    drawn = titles(subject(data, "grey", "label", system="cvae"))
    assert drawn == {"conditional": NAMES["label"], "subsets": ["data", "given label", "given grey+label"]}


def test_conditions_reach_the_decoder(data: Path) -> None:
    made = conditional.samples(subject(data, "grey", "label", system="cvae"), "label", np.arange(4), ["grey"])
    assert np.abs(np.asarray(made[0]["grey"][0]) - np.asarray(made[0]["grey"][1])).max() > 1e-4


def test_a_subset_without_a_network_has_no_row(data: Path) -> None:
    drawn = titles(subject(data, "grey", "photo", "label", system="jmvae"))
    rows_of = ["data", "given grey", "given photo", "given label", "given grey+photo+label"]
    assert drawn["subsets"] == [*rows_of, *rows_of]
    parts = subject(data, "grey", "label", parts=("grey", "lower"), lower=KINDS["grey"], system="telbo")
    assert "traversals" not in titles(parts), "of both halves without the label this system makes nothing"


def test_one_image_alone(data: Path) -> None:
    drawn = titles(subject(data, "grey", system="vae"))
    assert drawn.keys() == {"prior", "subsets", "cross", "traversals"}
    assert drawn["subsets"] == ["data", "given grey"]


def test_many_images_are_traversed_from_the_first(data: Path) -> None:
    sheets = panels(traversals.sheet(versions(data), {"photo": np.arange(4.0)}))
    assert list(sheets) == [f"{name}, from photo" for name in ("photo", "grey", "second", "third")]


@pytest.mark.parametrize("names", [["label", "traits"], ["numbers", "caption"]])
def test_without_images_nothing_is_drawn(data: Path, names: list[str]) -> None:
    assert titles(subject(data, *names)) == {}


def test_a_system_makes_what_it_says(data: Path) -> None:
    assert makes(subject(data, "grey", "photo", "label"), ["label"]) == ["grey", "photo", "label"]
    assert makes(subject(data, "grey", "label", system="cvae"), ["grey"]) == []
