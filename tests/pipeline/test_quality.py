"""SSIM, PSNR and Fréchet distances by hand, by libraries, and of models whose pictures are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from infra import distributed
from infra.distributed import World
from modalities import AnyModality, Image, Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.evaluate import quality
from pipeline.evaluate.quality import (
    comparisons,
    efficientnet,
    frechet,
    frechet_distance,
    picture_quality,
    psnr,
    ssim,
)
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.systems import family_of
from pipeline.settings import Model, Training
from pipeline.writing import write
from tests.pipeline.batches import LATENT, small_model
from tests.pipeline.tiny import given
from tests.ranks import Ranks

WORLD = World(0, 1, 0, torch.device("cpu"))
RNG = np.random.default_rng(5)


def blurred(*shape: int) -> np.ndarray:
    """A random picture with some structure."""
    noise = RNG.random(shape)
    return ((noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2)) / 3).astype(np.float32)


# Of two pictures


def test_ssim_of_one_window_by_hand() -> None:
    """A picture of 11x11 pixels holds one window (Wang et al. 2004, eq. 13-16)."""
    x, y = blurred(11, 11).astype(np.float64), blurred(11, 11).astype(np.float64)
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    both = (weights * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert ssim(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(28, 28), (14, 28), (3, 32, 40), (11, 12)])
def test_ssim_is_scikit_image_s(shape: tuple[int, ...]) -> None:
    """With its own choice of a window for the Gaussian; of colours the mean of the planes."""
    x, y = blurred(*shape), blurred(*shape)
    planes = [(x, y)] if x.ndim == 2 else list(zip(x, y, strict=True))
    scores = [
        structural_similarity(
            one, other, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for one, other in planes
    ]  # fmt: skip
    assert ssim(x, y) == pytest.approx(np.mean(scores), abs=1e-6)
    assert ssim(x, x) == pytest.approx(1)
    assert ssim(x, 1 - x) < ssim(x, y) < 1


@pytest.mark.parametrize("shape", [(4, 8), (3, 2, 9), (1, 5), (9, 28), (10, 10)])
def test_ssim_of_pictures_smaller_than_its_window(shape: tuple[int, ...]) -> None:
    x, y = blurred(*shape), blurred(*shape)
    assert ssim(x, x) == pytest.approx(1)
    assert -1 <= ssim(x, y) < 1
    assert ssim(x, y) < ssim(x, 0.9 * x + 0.1 * y)


def test_psnr_by_hand_and_by_scikit_image() -> None:
    x, y = blurred(3, 8, 9), blurred(3, 8, 9)
    assert psnr(np.zeros((2, 5)), np.full((2, 5), 0.1)) == pytest.approx(20)
    assert psnr(x, y) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0), rel=1e-5)
    assert psnr(x, x) == pytest.approx(100)


# A model whose pictures are known: z is the logit of every pixel

SHAPE = (8, 9)
KINDS: dict[str, AnyModality] = {
    "a": Image(*SHAPE, hidden=(3,)), "label": Label(3, hidden=(3, 3)), "b": Image(*SHAPE, hidden=(3,)),
}  # fmt: skip
ROWS = 30


class Sees(nn.Module):
    """An expert, sure of itself, whose mean is a function of the picture."""

    def __init__(self, answer: Callable[[Tensor], Tensor], sureness: float = 14.0) -> None:
        super().__init__()
        self.answer, self.sureness, self.nothing = answer, sureness, nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        said = self.answer(value).float() + self.nothing
        return said, torch.full_like(said, -self.sureness)


class Shows(nn.Module):
    """A decoder."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer, self.nothing = answer, nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        return self.answer(z) + self.nothing


def pixels(picture: Tensor) -> Tensor:
    return picture.flatten(1).logit(1e-6)


def ignoring(picture: Tensor) -> Tensor:
    return torch.zeros(len(picture), math.prod(SHAPE))


def unknowing(label: Tensor) -> Tensor:
    return torch.zeros(len(label), math.prod(SHAPE))


def unchanged(z: Tensor) -> Tensor:
    return z


