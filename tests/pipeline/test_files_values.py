"""Rows and pictures of a user's own: any row at any time, nothing lost that can be used, pictures as they are meant."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import Unusable
from pipeline.corpora.files.cells import ReadPicture
from pipeline.corpora.files.tables import Arrow, Csv, Parquet, Table, cursor
from tests.pipeline.userfiles import PNG, grey, held, picture, prepare, skipped, write_csv

# Rows


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_rows_are_found_in_any_order(tmp_path: Path, kind: str) -> None:
    """3,000 rows, some of two lines; marks in between; forwards, backwards and at random."""
    texts = [f"row {n}" + "\nand more" * (n % 7 == 0) for n in range(3000)]
    path, table = tmp_path / "t", pa.table({"n": pa.array(range(3000)), "x": texts})
    if kind == "csv":
        write_csv(path, [{"n": str(n), "x": text} for n, text in enumerate(texts)])
        opened: Table = Csv.open(path, "t", "t", ",")
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=700)
        opened = Parquet.open(path, "t", "t")
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=500)
        opened = Arrow.open(path, "t", "t", 0, {})
    cursor.cache_clear()
    assert opened.rows == 3000
    assert len(opened.marks) in (3, 5, 6)
    order = [*range(100), *range(0, 3000, 97), *random.Random(0).choices(range(3000), k=40), 2999, 2999, 0]
    for row in order:
        record = cursor(opened, ("x",)).record(row)
        assert record.cells == {"x": texts[row]}
        line = 2 + sum(1 + text.count("\n") for text in texts[:row])
        assert record.place == (f"t, line {line:,}" if kind == "csv" else f"t, row {row:,}")


LABELS, WORDS = ["cat", "dog"], ["a b", "b a b", "ab", "  a"]
ROWS = st.fixed_dictionaries(
    {
        "photo": st.sampled_from(["", "0.png", "1.png", "gone.png", "broken.png"]),
        "label": st.sampled_from(["", " ", *LABELS, "eel"]),
        "caption": st.sampled_from(["", *WORDS, "\udcff a"]),
        "v": st.one_of(st.just(""), st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(lambda v: str(v)[1:-1])),
        "cells": st.sampled_from([4, 4, 4, 4, 3, 5, 0]),
    }
)
ANY_TABLE = """
[data]
table = "t.csv"
[modalities.photo]
kind = "image"
size = [2, 2]
[modalities.label]
kind = "label"
classes = ["cat", "dog"]
[modalities.caption]
kind = "sentences"
tokenizer = "char"
[modalities.v]
kind = "features"
count = 2
"""


def usable(row: dict[str, Any]) -> dict[str, Any] | None:
    """What is to be read back of a row, by rules of its own; None for a row that is to be left out."""
    broken = row["photo"] in ("gone.png", "broken.png") or row["label"] == "eel" or "\udcff" in row["caption"]
    numbers = [float(word) for word in row["v"].split(",") if word]
    if broken or row["cells"] != 4 or len(numbers) not in (0, 2):
        return None
    values: dict[str, Any] = {}
    if row["photo"]:
        values["photo"] = np.full((3, 2, 2), 60 * int(row["photo"][0]) / 255, np.float32).tolist()
    if row["label"].strip():
        values["label"] = LABELS.index(row["label"])
    if row["caption"]:
        values["caption"] = row["caption"].strip()
    if numbers:
        values["v"] = numbers
    return values or None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS, max_size=30))
def test_nothing_is_lost_that_can_be_used(rows: list[dict[str, Any]]) -> None:
    """Random tables with holes, broken cells and broken rows: each row is read back, or left out with a reason."""
    good = {"photo": "1.png", "label": "cat", "caption": "a b", "v": "1, 2", "cells": 4}
    rows = [good] * 8 + rows  # something to train on, and to write
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in (0, 1):
            (folder / f"{number}.png").write_bytes(picture(grey(20 * number)))
        (folder / "broken.png").write_bytes(PNG[:45])
        with (folder / "t.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["photo", "label", "caption", "v"])
            for row in rows:
                cells = [row["photo"], row["label"], row["caption"], row["v"], "more"]
                writer.writerow(cells[: row["cells"]])
        written = prepare(folder, ANY_TABLE)
        truth = {f"t/{number:06d}": usable(row) for number, row in enumerate(rows)}
        assert held(folder / "out") == {key: values for key, values in truth.items() if values}
        reasons = skipped(folder / "out")
        assert reasons.keys() == {key for key, values in truth.items() if not values}
        assert all(reason.startswith("t.csv, line ") for reason in reasons.values())
        assert (written.samples, written.skipped) == (len(rows) - len(reasons), len(reasons))


# Pictures


def shown(tmp_path: Path, data: bytes, setting: str = "") -> np.ndarray:
    """The levels (height, width) or (height, width, 3) that a picture is stored with."""
    (tmp_path / "1.photo.bin").write_bytes(data)
    toml = '[data]\nfolder = "."\nval = 0\ntest = 0\n[modalities.photo]\nkind = "image"\nsize = [2, 4]\n' + setting
    prepare(tmp_path, toml)
    (values,) = held(tmp_path / "out").values()
    levels = np.rint(np.array(values["photo"]) * 255).astype(int)
    return levels if levels.ndim == 2 else np.moveaxis(levels, 0, 2)


def test_the_middle_of_a_picture_is_kept(tmp_path: Path) -> None:
    """Of 12 x 12 pixels the rows 3 to 8 in 2 x 4 of 3 x 3: each the mean of what it covers."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    means = pixels[3:9].reshape(2, 3, 4, 3, 3).mean((1, 3))
    np.testing.assert_allclose(shown(tmp_path, picture(pixels)), means, atol=1)


