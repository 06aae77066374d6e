"""A user's own files as a corpus: from all forms that they may have, to the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpora import files
from pipeline.corpora.files import settings
from pipeline.description import described
from pipeline.manifest import open_manifest
from pipeline.tokenizers import Tokenizer
from tests.pipeline.userfiles import (
    ALONE,
    NPY,
    PNG,
    expected,
    grey,
    held,
    make_csv,
    make_dataset,
    make_folder,
    make_parquet,
    picture,
    prepare,
    rows,
    save_to_disk,
    skipped,
    splits,
    write_csv,
)


@pytest.mark.parametrize("make", [make_csv, make_parquet, make_dataset, make_folder])
def test_a_user_s_files_are_read_back(tmp_path: Path, make: Callable[[Path, list[dict[str, Any]]], str]) -> None:
    """Every pattern of presence; nothing but the rows without anything is left out."""
    samples = rows()
    written = prepare(tmp_path, make(tmp_path, samples))
    assert held(tmp_path / "out") == expected(samples)
    bare = {row["id"] for row in samples if not any((row["photo"], row["caption"], row["label"]))}
    assert bare
    if make is make_folder:  # knows of no row
        assert (written.samples, written.skipped) == (24 - len(bare), 0)
    else:
        assert (written.samples, written.skipped) == (24 - len(bare), len(bare))
        assert skipped(tmp_path / "out").keys() == bare
        assert all(reason.endswith(": nothing is there") for reason in skipped(tmp_path / "out").values())
    manifest = open_manifest(tmp_path / "out")
    assert json.loads(manifest.file("label.names.json")) == ["cat", "dog", "eel"]
    assert "label: 3 classes: cat, dog, eel" in written.notes


def test_all_forms_give_the_same_splits(tmp_path: Path) -> None:
    """By the hashes of the keys: a quarter each of all samples (three are left out), whatever holds them."""
    found = []
    for number, make in enumerate((make_csv, make_parquet, make_dataset)):
        (tmp_path / str(number)).mkdir()
        prepare(tmp_path / str(number), make(tmp_path / str(number), rows()))
        found.append(splits(open_manifest(tmp_path / str(number) / "out")))
    assert found[0] == found[1] == found[2]
    assert {name: len(keys) for name, keys in found[0].items()} == {"train": 10, "val": 5, "test": 6}


def test_the_description_is_whole(tmp_path: Path) -> None:
    """What the module says of pairstream.toml is TOML with keys that are known, and none is left out."""
    said = str(files.__doc__)
    toml = said[said.index("    [data]") : said.index("Any other setting")]
    (tmp_path / "pairstream.toml").write_text(toml.replace("\n    # ", "\n#"))
    kinds = {one.kind for one in settings.read(tmp_path).modalities.values()}
    assert kinds | {"text"} == settings.KINDS.keys()
    for kind in (settings.Data, settings.Place, *(own for own, _ in settings.KINDS.values())):
        for field in fields(kind):
            assert f"    {field.name} = " in toml or f"    # {field.name} = " in toml, f"{kind.__name__}.{field.name}"


def test_files_that_were_changed_are_read_anew(tmp_path: Path) -> None:
    for turn, label in enumerate(("cat", "dog")):
        (tmp_path / "t.csv").write_text(f"label\n{label}\n")
        prepare(tmp_path, ALONE + 'classes = ["cat", "dog"]', tmp_path / str(turn))
        assert held(tmp_path / str(turn)) == {"t/000000": {"label": turn}}


@pytest.mark.slow
def test_other_processes_write_the_same_bytes(tmp_path: Path) -> None:
    toml = make_csv(tmp_path, rows(80))
    for workers in (1, 2):
        prepare(tmp_path, toml, tmp_path / str(workers), workers, 16384)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


CSV = """id,part,photo,label,tame,striped,caption
a,train,p.png,cat,1,no,"two
lines, quoted ""so"" too"
b,validation,p.png,,true,YES,
c,Test,,dog,0,0,lost

