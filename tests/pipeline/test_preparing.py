"""A data directory is written whole or not at all, and only with what plain WebDataset gives back."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from infra.errors import UserError
from modalities import Image, Label
from pipeline.corpora import prepare
from pipeline.corpora.corpus import Corpus, Entry, Values
from pipeline.manifest import open_manifest
from pipeline.verifying import verify
from pipeline.writing import write
from tests.pipeline.tiny import LABEL, MODALITIES, given, make, one, samples


def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """40 MB of members in shards of 1 MB; an image of 64 KB each, made when it is asked for."""
    import tracemalloc

    def load(entry: Entry) -> Values:
        return {"image": np.full((256, 256), entry.source % 250, np.uint8)}

    entries = [Entry(f"k{number}", "train", number) for number in range(640)]
    corpus = Corpus("big", "", {"image": Image(256, 256)}, lambda _: entries, load)
    write(tmp_path / "warm", replace(corpus, entries=lambda _: entries[:10]), 2**20, workers=1)
    tracemalloc.start()
    try:
        write(tmp_path / "d", corpus, 2**20, workers=1)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_a_raw_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    corpus = Corpus("tiny", "", MODALITIES, lambda _: [Entry("a", "train", tmp_path / "raw.csv")], read_raw)
    with pytest.raises(UserError, match=r"raw\.csv: No such file"):
        write(tmp_path / "d", corpus)
    assert os.listdir(tmp_path) == []


def read_raw(entry: Entry) -> Values:
    return {"label": np.asarray(len(entry.source.read_text()))}


def test_a_directory_that_is_in_use_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("d", "d.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "d", given("tiny", MODALITIES, samples(3)))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="exists"):
        write(tmp_path / "file", given("tiny", MODALITIES, samples(3)))
    with pytest.raises(UserError, match="file: File exists"):
        write(tmp_path / "file" / "below", given("tiny", MODALITIES, samples(3)))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "d.partial/mine", "d/mine", "file",
    ]  # fmt: skip


def test_empty_directories_links_and_dots_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    write(tmp_path / "link", given("tiny", MODALITIES, samples(3)))
    assert len(open_manifest(tmp_path / "empty")) == 3
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="working directory"):
        write(Path(), given("tiny", MODALITIES, samples(3)))
    write(Path("../above/./x"), given("tiny", MODALITIES, samples(3)))
    assert len(open_manifest(tmp_path / "above" / "x")) == 3


def test_a_partial_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d.partial").mkdir()
    make(tmp_path / "d", 5)  # nothing in it
    (tmp_path / "e.partial").mkdir()
    (tmp_path / "e.partial" / "mine").write_text("precious")
    with pytest.raises(UserError, match=r"e\.partial holds 'mine'"):
        make(tmp_path / "e", 5)
    assert sorted(os.listdir(tmp_path)) == ["d", "e.partial"]
    assert os.listdir(tmp_path / "e.partial") == ["mine"]


BAD_KEYS = ["", "a b", "a.b", "ä", "/a", "a/", "a//b", "../a", "a\n", "__a__/b", "__x", "k" * 91]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_webdataset_would_not_give_back_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as said:
        write(tmp_path / "d", given("bad", LABEL, [one("good"), one(key)]))
    assert repr(key) in str(said.value) or key in str(said.value)
    assert os.listdir(tmp_path) == []


def test_long_and_deep_keys_are_read_back(tmp_path: Path) -> None:
    keys = ["a", "a/b", "A", "a-b_c/D/0", "k" * 90, "/".join(["folders"] * 11), "x/__y__/z", "x__"]
    write(tmp_path / "d", given("deep", LABEL, [one(key) for key in keys]))
    manifest = open_manifest(tmp_path / "d")
    assert verify(manifest) == []
    url = str(tmp_path / "d" / "train-000000.tar")
    assert [sample["__key__"] for sample in webdataset.WebDataset(url, shardshuffle=False)] == keys


BAD_SAMPLES: dict[str, tuple[list[Entry], list[str]]] = {
    "twice": ([one("a"), one("b"), one("a")], ["two samples", "'a'"]),
    "twice, in two splits": ([one("a"), one("a", "val")], ["two samples", "'a'"]),
    "value": ([one("a", label=10)], ["a, modality label", "10"]),
    "one of several": ([Entry("a", "train", {"label": [np.asarray(1), np.asarray(-1)]})], ["a, modality label"]),
    "split": ([one("a", "holdout")], ["a is in split 'holdout'", "train"]),
    "modality": ([Entry("a", "train", {"colour": np.asarray(1)})], ["a has 'colour'", "label"]),
    "none": ([], ["no samples"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_samples_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    rows, words = BAD_SAMPLES[case]
    with pytest.raises(UserError) as said:
        write(tmp_path / "d", given("bad", LABEL, rows))
    assert all(word in str(said.value) for word in words)
    assert os.listdir(tmp_path) == []


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    sample = Entry("a", "train", {"image": np.zeros((3, 3))})
    with pytest.raises(UserError, match=r"a, modality image: .*\(3, 3\)"):
        write(tmp_path / "d", given("bad", MODALITIES, [sample]))


@pytest.mark.parametrize("name", ["_hidden", "Top", "a.b", "a/b", "", "ä"])
def test_modality_names_that_webdataset_would_change_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="modality"):
        write(tmp_path / "d", given("bad", {name: Label(classes=10)}, [Entry("a", "train", {name: np.asarray(1)})]))


def test_64_modalities_and_no_more(tmp_path: Path) -> None:
    def corpus(count: int) -> Corpus:
        names = [f"m{i}" for i in range(count)]
        entry = Entry("a", "train", {names[-1]: np.asarray(1)})
        return given("many", {n: Label(classes=2) for n in names}, [entry])

    write(tmp_path / "d", corpus(64))
    assert open_manifest(tmp_path / "d").patterns(range(1)).tolist() == [2**63]
    with pytest.raises(UserError, match="at most 64"):
        write(tmp_path / "e", corpus(65))


def test_prepare_keeps_what_is_whole_and_refuses_what_is_not(digits_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "digits"
    shutil.copytree(digits_dir, data)
    before = {p.name: p.stat().st_mtime_ns for p in data.iterdir()}
    assert prepare("digits", data).fingerprint == open_manifest(digits_dir).fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in data.iterdir()} == before
    (data / "val-000000.tar").unlink()
    with pytest.raises(UserError, match="not empty"):
        prepare("digits", data)
    with pytest.raises(UserError, match="digits"):
        prepare("digit", tmp_path / "other")
