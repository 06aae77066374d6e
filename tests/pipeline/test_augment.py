"""Augmented pictures against scipy, as a pure function of seed, row and modality, in training only."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from infra import distributed
from modalities import Image, Label
from pipeline.augment import augment, augmented
from pipeline.collate import Collator
from pipeline.engine import Engine
from pipeline.evaluate import evaluate
from pipeline.manifest import open_manifest
from pipeline.noise import normal, uniform
from pipeline.stream import rows_for_rank
from pipeline.train import _score, build
from tests.pipeline.batches import batch_of
from tests.pipeline.training import ROWS, a_run, global_rows
from tests.ranks import Ranks

SOME = {"shift": 2.0, "rotate": 20.0, "zoom": 0.2, "shear": 0.3}
GREY = Image(height=9, width=14, **SOME)
COLOUR = Image(height=12, width=7, channels=3, **SOME)


def pictures(image: Image, count: int) -> Tensor:
    """Smooth ones that differ everywhere, from 0 to 1."""
    noise = np.random.default_rng(0).random((count, *image.shape))
    smooth = ndimage.gaussian_filter(noise, [0] * (noise.ndim - 2) + [1, 1])
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()


def by_scipy(picture: np.ndarray, image: Image, drawn: list[float]) -> np.ndarray:
    """One plane (height, width): turned, sheared and scaled about its centre, then moved, one matrix after another."""
    turn, shear, zoom, right, down = drawn
    angle = math.radians(image.rotate * turn)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # of (y, x)
    slant = np.array([[1, 0], [image.shear * shear, 1]])
    matrix = rotation @ slant * (1 + image.zoom * zoom)
    centre = (np.array(picture.shape) - 1) / 2
    moved = image.shift * np.array([down, right])
    return ndimage.affine_transform(picture, matrix, centre - matrix @ centre + moved, order=1, mode="nearest")


@pytest.mark.parametrize("image", [GREY, COLOUR, *(replace(GREY, **{one: 0.0}) for one in SOME)])
def test_the_map_is_that_of_scipy(image: Image) -> None:
    rows, values = torch.arange(50, 58), pictures(image, 8)
    drawn = 2 * uniform(normal(3, "augment", rows, 1, 1)[0, :, 0], "picture", 5) - 1
    found = augmented(values, image, 3, "picture", rows).numpy()
    assert found.shape == values.shape
    for mapped, picture, numbers in zip(found, values.numpy(), drawn.tolist(), strict=True):
        planes = picture.reshape(-1, image.height, image.width)
        expected = np.stack([by_scipy(plane, image, numbers) for plane in planes]).reshape(picture.shape)
        np.testing.assert_allclose(mapped, expected, atol=1e-5)
        assert np.abs(mapped - picture).max() > 0.02


@pytest.mark.parametrize("setting", SOME)
def test_how_far_each_setting_goes(setting: str) -> None:
    """Of a spot off the centre: never further than the setting says, and evenly up to there."""
    side, off = 33, 8
    image = Image(height=side, width=side, **{setting: SOME[setting]})
    y, x = np.indices((side, side)) - side // 2
    spot = np.exp(-((y + off) ** 2 + x**2) / 4)
    count = 400
    mapped = augmented(torch.from_numpy(spot).float().repeat(count, 1, 1), image, 0, "spot", torch.arange(count))
    weight = mapped.double().numpy() / mapped.double().numpy().sum((1, 2), keepdims=True)
    right, up = (weight * x).sum((1, 2)), -(weight * y).sum((1, 2))
    moved = {
        "shift": right / image.shift if image.shift else 0,
        "rotate": np.degrees(np.arctan2(right, up)) / 20,
        "zoom": (off / up - 1) / 0.2,
        "shear": right / off / 0.3,
    }[setting]
    assert np.abs(moved).max() < 1.03
    assert stats.kstest(np.clip(moved, -1, 1), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_each_row_is_mapped_by_its_number_alone() -> None:
    values = pictures(GREY, 6)
    rows = torch.arange(100, 106)
    whole = augmented(values, GREY, 0, "a", rows)
    order = [4, 0, 5]
    torch.testing.assert_close(augmented(values[order], GREY, 0, "a", rows[order]), whole[order])
    for other in (
        augmented(values, GREY, 1, "a", rows),
        augmented(values, GREY, 0, "b", rows),
        augmented(values, GREY, 0, "a", rows + 6),
    ):
        assert ((other - whole).abs().flatten(1).max(1).values > 0.01).all()


@pytest.mark.parametrize("image", [GREY, COLOUR])
def test_levels_stay_from_0_to_1(image: Image) -> None:
    """White stays white, black black; of noise no level leaves the range."""
    rows = torch.arange(200)
    for level in (0.0, 1.0):
        plain = torch.full((200, *image.shape), level)
        torch.testing.assert_close(augmented(plain, image, 0, "a", rows), plain, atol=1e-6, rtol=0)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (200, *image.shape))).float()
    mapped = augmented(noise, image, 0, "a", rows)
    assert (float(mapped.min()), float(mapped.max())) == (0.0, pytest.approx(1.0, abs=0.05))
    assert ((mapped >= 0) & (mapped <= 1)).all()


def test_of_a_batch_only_pictures_that_ask_for_it() -> None:
    kinds = {"plain": Image(5, 6), "moved": Image(5, 6, shift=1.5), "label": Label(4), "none": Image(5, 6, zoom=0.5)}
    batch = batch_of(kinds, [[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]], numbers=[7, 8, 9])
    seen = augment(batch, kinds, 5)
    for name in ("plain", "label", "none"):  # of the last no row has anything: one zero row stands in
        assert torch.equal(seen.values[name], batch.values[name])
    expected = augmented(batch.values["moved"], kinds["moved"], 5, "moved", torch.tensor([8, 9]))
    assert torch.equal(seen.values["moved"], expected)
    assert not torch.isclose(expected, batch.values["moved"]).all()
    assert (seen.rows_of, seen.keys) == (batch.rows_of, batch.keys)


@pytest.mark.parametrize("change", [{"shift": -1}, {"rotate": -1}, {"zoom": -0.1}, {"shear": -1}, {"zoom": 1.0}])
def test_settings_that_mean_nothing(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shift, rotate, zoom and shear must not be negative, and zoom must be below"):
        Image(5, 6, **change)


# In training

MAPPED = {f"modalities.{name}.{key}": value for name in ("top", "bottom") for key, value in SOME.items()}


def losses(data: str, **changes: Any) -> list[float]:
    """On every rank: the losses of three steps of the global batch."""
    world = distributed.start("cpu", 1)
    run = a_run(Path(data), **MAPPED, **changes)
    model = build(run)
    engine, collate, told = Engine(model, run, world), Collator([open_manifest(run.data)], run.modalities), []
    micro = run.train.batch // world.size // run.engine.accumulate
    for step in range(3):
        refs = rows_for_rank(global_rows(run, step), world.rank, world.size)
        loss = 0.0
        for part in range(run.engine.accumulate):
            terms = _score(engine, model, run, collate(refs[part * micro : (part + 1) * micro]), step, world)
            engine.step(terms.loss)
            loss += float(terms.loss.detach()) / run.engine.accumulate
        told.append(world.sum([loss])[0] / world.size)
    return told


def in_halves(data: str) -> list[float]:
    return losses(data, **{"engine.accumulate": 2})


def test_the_same_on_two_ranks_in_micro_batches(ranks: Ranks, digits_dir: Path) -> None:
    one = losses(str(digits_dir))
    for mine in ranks.run(in_halves, str(digits_dir)):
        assert mine == pytest.approx(one, rel=1e-5)


def test_training_sees_mapped_pictures_and_validation_does_not(digits_dir: Path) -> None:
    world = distributed.start("cpu", 1)
    plain, mapped = a_run(digits_dir), a_run(digits_dir, **MAPPED)
    model, manifest = build(plain), open_manifest(digits_dir)
    seen: list[Tensor] = []
    model.encoders["top"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    found = [evaluate(model, model, run, manifest, "val", world) for run in (plain, mapped)]
    assert found[0] == found[1]
    seen.clear()
    engine = Engine(model, mapped, world)
    batch = Collator([manifest], mapped.modalities)(global_rows(mapped, 0, np.ones((ROWS, 3), bool)))
    _score(engine, model, mapped, batch, 0, world)
    rows = global_rows(mapped, 0).row_B
    expected = augmented(batch.values["top"], mapped.modalities["top"], mapped.seed, "top", torch.from_numpy(rows))
    torch.testing.assert_close(seen[0].view_as(expected), expected)