,train,,cat,,,no key
d,holdout,,cat,,,no split
e,train,,cat
f,train,gone.png,cat,,,no photo
g,train,,eel,1,maybe,no trait
h,train,,eel,1,,half a trait
i,train,,eel,,,\xff
j,,,eel,,,empty split
k,train,,eel,,,last
"""
ALL_OF_CSV = """
[data]
table = "t.csv"
key = "id"
split = "part"
[modalities.photo]
kind = "image"
size = [4, 4]
[modalities.label]
kind = "label"
[modalities.traits]
kind = "attributes"
columns = ["tame", "striped"]
[modalities.caption]
kind = "text"
"""


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_csv_names_the_line_of_what_it_cannot_use(tmp_path: Path, delimiter: str) -> None:
    """As Excel writes it: with a mark of its own in front, and line ends of two letters."""
    (tmp_path / "p.png").write_bytes(PNG)
    toml = ALL_OF_CSV
    if delimiter == "\t":
        toml = toml.replace("t.csv", "t.tsv")
    if delimiter == ";":
        toml = toml.replace("[modalities.photo]", 'delimiter = ";"\n[modalities.photo]')
    name = "t.tsv" if delimiter == "\t" else "t.csv"
    data = CSV.replace("lines, q", "lines@ q").replace(",", delimiter).replace("@", ",").encode("latin-1")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    written = prepare(tmp_path, toml)
    assert splits(open_manifest(tmp_path / "out")) == {"train": ["a", "k"], "val": ["b"], "test": ["c"]}
    photo = np.full((3, 4, 4), 9 / 255, np.float32).tolist()
    assert held(tmp_path / "out") == {
        "a": {"photo": photo, "label": 0, "traits": [1, 0], "caption": 'two lines, quoted "so" too'},
        "b": {"photo": photo, "traits": [1, 1]},
        "c": {"label": 1, "traits": [0, 0], "caption": "lost"},
        "k": {"label": 2, "caption": "last"},
    }
    assert written.skipped == 9
    assert {reason.replace(name, "t") for reason in skipped(tmp_path / "out").values()} == {
        "t, line 6, column id: empty, and every sample needs one",
        "t, line 7, column id: empty, and every sample needs one",
        "t, line 8, column part: 'holdout' is no split; known are train, training, val, valid, validation, dev, test",
        "t, line 9: 4 cells, and the first line names 7 columns",
        "t, line 10, column photo: gone.png: No such file or directory",
        "t, line 11, traits: 'maybe' is neither 1, true, yes nor 0, false, no",
        "t, line 12, column striped: empty, and other columns of traits are not",
        "t, line 13, column caption: the text is no UTF-8",
        "t, line 14, column part: empty, and every sample needs one",
    }


def test_splits_of_a_data_set(tmp_path: Path) -> None:
    """Those that it has; validation data come out of its training data, and what is none of them is left out."""
    (tmp_path / "saved").mkdir()
    samples = rows(80)
    for name, mine in (("train", samples[:40]), ("test", samples[40:60]), ("more", samples[60:])):
        save_to_disk(tmp_path / "saved" / name, mine, ["eel", "dog", "cat"])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test", "more"]}')
    toml = make_dataset(tmp_path / "other", samples).replace('key = "id"\n', "").replace("test = 0.25\n", "")
    written = prepare(tmp_path, toml)
    found = splits(open_manifest(tmp_path / "out"))
    assert found["test"] == [f"test/{n:06d}" for n in range(20) if (n + 41) % 8]
    assert sorted(found["train"] + found["val"]) == [f"train/{n:06d}" for n in range(40) if (n + 1) % 8]
    assert 5 <= len(found["val"]) <= 10
    kept = held(tmp_path / "out")
    assert all("label" not in kept[f"train/{n:06d}"] for n in range(3))
    labels = [["eel", "dog", "cat"].index(str(samples[n]["label"])) for n in (3, 4, 5)]
    assert [kept[f"train/{n:06d}"]["label"] for n in (3, 4, 5)] == labels, "the data set's own numbers"
    assert written.notes[:2] == (
        "split 'more' is left out: it is none of train, training, val, valid, validation, dev, test",
        "val: 10 of 40 training samples, by the hashes of their keys",
    )
    assert "label: 3 classes: eel, dog, cat" in written.notes


def test_files_in_a_folder(tmp_path: Path) -> None:
    """Endings with and without the modality's name, in folders, in capitals; others are counted."""
    held_files = {
        "a/1.png": PNG, "a/1.TXT": b"eel", "a/2.JPG": picture(grey(3), "jpeg", quality=100),
        "b.c/3.v.npy": NPY.getvalue(), "b.c/3.txt": b"dog\n", "4.v.csv": b"1, 2, 3", "4.v.txt": b"1 2 3", "5.txt": b"",
        "6.v.old.npy": b"", ".txt": b"cat", "README": b"", "x.md": b"",
    }  # fmt: skip
    for name, data in held_files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    written = prepare(
        tmp_path,
        '[data]\nfolder = "."\nval = 0\ntest = 0\n'
        '[modalities.photo]\nkind = "image"\nsize = [4, 4]\nextensions = ["png", ".jpg"]\n'
        '[modalities.label]\nkind = "label"\nextensions = ["txt"]\n[modalities.v]\nkind = "features"\n',
    )
    photo = np.full((3, 4, 4), 9 / 255, np.float32).tolist()
    found = held(tmp_path / "out")
    changed = next(key for key in found if key.startswith("b-c-3-"))
    assert found == {
        "a/1": {"photo": photo, "label": 1}, "a/2": {"photo": photo}, changed: {"label": 0, "v": [0, 1, 2]}
    }  # fmt: skip
    assert written.skipped == 2
    assert skipped(tmp_path / "out") == {
        "4": "4.v.csv and 4.v.txt are the same modality of one key",
        "5": "5.txt: nothing is in it",
    }
    assert written.notes[:2] == (
        "4 files belong to no modality, '.txt' for one",
        f"1 keys do not fit a shard and were changed: 'b.c/3' is {changed}",
    )


