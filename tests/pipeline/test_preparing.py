"""A data directory is written whole or not at all, and only with what plain WebDataset gives back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from infra.errors import UserError
from modalities import Label
from pipeline.corpora import prepare
from pipeline.manifest import open_manifest
from pipeline.shards import Sample, verify, write
from tests.pipeline.tiny import LABEL, MODALITIES, make, one, samples


def test_an_error_among_the_samples_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield from samples(10)
        raise RuntimeError("raw file is broken")

    with pytest.raises(RuntimeError, match="raw file is broken"):
        write(tmp_path / "d", "tiny", MODALITIES, broken(), 1)
    assert os.listdir(tmp_path) == []
    (tmp_path / "d").mkdir()
    with pytest.raises(RuntimeError):
        write(tmp_path / "d", "tiny", MODALITIES, broken(), 1)
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == []


def test_a_raw_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        (tmp_path / "raw.csv").read_text()
        yield from samples(1)

    with pytest.raises(UserError, match=r"raw\.csv: No such file"):
        write(tmp_path / "d", "tiny", MODALITIES, broken())
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_in_use_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("d", "d.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "d", "tiny", MODALITIES, samples(3))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="exists"):
        write(tmp_path / "file", "tiny", MODALITIES, samples(3))
    with pytest.raises(UserError, match="file: File exists"):
        write(tmp_path / "file" / "below", "tiny", MODALITIES, samples(3))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "d.partial/mine", "d/mine", "file",
    ]  # fmt: skip


def test_empty_directories_links_and_dots_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    write(tmp_path / "link", "tiny", MODALITIES, samples(3))
    assert len(open_manifest(tmp_path / "empty")) == 3
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="working directory"):
        write(Path(), "tiny", MODALITIES, samples(3))
    write(Path("../above/./x"), "tiny", MODALITIES, samples(3))
    assert len(open_manifest(tmp_path / "above" / "x")) == 3


def test_what_a_killed_prepare_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.partial").mkdir()
    (tmp_path / "d.partial" / "train-000000.tar").write_bytes(b"half")
    make(tmp_path / "d", 5)
    assert os.listdir(tmp_path) == ["d"]


BAD_KEYS = ["", "a b", "a.b", "ä", "/a", "a/", "a//b", "../a", "a\n", "__a__/b", "__x", "k" * 91]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_webdataset_would_not_give_back_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as said:
        write(tmp_path / "d", "bad", LABEL, [one("good"), one(key)])
    assert repr(key) in str(said.value) or key in str(said.value)
    assert os.listdir(tmp_path) == []


def test_long_and_deep_keys_are_read_back(tmp_path: Path) -> None:
    keys = ["a", "a/b", "A", "a-b_c/D/0", "k" * 90, "/".join(["folders"] * 11), "x/__y__/z", "x__"]
    write(tmp_path / "d", "deep", LABEL, [one(key) for key in keys])
    manifest = open_manifest(tmp_path / "d")
    assert verify(manifest, range(len(keys))) == []
    url = str(tmp_path / "d" / "train-000000.tar")
    assert [sample["__key__"] for sample in webdataset.WebDataset(url, shardshuffle=False)] == keys


BAD_SAMPLES: dict[str, tuple[list[Sample], list[str]]] = {
    "twice": ([one("a"), one("b"), one("a")], ["two samples", "'a'"]),
    "twice, in two splits": ([one("a"), one("a", "val")], ["two samples", "'a'"]),
    "value": ([one("a", label=10)], ["a, modality label", "10"]),
    "one of several": ([Sample("a", "train", {"label": [np.asarray(1), np.asarray(-1)]})], ["a, modality label"]),
    "split": ([one("a", "holdout")], ["a is in split 'holdout'", "train"]),
    "modality": ([Sample("a", "train", {"colour": np.asarray(1)})], ["a has 'colour'", "label"]),
    "none": ([], ["no samples"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_samples_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    rows, words = BAD_SAMPLES[case]
    with pytest.raises(UserError) as said:
        write(tmp_path / "d", "bad", LABEL, rows)
    assert all(word in str(said.value) for word in words)
    assert os.listdir(tmp_path) == []


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    sample = Sample("a", "train", {"image": np.zeros((3, 3))})
    with pytest.raises(UserError, match=r"a, modality image: .*\(3, 3\)"):
        write(tmp_path / "d", "bad", MODALITIES, [sample])


@pytest.mark.parametrize("name", ["_hidden", "Top", "a.b", "a/b", "", "ä"])
def test_modality_names_that_webdataset_would_change_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="modality"):
        write(tmp_path / "d", "bad", {name: Label(classes=10)}, [Sample("a", "train", {name: np.asarray(1)})])


def test_64_modalities_and_no_more(tmp_path: Path) -> None:
    def corpus(count: int) -> tuple[dict[str, Label], list[Sample]]:
        names = [f"m{i}" for i in range(count)]
        return {n: Label(classes=2) for n in names}, [Sample("a", "train", {names[-1]: np.asarray(1)})]

    write(tmp_path / "d", "many", *corpus(64))
    assert open_manifest(tmp_path / "d").patterns(range(1)).tolist() == [2**63]
    with pytest.raises(UserError, match="at most 64"):
        write(tmp_path / "e", "many", *corpus(65))


def test_prepare_keeps_what_is_whole_and_refuses_what_is_not(digits_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "digits"
    shutil.copytree(digits_dir, data)
    before = {p.name: p.stat().st_mtime_ns for p in data.iterdir()}
    assert prepare("digits", data) == open_manifest(digits_dir).fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in data.iterdir()} == before
    (data / "val-000000.tar").unlink()
    with pytest.raises(UserError, match="not empty"):
        prepare("digits", data)
    with pytest.raises(UserError, match="digits"):
        prepare("digit", tmp_path / "other")
