"""Fréchet distances in closed form, by scipy, and of models whose pictures are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from infra import distributed
from modalities import AnyModality, Image
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.evaluate import frechet as study
from pipeline.evaluate.frechet import (
    efficientnet,
    frechet,
    frechet_distance,
    penultimate,
    prior_samples,
)
from pipeline.evaluate.oracle import Oracle
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.systems import family_of
from pipeline.settings import Examine, Model
from pipeline.train import build
from pipeline.writing import write
from tests.pipeline.painters import PICTURES, RNG, ROWS, SHAPE, WORLD, Shows, painter, pairs, pixels, unchanged
from tests.pipeline.tiny import given
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of pictures with labels; every seventh row lacks b."""
    return pairs(tmp_path_factory.mktemp("pictures") / "data")


def rows_with(mean: np.ndarray, covariance: np.ndarray, count: int = 400) -> np.ndarray:
    """Rows that have exactly these moments."""
    rows = RNG.normal(size=(count, len(mean)))
    white = np.linalg.solve(np.linalg.cholesky(np.atleast_2d(np.cov(rows, rowvar=False))), (rows - rows.mean(0)).T).T
    return white @ np.linalg.cholesky(covariance).T + mean


def some_covariance(size: int) -> np.ndarray:
    factor = RNG.normal(size=(size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


def test_frechet_distance_of_two_gaussians_in_closed_form() -> None:
    """Of independent features: Σ (μ - m)² + (σ - s)²; of one feature too."""
    mean, other = RNG.normal(size=5), RNG.normal(size=5)
    deviation, others = RNG.random(5) + 0.1, RNG.random(5) + 0.1
    expected = np.square(mean - other).sum() + np.square(deviation - others).sum()
    found = frechet_distance(rows_with(mean, np.diag(deviation**2)), rows_with(other, np.diag(others**2), 300))
    assert found == pytest.approx(expected, rel=1e-9)
    one, two = rows_with(mean[:1], np.eye(1)), rows_with(other[:1], 4 * np.eye(1))
    assert frechet_distance(one, two) == pytest.approx((mean[0] - other[0]) ** 2 + 1, rel=1e-9)


def test_frechet_distance_of_any_gaussians_by_scipy() -> None:
    mean, other, one, two = RNG.normal(size=6), RNG.normal(size=6), some_covariance(6), some_covariance(6)
    expected = np.square(mean - other).sum() + np.trace(one + two - 2 * sqrtm(one @ two).real)
    rows, others = rows_with(mean, one), rows_with(other, two)
    assert frechet_distance(rows, others) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(others, rows) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_rows_than_features() -> None:
    rows = RNG.normal(size=(20, 64))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 0.5) == pytest.approx(64 * 0.25, rel=1e-9)
    assert frechet_distance(rows, 3 * (rows - rows.mean(0)) + rows.mean(0)) == pytest.approx(
        4 * np.trace(np.cov(rows, rowvar=False)), rel=1e-9
    )


def test_frechet_distance_of_few_rows_and_many() -> None:
    few, many = RNG.normal(size=(20, 64)), RNG.normal(size=(100, 64)) + 0.5
    one, two = (np.cov(rows, rowvar=False) for rows in (few, many))
    common = np.sqrt(np.linalg.eigvals(one @ two).real.clip(0)).sum()
    expected = np.square(few.mean(0) - many.mean(0)).sum() + np.trace(one + two) - 2 * common
    assert frechet_distance(few, many) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(many, few) == pytest.approx(expected, rel=1e-5)


ONE: dict[str, tuple[str, ...]] = {"a": ("a",)}
EACH: dict[str, tuple[str, ...]] = {"a": ("a",), "b": ("b",)}
STRIPS: dict[str, tuple[str, ...]] = {"parts": ("a", "b")}


def corner(pictures: Tensor) -> Tensor:
    """The logits of four pixels, which are normal numbers in samples from the prior."""
    return pictures.flatten(1)[:, :4].logit(1e-6)


def test_samples_of_the_prior_are_compared_with_all_real_pictures(data: Path) -> None:
    found = frechet(painter(data), corner, "corner", EACH)
    assert list(found) == ["frechet.corner/a", "frechet.corner/b"]
    made = normal(2, "frechet", torch.arange(ROWS), 1, math.prod(SHAPE))[0, :, :4].numpy()
    for name in ("a", "b"):
        there = [row for row in range(ROWS) if name == "a" or row % 7]
        real = corner(torch.from_numpy(np.stack(PICTURES[name])).float() / 255).numpy()
        one = found[f"frechet.corner/{name}"]
        assert one.value == pytest.approx(frechet_distance(real[there], made[there]), rel=1e-3)
        assert one.count == len(there)
        assert 0 < one.error < one.value


def four(pictures: Tensor) -> Tensor:
    """The logits of two pixels of the upper strip, and of the same of the lower one."""
    return pictures[:, [0, 0, 8, 8], [0, 1, 0, 1]].logit(1e-6)


def test_strips_are_joined_and_all_are_made_of_one_z(data: Path) -> None:
    """Both decoders show z as it is: in the samples the strips are the same, in the data they are not."""
    found = frechet(painter(data), four, "c", STRIPS)
    assert list(found) == ["frechet.c/parts"]
    there = [row for row in range(ROWS) if row % 7]
    made = normal(2, "frechet", torch.arange(ROWS), 1, math.prod(SHAPE))[0, there][:, [0, 1, 0, 1]].numpy()
    whole = np.concatenate([np.stack(PICTURES["a"]), np.stack(PICTURES["b"])], 1)[there]
    real = four(torch.from_numpy(whole).float() / 255).numpy()
    one = found["frechet.c/parts"]
    assert one.value == pytest.approx(frechet_distance(real, made), rel=1e-3)
    assert one.count == len(there)
    assert 0 < one.error < one.value


def test_a_model_of_the_pictures_is_nearer_than_one_that_is_not(data: Path) -> None:
    """One that shows pixels with the real ones' moments, and one that shows a grey of always the same level."""
    real = corner(torch.from_numpy(np.stack(PICTURES["a"])).float() / 255)
    good, bad = painter(data), painter(data)
    good.model.decoders["a"] = Shows(lambda z: z * real.std() + real.mean())
    bad.model.decoders["a"] = Shows(lambda z: 0 * z + 2)
    near, far = (frechet(subject, corner, "c", ONE)["frechet.c/a"] for subject in (good, bad))
    assert near.value + 3 * near.error < far.value


def test_laplace_priors_are_sampled_from(data: Path) -> None:
    subject = painter(data)
    run = replace(subject.run, model=Model(math.prod(SHAPE), system="mmvae"))
    model = MultimodalVAE(run.modalities, run.model.latent, family_of(run)).eval()
    for name in ("a", "b"):
        model.decoders[name] = Shows(unchanged)
    found = frechet(replace(subject, run=run, model=model), corner, "c", ONE)["frechet.c/a"]
    z = model.prior(WORLD.device).sample(normal(2, "frechet", torch.arange(ROWS), 1, math.prod(SHAPE)))[0]
    real = corner(torch.from_numpy(np.stack(PICTURES["a"])).float() / 255)
    assert found.value == pytest.approx(frechet_distance(real.numpy(), z[:, :4].detach().numpy()), rel=1e-3)


def test_where_there_is_no_distance(data: Path) -> None:
    subject = painter(data)
    assert frechet(subject, corner, "c", {}) == {}
    assert list(frechet(replace(subject, few=2), corner, "c", EACH)) == ["frechet.c/a"]  # of b one row is left
    run = replace(subject.run, model=Model(4, system="cvae"))
    cvae = MultimodalVAE(run.modalities, 4, family_of(run)).eval()
    assert frechet(replace(subject, run=run, model=cvae), corner, "c", EACH) == {}


def test_the_error_of_many_features_is_that_of_few(data: Path) -> None:
    """Four features that are there 150 times, each as much smaller, are as far apart: with the same error."""

    def many(pictures: Tensor) -> Tensor:
        return corner(pictures).repeat(1, 150) / math.sqrt(150)

    few, wide = (frechet(painter(data), features, "c", ONE)["frechet.c/a"] for features in (corner, many))
    assert (wide.value, wide.error) == pytest.approx((few.value, few.error), rel=1e-4)
    assert wide.error > 0


def test_features_of_a_pretrained_network() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    from pipeline.corpora.extractors import extract

    levels = (255 * RNG.random((2, 3, 16, 20))).astype(np.uint8)
    found = efficientnet(torch.from_numpy(levels.astype(np.float32) / 255))
    assert found.shape == (2, 1280)
    np.testing.assert_array_equal(found[1], extract("efficientnet-lite0", "", levels[1].transpose(1, 2, 0)))
    grey = torch.from_numpy(levels[:1, 0].astype(np.float32) / 255)
    torch.testing.assert_close(efficientnet(grey), efficientnet(grey[:, None].repeat(1, 3, 1, 1)))


# The study that every evaluation has


def judge(strips: int = 1) -> Oracle:
    """Of 8 x 9 pictures, or of several below each other, by hand: what its last layer sees are the last four pixels."""
    pixels = strips * math.prod(SHAPE)
    seen = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 4, bias=False), nn.Linear(4, 3))
    with torch.no_grad():
        seen[1].weight.copy_(torch.eye(pixels)[-4:])
    return Oracle(seen, {})


