"""CelebA as a corpus: from tiny files in all official forms, from spoilt ones, and from the real excerpt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from jobs.cli import main
from pipeline.corpora import CORPORA
from pipeline.corpora.celeba import ATTRIBUTES, thumbnail
from pipeline.manifest import open_manifest
from tests.pipeline import official
from tests.pipeline.official import counts, faces, made, name, values


@pytest.mark.slow
def test_other_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Each opens the tar for itself."""
    official.write_faces_tar(tmp_path / "raw", range(1, 21))
    official.write_lists(tmp_path / "raw", range(1, 21), {n: n // 8 for n in range(1, 21)})
    for workers in (1, 2):
        made("celeba", tmp_path / "raw", tmp_path / str(workers), workers=workers, shard_bytes=8192)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


@pytest.mark.parametrize("form", ["folder", "tar", "two tars"])
def test_celeba_is_what_the_official_files_hold(tmp_path: Path, form: str) -> None:
    raw, numbers = tmp_path / "raw", range(1, 21)
    if form == "folder":
        official.write_faces(raw, numbers)
    elif form == "tar":
        official.write_faces_tar(raw, numbers)
    else:
        official.write_faces_tar(raw, numbers[:7], "img_align_celeba_1-7.tar")
        official.write_faces_tar(raw, numbers[7:], "img_align_celeba_8-20.tar")
    official.write_lists(raw, numbers, {n: n // 8 for n in numbers}, packed=form == "tar")
    manifest = made("celeba", raw, tmp_path / "celeba")
    assert CORPORA["celeba"].notes(raw) == ["splits: the official partition"]
    splits = {split: manifest.keys(rows) for split, rows in manifest.splits.items()}
    assert splits["train"] == [f"{n:06d}" for n in range(1, 8)]
    assert splits["val"] == [f"{n:06d}" for n in range(8, 16)]
    assert splits["test"] == [f"{n:06d}" for n in range(16, 21)]
    held = values(manifest)
    assert held["image"].shape == (20, 3, 64, 64)
    for number, image, attributes in zip(numbers, held["image"], held["attributes"], strict=True):
        np.testing.assert_allclose(image * 255, 8 * number, atol=2)
        row = dict(zip(official.HEADER, official.signs(number).split(), strict=True))
        assert attributes.tolist() == [row[name] == "1" for name in ATTRIBUTES]


def test_the_middle_of_a_face_is_kept_upright_and_in_its_colours() -> None:
    """178x218 become 64x78, of which 7 rows go above and below; the left half is red, and green grows downwards."""
    down, across = np.mgrid[:218, :178]
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[..., 0] = np.where(across < 89, 250, 0)
    pixels[..., 1] = down
    image = thumbnail(pixels)
    assert image.shape == (64, 64, 3)
    assert (image[:, :31, 0] == 250).all()
    assert not image[:, 33:, 0].any()
    assert not image[..., 2].any()
    rows = (np.arange(64) + 7 + 0.5) * 218 / 78 - 0.5
    assert np.abs(image[:, 40, 1] - rows).max() < 1.5
    small = thumbnail(cv2.resize(pixels, (89, 109), interpolation=cv2.INTER_AREA))
    assert np.abs(small[:, 40, 1] - rows).max() < 1.5, "half-size pictures show the same"


def test_an_excerpt_of_celeba_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train pictures only, 4 of 30 without a row of attributes, 10 rows without a picture, and a wrong count."""
    raw, numbers = tmp_path / "raw", range(1, 41)
    official.write_faces(raw, range(1, 31))
    official.write_lists(raw, numbers[4:], dict.fromkeys(numbers, 0))
    lists = raw / "list_attr_celeba.txt"
    lists.write_text(lists.read_text().replace("36\n", "202599\n", 1))
    assert main(["prepare", "celeba", "--source", str(raw), "--out", str(tmp_path / "c"), "--json"]) == 0
    printed = capsys.readouterr().out
    notes = json.loads(printed.splitlines()[-1])["notes"]
    assert notes[0] == "list_attr_celeba.txt announces 202,599 rows and has 36"
    assert notes[1] == "10 rows of list_attr_celeba.txt have no picture: they are left out"
    assert notes[2] == "4 pictures have no row in list_attr_celeba.txt: these samples lack their attributes"
    assert "not the official partition" in notes[3]
    assert "(only: train)" in notes[3]
    assert all(note in printed for note in notes)
    manifest = open_manifest(tmp_path / "c")
    assert counts(manifest) == {"train": 24, "val": 3, "test": 3}
    keys, patterns = manifest.keys(range(30)), manifest.patterns(range(30))
    assert sorted(key for key, bits in zip(keys, patterns, strict=True) if bits == 1) == [
        f"{n:06d}" for n in range(1, 5)
    ]
    assert manifest.fingerprint == made("celeba", raw, tmp_path / "again", shard_bytes=2**28).fingerprint


def edited(file: str, before: str, after: str) -> Callable[[Path], object]:
    """Replace a text in one of the lists."""
    return lambda raw: (raw / file).write_text((raw / file).read_text().replace(before, after, 1))


def cut_tar(raw: Path) -> None:
    official.write_faces_tar(raw, range(1, 21))
    tar = raw / "img_align_celeba.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    for path in (raw / "img_align_celeba").iterdir():
        path.unlink()
    (raw / "img_align_celeba").rmdir()


def twice(raw: Path) -> None:
    cut_tar(raw)
    for file in ("img_align_celeba.tar", "img_align_celeba_2.tar"):
        official.write_faces_tar(raw, range(1, 21), file)


def without_pictures(raw: Path) -> None:
    for path in (raw / "img_align_celeba").iterdir():
        path.rename(path.with_suffix(".png"))


def packed_and_cut(raw: Path) -> None:
    (raw / "list_eval_partition.txt").unlink()
    official.write_text(raw, "list_eval_partition.txt", "000001.jpg 0\n" * 20, packed=True)
    packed = raw / "list_eval_partition.txt.xz"
    packed.write_bytes(packed.read_bytes()[:-20])


ROWS, PARTS = "list_attr_celeba.txt", "list_eval_partition.txt"
SPOILT_CELEBA: dict[str, tuple[Callable[[Path], object], str]] = {
    "a name less": (edited(ROWS, "Young ", ""), r"list_attr_celeba\.txt, line 3: expected 18 values, .* got 19"),
    "a value less": (edited(ROWS, f"{name(6)} 1", name(6)), "line 8: expected 19 values, .* got 18"),
    "an empty line": (edited(ROWS, name(3), "\n" + name(3)), "line 5: expected 19 values, .* got 0"),
    "a value of 0": (edited(ROWS, f"{name(2)} -1", f"{name(2)} 0"), "line 4: expected values of 1"),
    "another name": (edited(ROWS, "Bald", "Hairless"), "line 2 the names of the attributes; Bald is not among them"),
    "no count": (edited(ROWS, "20\n", ""), "line 1 has to be the number of rows"),
    "no text": (lambda raw: (raw / ROWS).write_bytes(b"\xff\xfe20"), "cannot be read .*fetch it again"),
    "nothing": (lambda raw: (raw / ROWS).write_text(""), "is not the official list"),
    "no list": (lambda raw: (raw / ROWS).unlink(), r"expected one list_attr_celeba\.txt .*, but it has none"),
    "two lists": (lambda raw: official.write_text(raw, ROWS, "", packed=True), r"several: list_attr_celeba\.txt, "),
    "a fourth part": (edited(PARTS, f"{name(4)} 0", f"{name(4)} 3"), "line 4: expected a picture and"),
    "a face divided twice": (edited(PARTS, f"{name(4)} 0", f"{name(4)} 0\n{name(4)} 1"), "line 5: .* has a row"),
    "no partition": (lambda raw: (raw / PARTS).write_text(""), r"partition\.txt has no row for picture 000001"),
    "an undivided face": (edited(PARTS, f"{name(4)} 0\n", ""), r"partition\.txt has no row for picture 000004"),
    "cut xz": (packed_and_cut, r"list_eval_partition\.txt\.xz cannot be read .*fetch it again"),
    "no pictures": (without_pictures, r"img_align_celeba has no pictures: expected are the official 000001\.jpg"),
    "a cut tar": (cut_tar, r"img_align_celeba\.tar is damaged at byte 7,680 \(.*fetch it again"),
    "a face twice": (twice, r"celeba_2\.tar holds 000001\.jpg, and so does .*img_align_celeba\.tar"),
    "a cut face": (
        lambda raw: (raw / "img_align_celeba" / name(9)).write_bytes(official.face(9)[:-300]),
        r"000009\.jpg: picture 000009 is no whole JPEG \([\d,]+ bytes\): fetch it again",
    ),
    "no face": (
        lambda raw: (raw / "img_align_celeba" / name(9)).write_bytes(b"<html>\xff\xd9"),
        r"picture 000009 is no whole JPEG \(8 bytes\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT_CELEBA)
def test_celeba_from_files_that_are_not_right(tmp_path: Path, spoilt: str) -> None:
    raw = faces(tmp_path / "raw")
    spoil, sentence = SPOILT_CELEBA[spoilt]
    spoil(raw)
    with pytest.raises(UserError, match=sentence) as caught:
        made("celeba", raw, tmp_path / "celeba")
    assert str(raw) in str(caught.value)
    assert not (tmp_path / "celeba").exists()


@pytest.mark.slow
def test_the_excerpt_of_celeba(tmp_path: Path) -> None:
    """9,000 pictures, and the attributes of three that were read off the official list by hand."""
    manifest = made("celeba", official.real("celeba"), tmp_path / "celeba")
    assert counts(manifest) == {"train": 7200, "val": 900, "test": 900}
    assert set(manifest.patterns(range(len(manifest)))) == {3}, "every picture has its attributes"
    held = values(manifest, ["000001", "000053", "009000"])
    assert held["image"].shape == (3, 3, 64, 64)
    assert 0.1 < held["image"].mean() < 0.9
    had = [[name for name, there in zip(ATTRIBUTES, row, strict=True) if there] for row in held["attributes"]]
    assert had == [
        ["Brown_Hair", "Heavy_Makeup", "Mouth_Slightly_Open", "Smiling", "Straight_Hair"],
        ["Bangs", "Eyeglasses", "Male"],
        ["Eyeglasses", "Male", "Mouth_Slightly_Open", "Smiling"],
    ]