def test_a_picture_is_stretched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    means = pixels.reshape(2, 6, 4, 3, 3).mean((1, 3))
    np.testing.assert_allclose(shown(tmp_path, picture(pixels), 'fit = "stretch"\n'), means, atol=1)


def test_a_picture_is_grey(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8)
    luma = pixels @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(shown(tmp_path, picture(pixels), "channels = 1\n"), luma, atol=1)


def test_a_small_picture_is_enlarged_smoothly(tmp_path: Path) -> None:
    pixels = np.repeat(np.array([[0, 240]], np.uint8)[..., None], 3, 2)
    levels = shown(tmp_path, picture(pixels), 'fit = "stretch"\n')[..., 0]
    assert levels.tolist() == [[0, 60, 180, 240]] * 2


def test_a_picture_is_upright(tmp_path: Path) -> None:
    """EXIF's 6: the camera was turned, the stored rows are columns from the right."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (shown(tmp_path, picture(pixels, exif=exif)) == np.rot90(pixels, -1)).all()


def test_a_picture_of_16_bits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (2, 4), np.uint16)
    assert (shown(tmp_path, picture(pixels), "channels = 1\n") == pixels >> 8).all()


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[:, 1:, 3] = 51, 204, 255
    assert shown(tmp_path, picture(pixels))[0, :, 0].tolist() == [255, 204, 51, 0]


def test_a_picture_of_a_data_set_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    read = ReadPicture(tmp_path, 8, 8, 3, "crop")
    assert (read([{"bytes": None, "path": "1.png"}]) == grey(3)).all()
    assert (read([{"bytes": PNG, "path": "elsewhere.png"}]) == grey(3)).all()


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_a_picture_that_was_cut_off_shows_nothing_else(form: str) -> None:
    """However little is missing: it is refused, or all its pixels were there."""
    data = picture(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8), form)
    read = ReadPicture(Path(), 12, 12, 3, "crop")
    refused = 0
    for size in range(len(data)):
        try:
            assert (read([data[:size]]) == read([data])).all()
        except Unusable:
            refused += 1
    assert refused >= len(data) - 20
