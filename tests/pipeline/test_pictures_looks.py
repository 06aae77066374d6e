"""Which rows pictures are drawn of, and how values look: colours, parts of a picture, words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from modalities import Attributes, Image
from pipeline.config import Run
from pipeline.pictures.looks import Words, coloured, faces
from pipeline.pictures.made import held, lacking, rows
from pipeline.settings import Examine
from tests.pipeline.drawn import KINDS, ROWS, make, subject


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pictures") / "d")


def test_rows_that_have_what_is_asked_for_come_first(data: Path) -> None:
    drawn = rows(subject(data, *KINDS), 10)
    whole = ROWS // 3
    assert not lacking(drawn, list(KINDS))[:whole].any()
    assert lacking(drawn, list(KINDS))[whole:].all()
    assert drawn.keys == rows(subject(data, *KINDS, seed=5), 10).keys, "the data's, not the run's"
    numbers = [int(key.removeprefix("val/")) for key in drawn.keys[:whole]]
    assert sorted(numbers) != numbers, "neighbours in storage may be alike"
    assert len(rows(subject(data, "grey"), 1000)) == ROWS
    alone = rows(subject(data, *KINDS), 12, ["grey"])
    assert not lacking(alone, ["grey"]).any()
    assert lacking(alone, list(KINDS)).any()
    for key, one in zip(alone.keys, held(alone)["grey"], strict=True):
        assert one is not None
        assert np.allclose(one * 255, int(key.split("/")[1]))
    assert any(one is None for one in held(alone)["photo"])


def test_a_split_without_samples_is_refused_in_a_sentence(data: Path) -> None:
    with pytest.raises(UserError, match="no split 'nowhere'; it has"):
        rows(subject(data, "grey", split="nowhere"), 3)
    hollow = subject(data, "grey", split="val")
    hollow.manifest.splits["val"] = range(0)
    with pytest.raises(UserError, match="split 'val' holds no sample to draw"):
        rows(hollow, 3)


def test_colours_keep_their_places_and_what_is_missing_is_pale() -> None:
    photo = np.arange(3 * 2 * 5).reshape(3, 2, 5)
    image = Image(2, 5, channels=3)
    assert coloured(image, photo).shape == (2, 5, 3)
    assert (coloured(image, photo)[1, 4] == photo[:, 1, 4]).all()
    assert (coloured(Image(2, 5), photo[0]) == photo[0][:, :, None]).all()
    nothing = coloured(image, None)
    assert nothing.shape == (2, 5, 3)
    assert 0.8 < nothing.min() <= nothing.max() < 1


def test_parts_of_a_picture_are_one(data: Path) -> None:
    top, bottom = Image(4, 6, hidden=(8,)), Image(2, 4, hidden=(8,))
    run = Run("r", str(data), {"low": bottom, "photo": KINDS["photo"], "up": top}, examine=Examine(parts=("up", "low")))
    whole, photo = faces(run)
    assert (whole.title, whole.longest, photo.title, photo.longest) == ("up + low", 6, "photo", 8)
    values = {"up": [np.zeros((4, 6)), None, None], "low": [np.ones((2, 4)), np.zeros((2, 4)), None]}
    full, half, none = whole.pictures(values)
    assert full is not None
    assert half is not None
    assert full.shape == half.shape == (6, 6, 3)
    assert (full[:4] == 0).all()
    assert (full[4:, :4] == 1).all()
    assert (half[:4] > 0.8).all()
    assert (half[4:, :4] == 0).all()
    assert none is None


def test_values_read_like_their_names_or_numbers(data: Path) -> None:
    said = Words.of(subject(data, *KINDS, young=Attributes(1, of="traits", first=0, among=3)))
    assert said.value("label", np.asarray(2)) == "cat"
    assert said.value("traits", np.array([0.9, 0.1, 0.6])) == "old, big"
    assert said.value("young", np.array([0.7])) == "young"
    assert said.value("young", np.array([0.2])) == ""
    assert said.value("string", np.array([3, 5, 0, 0])) == "3 5"
    assert said.value("string", np.zeros(4)) == "“”"
    assert said.value("label", None) == ""
    plain = Words(KINDS, {})
    assert plain.value("label", np.asarray(2)) == "2"
    assert plain.value("traits", np.array([1, 0, 1])) == "0, 2"
    values = {
        "label": [np.asarray(1), None],
        "string": [np.array([2, 0, 0, 0])] * 2,
        "caption": [np.array([4, 8, 0]), None],
        "traits": [np.array([1, 0, 0])] * 2,
        "numbers": [np.zeros(5)] * 2,
    }
    assert (said.short(values, 0), said.short(values, 1)) == ("bee 2", "2")
    assert (said.long(values, 0), said.long(values, 1)) == ("caption: 4 8; traits: old", "traits: old")
    assert not said.differs(values, values, 0)
    assert said.differs(values, {**values, "label": [np.asarray(0), None]}, 0)
    assert not said.differs(values, {**values, "label": [None, np.asarray(0)]}, 1), "nothing differs from nothing"