PICTURES = {
    name: [np.rint(255 * np.clip(blurred(*SHAPE), 0.02, 0.98)) for _ in range(ROWS)] for name in ("a", "b")
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of pictures with labels; every seventh row lacks b."""
    rows = []
    for row in range(ROWS):
        values = {name: PICTURES[name][row] for name in ("a", "b")} | {"label": np.asarray(row % 3)}
        rows.append(Entry(f"k{row:02d}", "test", {n: v for n, v in values.items() if n != "b" or row % 7}))
    out = tmp_path_factory.mktemp("pictures") / "data"
    write(out, given("toy", KINDS, rows))
    return out


def painter(
    data: Path,
    looks: Callable[[Tensor], Tensor] = pixels,
    world: World = WORLD,
    batch: int = 7,
    names: str = "a label b",
) -> Subject:
    """A model that copies what it sees as `looks` says, and knows nothing of labels."""
    kinds = {name: KINDS[name] for name in names.split()}
    run = Run("toy", str(data), kinds, seed=2, model=Model(math.prod(SHAPE)), train=Training(batch=batch))
    model = MultimodalVAE(kinds, run.model.latent, family_of(run)).eval()
    for name, kind in kinds.items():
        seen = isinstance(kind, Image)
        model.encoders[name] = Sees(looks) if seen else Sees(unknowing, -60.0)
        if seen:
            model.decoders[name] = Shows(unchanged)
    return Subject(model, run, open_manifest(data), "test", world)


def test_pictures_are_compared_with_the_real_ones_of_their_rows(data: Path) -> None:
    """A model that shows a where b is asked for scores what a and b score; only rows count that have both."""
    found = picture_quality(painter(data))
    both = [row for row in range(ROWS) if row % 7]
    assert set(found) == {
        f"{kind}/{one}"
        for kind in ("ssim", "psnr")
        for one in ("a_given_b", "b_given_a", "a_given_label_b", "b_given_a_label")
    }
    for kind, measure in (("ssim", ssim), ("psnr", psnr)):
        scores = [measure(*(PICTURES[name][row].astype(np.float32) / 255 for name in ("a", "b"))) for row in both]
        for name in ("a_given_b", "b_given_a", "b_given_a_label"):
            one = found[f"{kind}/{name}"]
            assert one.value == pytest.approx(np.mean(scores), rel=1e-3)
            assert one.error == pytest.approx(np.std(scores, ddof=1) / math.sqrt(len(both)), rel=1e-2)
            assert one.count == len(both)


def test_runs_of_one_image_are_compared_with_their_reconstruction(data: Path) -> None:
    for names in ("a", "a label", "label a"):
        found = picture_quality(painter(data, names=names))
        assert list(found) == ["ssim/a_given_a", "psnr/a_given_a"]
        assert found["ssim/a_given_a"].value == pytest.approx(1, abs=1e-4)
        assert found["psnr/a_given_a"].value > 60
        assert found["ssim/a_given_a"].count == ROWS
    assert picture_quality(painter(data, names="label")) == {}


def test_a_model_that_ignores_its_input_is_worse(data: Path) -> None:
    sees, blind = (picture_quality(painter(data, looks, names="a label")) for looks in (pixels, ignoring))
    for name in ("ssim/a_given_a", "psnr/a_given_a"):
        assert blind[name].value < sees[name].value / 2


def test_only_some_rows_of_the_split_are_compared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "ROWS", 10)
    subject = painter(data)
    found = picture_quality(subject)
    compared = [r for r in np.arange(10) * ROWS // 10 if r % 7]  # every seventh lacks b
    assert {one.count for one in found.values()} == {len(compared)}
    scores = [
        ssim(PICTURES["a"][r].astype(np.float32) / 255, PICTURES["b"][r].astype(np.float32) / 255) for r in compared
    ]
    assert found["ssim/b_given_a"].value == pytest.approx(np.mean(scores), rel=1e-3)
    assert len(subject.manifest.split("test")) == ROWS  # the subject's own is as it was


def test_what_no_row_can_answer_is_left_out(data: Path) -> None:
    """The first row has no b."""
    assert picture_quality(replace(painter(data), few=1)) == {}


def asked(names: dict[str, AnyModality], system: str = "mvae") -> list[str]:
    run = Run("toy", "data", names, model=Model(LATENT, system=system))
    subject = Subject(small_model(names, system=system), run, None, "test", WORLD)  # type: ignore[arg-type]
    return [f"{wanted} {'+'.join(known)}" for wanted, known in comparisons(subject)]


def test_which_generations_are_compared() -> None:
    small = Image(2, 3, hidden=(4,))
    six = dict.fromkeys("abcdef", small)
    some = asked(six)
    assert len(some) == 4 + 6
    assert some[:5] == ["a b", "a c", "a d", "a e", "a b+c+d+e+f"]
    assert some[-1] == "f a+b+c+d+e"
    assert asked(dict.fromkeys("ab", small)) == ["a b", "b a"]
    three = dict.fromkeys("abc", small)
    assert asked(three) == ["a b", "a c", "b a", "c a", "a b+c", "b a+c", "c a+b"]
    assert asked(three, "cvae") == ["a b+c"]
    assert asked({"a": small, "l": Label(3)}, "cvae") == []
    assert asked({"l": Label(3), "a": small}, "jmvae") == ["a a"]
    assert asked(three, "jmvae") == ["a b", "a c", "b a", "c a"]  # has no posterior of two of three
    assert asked({"l": Label(3)}) == []


# Fréchet distances


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


def corner(pictures: Tensor) -> Tensor:
    """The logits of four pixels, which are normal numbers in samples from the prior."""
    return pictures.flatten(1)[:, :4].logit(1e-6)


def test_samples_of_the_prior_are_compared_with_all_real_pictures(data: Path) -> None:
    found = frechet(painter(data), corner, "corner")
    assert list(found) == ["frechet.corner/a", "frechet.corner/b"]
    made = normal(2, "frechet", torch.arange(ROWS), 1, math.prod(SHAPE))[0, :, :4].numpy()
    for name in ("a", "b"):
        there = [row for row in range(ROWS) if name == "a" or row % 7]
        real = corner(torch.from_numpy(np.stack(PICTURES[name])).float() / 255).numpy()
        one = found[f"frechet.corner/{name}"]
        assert one.value == pytest.approx(frechet_distance(real[there], made[there]), rel=1e-3)
        assert one.count == len(there)
        assert 0 < one.error < one.value


def test_a_model_of_the_pictures_is_nearer_than_one_that_is_not(data: Path) -> None:
    """One that shows pixels with the real ones' moments, and one that shows a grey of always the same level."""
    real = corner(torch.from_numpy(np.stack(PICTURES["a"])).float() / 255)
    good, bad = painter(data), painter(data)
    good.model.decoders["a"] = Shows(lambda z: z * real.std() + real.mean())
    bad.model.decoders["a"] = Shows(lambda z: 0 * z + 2)
    near, far = (frechet(subject, corner, "c", ["a"])["frechet.c/a"] for subject in (good, bad))
    assert near.value + 3 * near.error < far.value


def test_laplace_priors_are_sampled_from(data: Path) -> None:
    subject = painter(data)
    run = replace(subject.run, model=Model(math.prod(SHAPE), system="mmvae"))
    model = MultimodalVAE(run.modalities, run.model.latent, family_of(run)).eval()
    for name in ("a", "b"):
        model.decoders[name] = Shows(unchanged)
    found = frechet(replace(subject, run=run, model=model), corner, "c", ["a"])["frechet.c/a"]
    z = model.prior(WORLD.device).sample(normal(2, "frechet", torch.arange(ROWS), 1, math.prod(SHAPE)))[0]
    real = corner(torch.from_numpy(np.stack(PICTURES["a"])).float() / 255)
    assert found.value == pytest.approx(frechet_distance(real.numpy(), z[:, :4].detach().numpy()), rel=1e-3)


def test_where_there_is_no_distance_or_no_error_of_one(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = painter(data)
    assert frechet(subject, corner, "c", []) == {}
    assert frechet(painter(data, names="label"), corner, "c") == {}
    assert list(frechet(replace(subject, few=2), corner, "c")) == ["frechet.c/a"]  # of b one row is left
    run = replace(subject.run, model=Model(4, system="cvae"))
    cvae = MultimodalVAE(run.modalities, 4, family_of(run)).eval()
    assert frechet(replace(subject, run=run, model=cvae), corner, "c") == {}
    whole = frechet(subject, corner, "c")
    monkeypatch.setattr(quality, "WIDE", 3)
    for name, one in frechet(subject, corner, "c").items():
        assert (one.value, one.count) == (whole[name].value, whole[name].count)
        assert math.isnan(one.error)


def test_features_of_a_pretrained_network() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    from pipeline.corpora.extractors import extract

    levels = (255 * RNG.random((2, 3, 16, 20))).astype(np.uint8)
    found = efficientnet(torch.from_numpy(levels.astype(np.float32) / 255))
    assert found.shape == (2, 1280)
    np.testing.assert_array_equal(found[1], extract("efficientnet-lite0", "", levels[1].transpose(1, 2, 0)))
    grey = torch.from_numpy(levels[:1, 0].astype(np.float32) / 255)
    torch.testing.assert_close(efficientnet(grey), efficientnet(grey[:, None].repeat(1, 3, 1, 1)))


# Ranks


def studies(data: str, batch: int) -> dict[str, Scored]:
    """On every rank."""
    subject = painter(Path(data), pixels, distributed.start("cpu", 1), batch)
    return picture_quality(subject) | frechet(subject, corner, "corner")


def test_ranks_and_batches_change_nothing(data: Path, ranks: Ranks) -> None:
    subject = painter(data)
    one = picture_quality(subject) | frechet(subject, corner, "corner")
    for batch in (4, 64):
        for found in ranks.run(studies, str(data), batch):
            assert list(found) == list(one)
            for name, score in one.items():
                assert found[name].count == score.count
                assert (found[name].value, found[name].error) == pytest.approx((score.value, score.error), rel=1e-5)