def test_pictures_that_an_oracle_judges_are_compared_in_its_features(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "oracles", lambda subject: {"a": judge(), "b": judge()})
    subject = painter(data)
    found = prior_samples(subject)
    assert found == frechet(subject, penultimate(judge()), "oracle", EACH)
    assert list(found) == ["frechet.oracle/a", "frechet.oracle/b"]
    by_hand = frechet(subject, lambda pictures: pictures.flatten(1)[:, -4:], "oracle", ONE)
    assert found["frechet.oracle/a"].value == pytest.approx(by_hand["frechet.oracle/a"].value, rel=1e-6)


def test_the_picture_that_strips_make_is_compared_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the features of its oracle, the only one that there is of such data."""
    monkeypatch.setattr(study, "oracles", lambda subject: {"parts": judge(2)})
    subject = painter(data)
    subject = replace(subject, run=replace(subject.run, examine=Examine(parts=("a", "b"))))
    found = prior_samples(subject)
    assert list(found) == ["frechet.oracle/parts"]
    lower = frechet(subject, lambda pictures: pictures[:, 8:].flatten(1)[:, -4:], "oracle", STRIPS)
    assert found["frechet.oracle/parts"].value == pytest.approx(lower["frechet.oracle/parts"].value, rel=1e-6)
    assert found["frechet.oracle/parts"].count == sum(row % 7 > 0 for row in range(ROWS))


def test_strips_that_are_judged_together_are_not_compared_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[str, AnyModality] = {name: Image(4, 4, channels=3, hidden=(3,)) for name in ("one", "two")}
    rows = [Entry(f"k{row}", "test", {name: np.zeros((4, 4, 3)) for name in kinds}) for row in range(3)]
    write(tmp_path / "data", given("toy", kinds, rows))
    run = Run("toy", str(tmp_path / "data"), kinds, model=Model(2), examine=Examine(parts=("one", "two")))
    network = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    monkeypatch.setattr(study, "oracles", lambda subject: {"parts": Oracle(network, {})})
    found = prior_samples(Subject(build(run).eval(), run, open_manifest(run.data), "test", WORLD))
    assert list(found) == ["frechet.oracle/parts"]


def test_other_pictures_in_colours_are_compared_in_the_features_of_efficientnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    kinds: dict[str, AnyModality] = {"photo": Image(4, 4, channels=3, hidden=(3,)), "grey": Image(4, 4, hidden=(3,))}
    levels = {"photo": (4, 4, 3), "grey": (4, 4)}  # a file's colours come last
    rows = [
        Entry(f"k{row}", "test", {name: np.rint(255 * RNG.random(shape)) for name, shape in levels.items()})
        for row in range(6)
    ]
    write(tmp_path / "data", given("toy", kinds, rows))
    run = Run("toy", str(tmp_path / "data"), kinds, model=Model(2))
    subject = Subject(build(run).eval(), run, open_manifest(run.data), "test", WORLD)
    monkeypatch.setattr(study, "SOME", 5)
    found = prior_samples(subject)
    assert [(name, score.count) for name, score in found.items()] == [("frechet.efficientnet-lite0/photo", 5)]
    assert found == frechet(replace(subject, few=5), efficientnet, "efficientnet-lite0", {"photo": ("photo",)})


def test_a_system_without_samples_of_the_prior_needs_no_oracle(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "oracles", lambda subject: pytest.fail("trained for nothing"))
    subject = painter(data)
    run = replace(subject.run, model=Model(4, system="cvae"))
    assert prior_samples(replace(subject, run=run, model=build(run).eval())) == {}


# Ranks


def distances(data: str, batch: int) -> dict[str, Scored]:
    """On every rank."""
    subject = painter(Path(data), pixels, distributed.start("cpu", 1), batch)
    return frechet(subject, corner, "corner", EACH | STRIPS)


def test_ranks_and_batches_change_nothing(data: Path, ranks: Ranks) -> None:
    subject = painter(data)
    one = frechet(subject, corner, "corner", EACH | STRIPS)
    for batch in (4, 64):
        for found in ranks.run(distances, str(data), batch):
            assert list(found) == list(one)
            for name, score in one.items():
                assert found[name].count == score.count
                assert (found[name].value, found[name].error) == pytest.approx((score.value, score.error), rel=1e-5)
