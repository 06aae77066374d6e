"""A sample that cannot be used is left out and counted; the others are not lost. What is stored beside the shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import Unusable, UserError
from modalities import Attributes, Image, Label
from pipeline.corpora.corpus import Corpus, Entry, Values
from pipeline.description import described
from pipeline.manifest import open_manifest
from pipeline.verifying import foreign_shards, verify
from pipeline.writing import Written, write
from pipeline.writing.merging import SKIPPED
from tests.pipeline.tiny import LABEL, given, one


def load(entry: Entry) -> Values:
    if entry.source % 7 == 3:
        raise Unusable(f"line {entry.source} is broken")
    return {"label": np.asarray(entry.source % 10)}


def corpus(count: int, first: int = 0) -> Corpus:
    entries = [Entry(f"k{n:03d}", "train" if n % 4 else "val", n) for n in range(first, count)]
    return replace(given("broken", LABEL, []), entries=lambda _: entries, load=load)


@pytest.mark.parametrize(("size", "workers"), [(2**20, 1), (4096, 1), (4096, 2)])
def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path, size: int, workers: int) -> None:
    heard: list[tuple[int, int]] = []
    written = write(tmp_path / "d", corpus(60), size, workers, lambda done, total: heard.append((done, total)))
    manifest = open_manifest(tmp_path / "d")
    good = [n for n in range(60) if n % 7 != 3]
    assert (written.samples, written.skipped) == (len(good), 60 - len(good))
    assert sorted(manifest.keys(range(len(manifest)))) == [f"k{n:03d}" for n in good]
    assert verify(manifest) == []
    lines = [json.loads(line) for line in (tmp_path / "d" / SKIPPED).read_text().splitlines()]
    assert sorted((line["key"], line["reason"]) for line in lines) == [
        (f"k{n:03d}", f"line {n} is broken") for n in range(60) if n % 7 == 3
    ]
    assert heard[-1] == (60, 60)


def test_what_was_left_out_is_finished_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is cut off after its shards are written takes up shards that left samples out."""
    monkeypatch.setattr("pipeline.writing.merging.write_manifest", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", corpus(60), 4096, 1)
    monkeypatch.undo()
    written = write(tmp_path / "d", corpus(60), 4096, 1)
    assert (written.samples, written.skipped) == (0, 9)
    assert written.kept == len(open_manifest(tmp_path / "d").shards)


def _interrupted(*_: object) -> str:
    raise KeyboardInterrupt


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample can be used; the first, k003: line 3 is broken"):
        write(tmp_path / "d", corpus(4, first=3))
    assert not (tmp_path / "d").exists()


def test_files_beside_the_shards_belong_to_the_data(tmp_path: Path) -> None:
    plain = given("tiny", LABEL, [one("a")])
    prints = {}
    for name, files in {"plain": {}, "one": {"a.model": b"1"}, "two": {"a.model": b"2"}}.items():
        prints[name] = _written(tmp_path / name, replace(plain, files=files)).fingerprint
    assert len(set(prints.values())) == 3
    manifest = open_manifest(tmp_path / "one")
    assert manifest.file("a.model") == b"1"
    (tmp_path / "one" / "a.model").write_bytes(b"2")
    with pytest.raises(UserError, match=r"one/a\.model is not what was written with these shards; run"):
        manifest.file("a.model")
    (tmp_path / "one" / "a.model").unlink()
    with pytest.raises(UserError, match=r"one/a\.model cannot be read \(no such file\)"):
        manifest.file("a.model")
    (damage,) = verify(manifest)
    assert (damage["shard"], damage["key"]) == ("a.model", "")
    assert "one/a.model cannot be read" in str(damage["reason"])
    assert foreign_shards(manifest, [damage]) == []


def _written(out: Path, made: Corpus) -> Written:
    return write(out, made)


def test_the_modalities_settings_are_written_down(tmp_path: Path) -> None:
    modalities = {"face": Image(8, 8, channels=3, codec="png"), "flags": Attributes(count=3), "label": Label(classes=4)}
    entry = Entry("a", "train", {"flags": np.array([0, 1, 1])})
    write(tmp_path / "d", given("tiny", modalities, [entry]))
    manifest = open_manifest(tmp_path / "d")
    assert described(manifest) == modalities
    assert list(described(manifest)) == list(modalities)
    file = tmp_path / "d" / "modalities.json"
    file.write_text(file.read_text().replace('"classes": 4', '"classes": "four"'))
    with pytest.raises(UserError, match=r"modalities\.json: label\.label\.classes: .*valid integer"):
        described(manifest)
    file.unlink()
    with pytest.raises(UserError, match=r"modalities\.json cannot be read \(no such file\): `pairstream prepare`"):
        described(manifest)
