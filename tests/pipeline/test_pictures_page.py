"""How sheets are laid out: sizes of tiles, nothing stretched, no words on top of each other, files that stay small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pipeline.pictures import page as pages
from pipeline.pictures.page import LARGEST, Chart, Page, Panel, Tile, cut, font, scaled, side_for, wrapped


def levels(page: Page) -> np.ndarray:
    return np.asarray(page.image())


def grey(level: float, height: int = 2, width: int = 3) -> np.ndarray:
    return np.full((height, width, 3), level)


def test_small_pictures_are_magnified_by_a_whole_number_and_large_ones_fit() -> None:
    pixels = np.random.default_rng(0).random((4, 6, 3))
    drawn = scaled(pixels, 40)
    assert drawn.shape == (24, 36, 3)
    assert (drawn[::6, ::6] == np.rint(pixels * 255)).all()
    assert (drawn[5, 5] == drawn[0, 0]).all()
    large = scaled(np.full((200, 100, 3), 0.5), 40)
    assert large.shape == (40, 20, 3)
    assert set(np.unique(large)) == {128}
    assert scaled(grey(7.0), 2).max() == 255
    assert scaled(grey(-7.0), 2).min() == 0


def test_tiles_of_a_panel_stand_where_they_belong() -> None:
    tiles = [[Tile(grey(0.2)), Tile(grey(0.4))], [Tile(None), Tile(grey(0.6))]]
    panel = Panel("title", tiles, 30, ["", ""])
    drawn = levels(Page("", [[panel]]))[:, :, 0]
    places = {level: np.argwhere(drawn == round(255 * level)) for level in (0.2, 0.4, 0.6)}
    assert all(len(found) == 20 * 30 for found in places.values())
    corners = {level: tuple(found.min(0)) for level, found in places.items()}
    assert corners[0.4][0] == corners[0.2][0]
    assert corners[0.4][1] == corners[0.2][1] + 30 + pages.GAP
    assert corners[0.6][1] == corners[0.4][1]
    assert corners[0.6][0] > corners[0.4][0] + 20


def test_rows_set_apart_are_farther_below() -> None:
    tiles = [[Tile(grey(0.2))], [Tile(grey(0.4))], [Tile(grey(0.6))]]
    tops = []
    for apart in ([], [2]):
        drawn = levels(Page("", [[Panel("", tiles, 30, apart=apart)]]))[:, :, 0]
        tops.append([np.argwhere(drawn == round(255 * level)).min(0)[0] for level in (0.2, 0.4, 0.6)])
    assert tops[0][1] == tops[1][1]
    assert tops[1][2] == tops[0][2] + 2 * pages.GAP


def test_words_fit_their_column() -> None:
    letters = font()
    assert cut("bird", 100, letters) == "bird"
    assert cut("a very long name of a bird", 60, letters).endswith("…")
    assert letters.getlength(cut("a very long name of a bird", 60, letters)) <= 60
    assert cut("bird", 1, letters) == "…"
    lines = wrapped("the quick brown fox jumps over the lazy dog " * 3, 90, letters, 3)
    assert len(lines) == 3
    assert max(map(letters.getlength, lines)) <= 90
    assert lines[-1].endswith("…")
    assert wrapped("one two", 500, letters, 3) == ["one two"]
    assert wrapped("", 500, letters, 3) == [""]
    (only,) = wrapped("unbelievablylongword", 40, letters, 3)
    assert only.endswith("…")


def test_long_names_and_words_leave_the_tiles_alone() -> None:
    """However long they are, they never cover a picture: it has as many pixels as without them."""
    quiet = levels(Page("", [[Panel("", [[Tile(grey(0.4))] * 3] * 2, 30, ["", ""], ["", "", ""])]]))
    long = "an endless name " * 30
    loud = Page(long, [[Panel("", [[Tile(grey(0.4), long)] * 3] * 2, 30, [long, long], [long] * 3)]], [long])
    count = (quiet[:, :, 0] == 102).sum()
    drawn = levels(loud)
    assert ((drawn == 102).all(2)).sum() == count
    assert drawn.shape[1] < 700, "and the page does not grow with them"


def test_a_side_for_tiles_that_fit_and_are_alike() -> None:
    for across, count, longest in ((8, 3, [64]), (12, 1, [28]), (11, 3, [64, 64, 64]), (10, 2, [28, 8])):
        side = side_for(across, count, longest, most=112)
        assert count * (across * (side + pages.GAP) + pages.NAME) + (count - 1) * pages.APART <= pages.WIDE
    assert side_for(8, 1, [28], most=96) // 28 == 3
    side = side_for(8, 2, [28, 8], most=64)
    assert side // 28 * 28 == side // 8 * 8 == 56, "tiles of both are of one size"
    assert side_for(200, 3, [64], most=96) == pages.LITTLE


def test_elements_stand_beside_and_below_each_other() -> None:
    colours = np.array([(250, 10, 0), (10, 250, 0), (0, 10, 250)], np.uint8)
    charts = [Chart(np.full((20, 30, 3), colour)) for colour in colours]
    drawn = levels(Page("title", [charts[:2], charts[2:]], ["a note"]))
    first, second, third = (np.argwhere((drawn == colour).all(2)) for colour in colours)
    assert len(first) == len(second) == len(third) == 600
    assert second.min(0)[0] == first.min(0)[0]
    assert second.min(0)[1] == first.max(0)[1] + 1 + pages.APART
    assert third.min(0)[0] > first.max(0)[0]
    assert third.min(0)[1] == first.min(0)[1]
    assert (drawn[third.max(0)[0] + 1 :] < 255).any(), "the note is below"


@pytest.mark.parametrize(("count", "colours"), [(2, False), (7, True)])
def test_photographs_stay_small(tmp_path: Path, count: int, colours: bool) -> None:
    noise = np.random.default_rng(0).random((count, 12, 64, 64, 3))
    page = Page("noise", [[Panel("", [[Tile(one) for one in row] for row in noise], 64)]])
    page.save(tmp_path / "noise.png")
    with PIL.Image.open(tmp_path / "noise.png") as picture:
        assert picture.mode == ("P" if colours else "RGB")
        assert picture.size == page.image().size
        if not colours:
            assert np.array_equal(np.asarray(picture), levels(page)), "all colours as they are"
    assert (tmp_path / "noise.png").stat().st_size <= LARGEST


def test_words_stay_below_their_own_tile() -> None:
    panel = Panel("", [[Tile(grey(0.4), "an endless name of a bird"), Tile(grey(0.6))]], 60)
    drawn = levels(Page("", [[panel]]))[:, :, 0]
    bottom, end = np.argwhere(drawn == round(255 * 0.4)).max(0)
    assert (drawn[bottom + 1 :, : end + 2] < 128).any(), "they are there"
    assert (drawn[bottom + 1 :, end + 2 :] == 255).all()