def test_keys_that_a_shard_cannot_hold(tmp_path: Path) -> None:
    """Each stays one of its own, and the same in every call."""
    odd = ["a b", "a.b", "a/b", "ä", "x" * 200, "x" * 201, "__x", "a//b", "/a", "日本", "日"]
    write_csv(tmp_path / "t.csv", [{"id": key, "label": str(n)} for n, key in enumerate(odd)])
    written = prepare(tmp_path, ALONE.replace("val = 0", 'val = 0\nkey = "id"'))
    found = held(tmp_path / "out")
    assert sorted(values["label"] for values in found.values()) == sorted(range(11))
    assert "a/b" in found
    assert written.notes[0].startswith("10 keys do not fit a shard and were changed: 'a b' is a-b-")


def test_attributes_and_vectors_in_one_column(tmp_path: Path) -> None:
    """Names between separators or in lists; what is not there is missing, and none of the attributes is not missing."""
    samples = [
        {"tags": "big|red", "list": ["x"], "v": [1.5, 2.0], "one": 3.0},
        {"tags": "|", "list": [], "v": None, "one": None},
        {"tags": " red ", "list": None, "v": [0.0, -1.0], "one": 4.5},
        {"tags": None, "list": ["y", "x"], "v": None, "one": None},
    ]
    pq.write_table(pa.Table.from_pylist(samples), tmp_path / "t.parquet")
    prepare(
        tmp_path,
        '[data]\ntable = "t.parquet"\nval = 0\ntest = 0\n[modalities.tags]\nkind = "attributes"\n'
        '[modalities.list]\nkind = "attributes"\nnames = ["y", "x"]\n[modalities.v]\nkind = "features"\n'
        '[modalities.w]\nkind = "features"\ncolumns = ["one"]\n',
    )
    assert held(tmp_path / "out") == {
        "t/000000": {"tags": [1, 1], "list": [0, 1], "v": [1.5, 2.0], "w": [3.0]},
        "t/000001": {"tags": [0, 0], "list": [0, 0]},
        "t/000002": {"tags": [0, 1], "v": [0.0, -1.0], "w": [4.5]},
        "t/000003": {"list": [1, 1]},
    }


def test_labels_of_all_types(tmp_path: Path) -> None:
    """Whole numbers among which some are missing are floats in pandas; found ones are sorted as numbers."""
    table = {"a": pa.array([10.0, None, 9.0]), "b": pa.array([True, False, None]), "c": pa.array([3, 3, 20])}
    table["d"] = pa.array(["x", None, "y"]).dictionary_encode()
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    label = '[modalities.{0}]\nkind = "label"\n'
    toml = '[data]\ntable = "t.parquet"\nval = 0\ntest = 0\n'
    written = prepare(tmp_path, toml + "".join(map(label.format, "abcd")))
    assert list(held(tmp_path / "out").values()) == [
        {"a": 1, "b": 1, "c": 0, "d": 0}, {"b": 0, "c": 0}, {"a": 0, "c": 1, "d": 1},
    ]  # fmt: skip
    assert {"a: 2 classes: 9, 10", "b: 2 classes: False, True"} <= set(written.notes)


def test_sentences_are_cut_and_learnt_from_training_data_alone(tmp_path: Path) -> None:
    split = ["train"] * 6 + ["test", "val"]
    write_csv(tmp_path / "t.csv", [{"part": p, "x": {"train": "a b", "test": "ab" * 9, "val": "q"}[p]} for p in split])
    toml = '[data]\ntable = "t.csv"\nsplit = "part"\n[modalities.x]\nkind = "text"\nlength = 5\n'
    written = prepare(tmp_path, toml)
    manifest = open_manifest(tmp_path / "out")
    (modality,) = described(manifest).values()
    tokenizer = Tokenizer(manifest.file("x.model"))
    assert tokenizer.size == getattr(modality, "vocabulary", None) == 6, "end, start, unknown, a space, a and b"
    assert f"x: {tokenizer.size} tokens learnt from the training texts; 1 texts of more than 4 are cut" in written.notes
    assert [held(tmp_path / "out")[f"t/{n:06d}"]["x"] for n in (0, 6)] == ["a b", "aba"]


def test_settings_of_the_modality_go_into_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,v\na,1 2\nb,3 4\n")
    more = 'hidden = [7]\n[modalities.v]\nkind = "features"\nlikelihood = "gaussian"\nscale = 0.5\n'
    prepare(tmp_path, ALONE + more)
    label, v = described(open_manifest(tmp_path / "out")).values()
    assert (label.kind, getattr(label, "hidden", None), getattr(label, "classes", None)) == ("label", (7,), 2)
    assert (getattr(v, "count", None), getattr(v, "likelihood", None), getattr(v, "scale", None)) == (
        2,
        "gaussian",
        0.5,
    )
