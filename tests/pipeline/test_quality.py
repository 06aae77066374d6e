"""SSIM, PSNR and Fréchet distances by hand, by libraries, and of models whose pictures are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from infra import distributed
from modalities import AnyModality, Image, Label
from pipeline.config import Run
from pipeline.evaluate import quality
from pipeline.evaluate.quality import (
    comparisons,
    picture_quality,
    psnr,
    ssim,
)
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.settings import Model
from tests.pipeline.batches import LATENT, small_model
from tests.pipeline.painters import (
    PICTURES,
    ROWS,
    WORLD,
    blurred,
    ignoring,
    painter,
    pairs,
    pixels,
)
from tests.ranks import Ranks

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


# Of a split


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of pictures with labels; every seventh row lacks b."""
    return pairs(tmp_path_factory.mktemp("pictures") / "data")


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
    assert some[:5] == ["a b", "a c", "a d", "a e", "a f"]
    assert some[5:11] == ["b a", "c a", "d a", "e a", "f a", "a b+c+d+e+f"]
    assert len(some) == 5 + 5 + 6
    assert some[-1] == "f a+b+c+d+e"
    assert asked(dict.fromkeys("ab", small)) == ["a b", "b a"]
    three = dict.fromkeys("abc", small)
    assert asked(three) == ["a b", "a c", "b a", "c a", "a b+c", "b a+c", "c a+b"]
    assert asked(three, "cvae") == ["a b+c"]
    assert asked({"a": small, "l": Label(3)}, "cvae") == []
    assert asked({"l": Label(3), "a": small}, "jmvae") == ["a a"]
    assert asked(three, "jmvae") == ["a b", "a c", "b a", "c a"]  # has no posterior of two of three
    assert asked({"l": Label(3)}) == []


# Ranks


def qualities(data: str, batch: int) -> dict[str, Scored]:
    """On every rank."""
    subject = painter(Path(data), pixels, distributed.start("cpu", 1), batch)
    return picture_quality(subject)


def test_ranks_and_batches_change_nothing(data: Path, ranks: Ranks) -> None:
    subject = painter(data)
    one = picture_quality(subject)
    for batch in (4, 64):
        for found in ranks.run(qualities, str(data), batch):
            assert list(found) == list(one)
            for name, score in one.items():
                assert found[name].count == score.count
                assert (found[name].value, found[name].error) == pytest.approx((score.value, score.error), rel=1e-5)
