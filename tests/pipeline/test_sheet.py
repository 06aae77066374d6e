"""A sheet of samples: which ones it shows, what their cells say, which pixels they have, and that it stays the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib import colormaps

from infra.errors import UserError
from modalities import Attributes, Image, Label, Modality, Text
from modalities.independent import Independent
from modalities.spec import npy_header, unwrap_npy
from pipeline.corpora.corpus import Entry
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.sheet import CELL, ELEMENT, LETTERS, LINES, choose, draw
from pipeline.writing import write
from tests.pipeline.tiny import LABEL, MODALITIES, NAMES, bare, given, held, make, one

FLOAT = np.dtype("<f4")
GREYS = np.array([[0, 60, 90], [120, 200, 30]])


@dataclass(frozen=True)
class Features(Independent):
    """A kind that the sheet does not know: a vector of numbers."""

    hidden: tuple[int, ...] = (4,)
    extension = "npy"
    shape = (8,)
    dtype = FLOAT

    def encode(self, value: np.ndarray) -> bytes:
        return npy_header(self.shape, FLOAT) + value.astype(FLOAT).tobytes()

    def decode(self, members: Any) -> np.ndarray:
        return unwrap_npy(members, self.shape, FLOAT)


def made(folder: Path, modalities: Mapping[str, Modality], *values: dict[str, Any]) -> Manifest:
    """A data directory of training samples 0, 1, ... that have these values."""
    entries = [Entry(f"{number}", "train", value) for number, value in enumerate(values)]
    write(folder / "d", given("made", modalities, entries), workers=1)
    return open_manifest(folder / "d")


def written(
    manifest: Manifest,
    modalities: Mapping[str, Modality],
    texts: Mapping[str, Callable[[np.ndarray], str]],
    folder: Path,
    **options: Any,
) -> list[str]:
    """Every line of text on the sheet, in the order of its rows."""
    file = folder / "sheet.svg"
    draw(manifest, modalities, texts, file, **options)
    return re.findall("<!-- (.*) -->", file.read_text())


def pixels(manifest: Manifest, modalities: Mapping[str, Modality], folder: Path) -> Counter[tuple[int, ...]]:
    """How many pixels of the sheet have which colour."""
    file = folder / "sheet.png"
    draw(manifest, modalities, {}, file)
    return Counter(map(tuple, np.asarray(PIL.Image.open(file).convert("RGB")).reshape(-1, 3).tolist()))


# Which samples


def dealt(counts: list[int], seats: int) -> list[int]:
    """How many of each pattern are shown: one, then D'Hondt's table of quotients, the largest first."""
    counts = sorted(counts, reverse=True)[:seats]
    quotients = [
        (-count / (n + 1), place) for place, count in enumerate(counts) for n in range(1, count)
    ]  # the first of each has its seat
    more = Counter(place for _, place in sorted(quotients)[: max(0, seats - len(counts))])
    return [1 + more[place] for place in range(len(counts))]


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 7, 8, 12, 50])
def test_every_pattern_has_its_turn_and_frequency_decides_the_rest(tmp_path: Path, samples: int) -> None:
    table = np.array([[1, 0]] * 3 + [[1, 1]] * 30 + [[0, 2]] * 8 + [[0, 0]] * 1)[
        np.random.default_rng(0).permutation(42)
    ]
    manifest = bare(tmp_path, table, others=5)
    rows = choose(manifest, "train", samples)
    assert len(set(rows)) == len(rows) == min(samples, 42)
    kinds = [tuple((table[row - 5] > 0).tolist()) for row in rows]
    assert list(dict.fromkeys(kinds)) == [(True, True), (False, True), (True, False), (False, False)][:samples]
    assert list(Counter(kinds).values()) == dealt([3, 30, 8, 1], samples)
    assert kinds == sorted(kinds, key=list(dict.fromkeys(kinds)).index), "side by side"


def test_samples_come_from_all_over_the_split(tmp_path: Path) -> None:
    rows = choose(bare(tmp_path, np.ones((4000, 1), int)), "train", 50)
    assert np.histogram(rows, 4, (0, 4000))[0].min() >= 6
    assert len(set(np.diff(rows))) > 30, "not every eightieth: data may be periodic"
    assert rows == sorted(rows)


def test_a_split_that_is_not_there_or_empty(tmp_path: Path) -> None:
    manifest = bare(tmp_path, np.ones((4, 1), int))
    with pytest.raises(UserError, match="no split 'trian'"):
        choose(manifest, "trian", 8)
    with pytest.raises(UserError, match="split 'other' holds no samples"):
        choose(manifest, "other", 8)


# What the cells say


def test_every_cell_in_the_order_of_the_rows(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 80)
    lines = written(manifest, MODALITIES, {}, tmp_path)
    keys = manifest.keys(np.array(choose(manifest, "train", 8)))
    numbers = [int(key[-4:]) for key in keys]
    assert {tuple(held(number)) for number in numbers} == {tuple(held(number)) for number in range(8)}
    tags = [["–"], *([str(n * 3 % 990 + i) for i in range(1 + n % 3)] for n in numbers)][1:]
    expected = ["tiny, train: 8 of 80 samples", *keys]
    for name in NAMES:
        expected.append(name)
        for number, tag in zip(numbers, tags, strict=True):
            if name not in held(number):
                expected.append("–")
            elif name == "label":
                expected.append(str(number % 10))
            elif name == "tag":
                expected += [*tag[:2], *(["+1"] if len(tag) == 3 else [])]
    assert lines == expected
    assert any("+1" in line for line in lines), "else nothing was tried"


def test_tokens_attributes_and_what_they_read_like(tmp_path: Path) -> None:
    kinds: dict[str, Modality] = {"string": Text(12, 5), "traits": Attributes(7), "class": Label(10)}
    value = {
        "string": np.array([4, 2, 11, 0, 0]), "traits": np.array([0, 1, 0, 0, 1, 1, 0]), "class": np.asarray(7)
    }  # fmt: skip
    manifest = made(tmp_path, kinds, value)
    head = ["made, train: 1 of 1 samples", "0"]
    assert written(manifest, kinds, {}, tmp_path) == [
        *head, "string", "4 2 11", "traits", *"0123456", "class", "7"
    ]  # fmt: skip
    texts = {
        "string": lambda value: "".join(str(token - 2) for token in value if token),
        "traits": lambda value: ", ".join(name for name, one in zip("abcdefg", value, strict=True) if one),
        "class": lambda value: ["zero", *"abcdef", "seven"][value],
    }
    assert written(manifest, kinds, texts, tmp_path) == [
        *head, "string", "209", "traits", "b, e, f", "class", "seven"
    ]  # fmt: skip


def test_long_texts_are_wrapped_and_cut_and_nothing_is_mathematics(tmp_path: Path) -> None:
    kinds = {"caption": Text(99, 4)}
    instance = np.array([2, 3, 0, 0])
    manifest = made(tmp_path, kinds, {"caption": [instance] * 10})
    text = r"a $\nope$ bird for $5, " + "with long red wings " * 20
    lines = written(manifest, kinds, {"caption": lambda value: text}, tmp_path)[3:]
    assert lines[-1] == "+8"
    first, second = lines[:LINES], lines[LINES:-1]
    assert first == second
    assert max(map(len, first)) <= LETTERS
    assert first[-1].endswith("…")
    assert text.startswith(" ".join(first).removesuffix(" …"))
    assert written(manifest, kinds, {"caption": lambda value: ""}, tmp_path)[3:] == ["“”", "“”", "+8"]


def test_of_a_long_key_the_end_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "d", given("made", LABEL, [one("a/folder/of/many/things/number-000123")]), workers=1)
    _, key, *_ = written(open_manifest(tmp_path / "d"), LABEL, {}, tmp_path)
    assert len(key) == LETTERS
    assert key.startswith("…")
    assert key.endswith("things/number-000123"[1 - LETTERS :])


def test_damaged_bytes_and_bytes_that_do_not_fit_are_not_missing(tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", 8, complete=True)
    path = tmp_path / "d" / manifest.shards[0].name
    member = int(manifest.first[2]) + NAMES.index("image")  # of train/0002, whose tags are three
    data = bytearray(path.read_bytes())
    data[int(manifest.block[member]) * BLOCK] ^= 1
    path.write_bytes(data)
    lines = written(manifest, MODALITIES, {}, tmp_path)
    assert lines[9:11] == ["image", "damaged"]
    assert lines.count("damaged") == 1
    assert "#d00000" in (tmp_path / "sheet.svg").read_text(), "in red"
    few = written(manifest, MODALITIES | {"label": Label(3)}, {}, tmp_path)
    assert few[few.index("label") :] == ["label", "0", "1", "2", *["damaged"] * 5]
    path.unlink()
    none = written(manifest, LABEL, {}, tmp_path)
    assert none[9:] == ["label", *["damaged"] * 8]


# Pixels


def test_small_pictures_are_magnified_by_a_whole_number(tmp_path: Path) -> None:
    kinds: dict[str, Modality] = {"grey": Image(2, 3), "photo": Image(2, 3, channels=3, codec="png")}
    colours = np.stack([GREYS, 255 - GREYS, GREYS // 2], axis=2)
    found = pixels(made(tmp_path, kinds, {"grey": GREYS, "photo": colours}), kinds, tmp_path)
    side = CELL // 3
    for grey in GREYS[GREYS > 0].tolist():
        assert found[(grey,) * 3] >= side**2
    for colour in colours.reshape(-1, 3).tolist():
        assert found[tuple(colour)] == side**2, "red first"


def test_large_pictures_fill_a_cell(tmp_path: Path) -> None:
    kinds = {"photo": Image(400, 200, channels=3, codec="png")}
    found = pixels(made(tmp_path, kinds, {"photo": np.full((400, 200, 3), (250, 40, 0))}), kinds, tmp_path)
    assert found[(250, 40, 0)] == CELL * CELL // 2


def test_a_vector_is_a_heat_map_on_the_scale_of_its_row(tmp_path: Path) -> None:
    kinds = {"features": Features()}
    strong, weak = np.array([-4, -2, -2, -3, 3, 3, 2, 4]), np.array([-1, -1, -1, -1, 1, 1, 1, 1])
    found = pixels(made(tmp_path, kinds, {"features": strong}, {"features": weak}), kinds, tmp_path)
    for value, count in Counter([*strong.tolist(), *weak.tolist()]).items():
        colour = 255 * np.array(colormaps["RdBu_r"](value / 8 + 0.5)[:3])
        near = sum(count for one, count in found.items() if np.abs(colour - one).max() <= 1)
        assert near == count * ELEMENT**2


def test_attributes_that_apply_are_dark_also_where_there_are_many(tmp_path: Path) -> None:
    kinds = {"traits": Attributes(312)}
    value = (np.arange(312) % 4 == 0).astype(int)
    manifest = made(tmp_path, kinds, {"traits": value})
    found = pixels(manifest, kinds, tmp_path)
    dark, pale = found[(0x33, 0x47, 0x5B)], found[(0xE6, 0xEA, 0xEE)]
    assert dark == value.sum() * (CELL // 25) ** 2, "25 in a line: twice as wide as high"
    assert pale >= 3 * dark
    assert written(manifest, kinds, {}, tmp_path)[2:] == ["traits"], "no room for numbers"


# The file


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_data_give_the_same_bytes(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(tmp_path / "d", 40)
    drawn = []
    for number, date in enumerate(("1000000000", "1700000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
        draw(manifest, MODALITIES, {}, tmp_path / f"{number}.{ending}")
        drawn.append((tmp_path / f"{number}.{ending}").read_bytes())
    assert drawn[0] == drawn[1]
    draw(manifest, MODALITIES, {}, tmp_path / f"val.{ending}", samples=3, split="val")
    assert (tmp_path / f"val.{ending}").read_bytes() != drawn[0]


def test_photographs_stay_small(tmp_path: Path) -> None:
    kinds = {"photo": Image(64, 64, channels=3, codec="png"), "label": Label(10), "traits": Attributes(18)}
    rng = np.random.default_rng(0)
    values = [
        {"photo": rng.integers(0, 256, (64, 64, 3)), "label": np.asarray(3), "traits": rng.integers(0, 2, 18)}
        for _ in range(8)
    ]
    draw(made(tmp_path, kinds, *values), kinds, {}, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < 80_000, "noise, which no photograph exceeds"


@pytest.mark.parametrize(
    ("name", "samples", "words"),
    [
        ("sheet", 8, "ends with .png or .pdf or .svg"),
        ("sheet.txt", 8, "ends with .png or .pdf or .svg"),
        ("nowhere/sheet.png", 8, "nowhere is no directory"),
        ("sheet.png", 0, "0 samples: choose 1 to 50"),
        ("sheet.png", 51, "51 samples: choose 1 to 50"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, samples: int, words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        draw(None, LABEL, {}, tmp_path / name, samples)  # type: ignore[arg-type]


def test_a_modality_that_the_shards_do_not_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no modality 'photo'"):
        draw(make(tmp_path / "d", 8), {"photo": Image(2, 3)}, {}, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
