"""Pictures as files: nothing is lost that a format keeps, and nothing else passes for a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modalities import Image
from tests.modalities.cases import COLOUR_JPEG, INK, PNG, SUNSET, npy, picture


def test_colours_are_not_exchanged() -> None:
    """Red stays red, in every codec and in the files of others."""
    red = np.zeros((9, 16, 3), np.uint8)
    red[..., 0] = 255
    for codec in ("npy", "png", "jpg"):
        modality = replace(COLOUR_JPEG, codec=codec)
        for data in (modality.encode(red), picture(codec, red[..., ::-1]) if codec != "npy" else npy(red)):
            (decoded,) = modality.decode([data])
            np.testing.assert_allclose(decoded.mean((1, 2)), [1, 0, 0], atol=0.01)


def test_every_place_where_a_picture_may_be_cut_off() -> None:
    for modality, value in ((COLOUR_JPEG, SUNSET), (PNG, INK)):
        whole = modality.encode(value)
        for length in range(len(whole)):
            with pytest.raises(ValueError, match="whole"):
                modality.decode([whole[:length]])


def test_a_picture_too_large_for_its_format() -> None:
    with pytest.raises(ValueError, match="cannot write this picture as jpg"):
        Image(1, 65_536, codec="jpg").encode(np.zeros((1, 65_536)))
