"""A user's own files that are not right: settings and files are named, cells take their samples alone."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from pipeline.corpora.files import FILES
from tests.pipeline.userfiles import (
    ALONE,
    JPEG,
    NPY,
    PNG,
    held,
    make_csv,
    make_dataset,
    make_parquet,
    picture,
    prepare,
    rows,
    skipped,
)

# Settings

BAD_SETTINGS: dict[str, tuple[str, str]] = {
    "no TOML": ("[data", r"pairstream\.toml: not TOML \("),
    "no data": ("[modalities.label]\nkind = 'label'", r"pairstream\.toml: needs a table \[data\]"),
    "no modalities": ("[data]\ntable = 't.csv'", r"needs a table \[modalities\.NAME\]"),
    "another table": (ALONE + "[splits]\nval = 1", r"toml splits: no such key"),
    "another key": (ALONE.replace("val", "vall"), r"toml: \[data\] vall: no such key; did you mean 'val'"),
    "no place": (ALONE.replace("table = ", "key = "), r"\[data\]: say one of folder, table and dataset, not none"),
    "two places": (ALONE.replace("table", "folder = '.'\ntable"), r"\[data\]: say one of .*, not folder and table"),
    "a folder's key": (ALONE.replace("table", "key = 'id'\nfolder"), "key is a column of a table, a folder has none"),
    "too large shares": (ALONE.replace("val = 0", "val = 1"), "val and test are shares .* leave some to train on"),
    "no share": (ALONE.replace("val = 0", "val = 'a'"), r"\[data\] val: Input should be a valid number.*\(got 'a'\)"),
    "no number for a share": (ALONE.replace("val = 0", "val = nan"), "val and test are shares .* leave some to train"),
    "a quote as delimiter": (ALONE.replace("val = 0", "delimiter = '\"'"), "neither a quote nor the end of a line"),
    "a list of kinds": (ALONE.replace('"label"', '["label"]'), r"kind: unknown kind \['label'\]"),
    "long delimiter": (ALONE.replace("val = 0", "delimiter = ', '"), "delimiter is one letter"),
    "no kind": (ALONE.replace("kind", "#"), r"\[modalities\.label\] kind: say which; known are: image, label"),
    "another kind": (ALONE.replace('"label"', '"lable"'), "kind: unknown kind 'lable'; did you mean 'label'"),
    "another name": (ALONE.replace("s.label", "s.Label"), r"\[modalities\.Label\]: name a modality with small letters"),
    "no table": (ALONE.replace("[modalities.label]\nkind", "[modalities]\nlabel"), r"label\]: needs lines like kind ="),
    "another setting": (ALONE + "clases = 3", r"\[modalities\.label\] clases: no such key; did you mean 'classes'"),
    "a folder's setting": (ALONE + "extensions = ['x']", "extensions: no such key"),
    "a class twice": (ALONE + "classes = ['1', 1]", r"\[modalities\.label\]: classes has '1' twice"),
    "of a network": (ALONE + "hidden = [1, 'b']", r"label\] hidden: Input should be a valid integer.*\(got 'b'\)"),
    "refused by it": (ALONE + "hidden = [0]", r"label\]: classes must be at least 1, and hidden must hold"),
    "no size": (ALONE.replace('"label"', '"image"'), r"\[modalities\.label\] size: Field required"),
    "three sizes": (ALONE.replace('"label"', '"image"\nsize = [1, 2, 3]'), "size: Tuple should have at most 2 items"),
    "no fit": (ALONE.replace('"label"', '"image"\nsize = [1, 2]\nfit = "x"'), "fit: Input should be 'crop' or"),
    "levels": (ALONE.replace('"label"', '"image"\nsize = [1, 2]\nlevels = 3'), "levels: no such key"),
    "two columns": (ALONE.replace('"label"', '"features"\ncolumn = "a"\ncolumns = ["a"]'), "say column or columns"),
    "columns' count": (ALONE.replace('"label"', '"features"\ncount = 3\ncolumns = ["a"]'), "leave count away"),
    "columns' names": (ALONE.replace('"label"', '"attributes"\nnames = ["a"]\ncolumns = ["a"]'), "leave names away"),
    "no separator": (ALONE.replace('"label"', '"attributes"\nseparator = ""'), "separator is empty"),
    "no column": (ALONE + "column = 'tagg'", r"label\] column: t\.csv has no column 'tagg'; did you mean 'tag'"),
    "no key": (ALONE.replace("val = 0", "key = 'ids'"), r"\[data\] key: t\.csv has no column 'ids'; did you mean 'id'"),
    "no table file": (ALONE.replace("t.csv", "*.parquet"), r"\[data\] table: there is no file '\*\.parquet' in "),
    "packed": (ALONE.replace("t.csv", "t.gz"), r"t\.gz: a table is a file \.csv, \.tsv or \.parquet"),
    "column twice": (ALONE + "column = 'two'", r"t\.csv has 2 columns 'two': give them different names"),
    "own split": (ALONE.replace("test = 0", "split = 'split'"), r"\[data\] val: the data have a split val of their"),
    "key twice": (ALONE.replace("val = 0", "key = 'tag'"), "two samples have the key 'x': keys have to differ"),
    "no folder": (ALONE.replace("table = \"t.csv\"", "folder = 'x'"), r"/x is no directory"),
    "an empty folder": (ALONE.replace('table = "t.csv"', "folder = '.'"), r"holds no file of a modality: .*KEY\.label"),
    "no data set": (ALONE.replace("table", "dataset"), r"t\.csv/state\.json cannot be read .*save_to_disk"),
    "no values": (ALONE + "column = 'none'", r"\[modalities\.label\]: no value of it can be read in the data"),
    "no texts": (ALONE.replace('"label"', '"text"\ncolumn = "none"'), r"\[modalities\.label\]: there is no text to"),
    "no vectors": (ALONE.replace('"label"', '"features"'), r"\[modalities\.label\]: no value of it can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_are_not_right_are_named(tmp_path: Path, case: str) -> None:
    toml, sentence = BAD_SETTINGS[case]
    (tmp_path / "t.csv").write_text("id,label,tag,two,two,split,none\n0,a,x,1,1,train,\n1,b,x,1,1,val,\n")
    (tmp_path / "t.gz").write_bytes(b"")
    with pytest.raises(UserError, match=sentence) as said:
        prepare(tmp_path, toml)
    assert str(tmp_path) in str(said.value) or "t.csv" in str(said.value)
    assert not (tmp_path / "out").exists()


def test_without_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairstream\.toml: No such file or directory: write there what"):
        FILES.entries(tmp_path)


# Cells that cannot be used


PHOTO, LABEL, WORDS = 'kind = "image"\nsize = [4, 4]', 'kind = "label"\nclasses = ["a", "b"]', 'kind = "sentences"'
TRAITS, VECTOR = 'kind = "attributes"\nnames = ["a", "b"]', 'kind = "features"'
HEADER = b"IHDR" + (2**20).to_bytes(4) * 2 + PNG[24:29]
BOMB = PNG[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4) + PNG[33:]
BAD_CELLS: dict[str, tuple[str, Any, Any, str]] = {
    "no class": (LABEL, "a", "q", "'q' is none of the 2 classes"),
    "no picture there": (PHOTO, "p.png", "gone.png", r"gone\.png: No such file or directory"),
    "a folder": (PHOTO, "p.png", "out", "out: No such file or directory|out: Is a directory"),
    "no name": (PHOTO, "p.png", "p\0.png", "embedded null"),
    "a text for a picture": (PHOTO, "p.png", "pairstream.toml", r"pairstream\.toml is no readable picture"),
    "no picture": (PHOTO, PNG, b"<html", "5 bytes that are no readable picture"),
    "an empty picture": (PHOTO, PNG, b"", "0 bytes that are no readable picture"),
    "a cut PNG": (PHOTO, PNG, PNG[:45], "bytes that are no readable picture"),
    "a cut JPEG": (PHOTO, PNG, JPEG[:-20], "bytes that are no readable picture"),
    "a huge picture": (PHOTO, PNG, BOMB, "bytes that are no picture to be opened: Image size"),
    "floats": (PHOTO, PNG, picture(np.ones((4, 4), np.float32), "tiff"), "levels that are no whole numbers"),
    "32 bits": (PHOTO, PNG, picture(np.full((4, 4), 2**16, np.int32), "tiff"), "levels of 32 bits"),
    "another length": (VECTOR, [1.0, 2.0, 3.0], [1.0, 2.0], "expected 3 numbers, got 2"),
    "none at all": (VECTOR, [1.0, 2.0, 3.0], [], "expected 3 numbers, got 0"),
    "a number missing": (VECTOR, [1.0, 2.0, 3.0], [1.0, None, 3.0], "numbers that are not finite"),
    "a large number": (VECTOR, [1.0, 2.0, 3.0], [1.0, 2.0, 1e39], "numbers that are not finite in 32 bits"),
    "words": (VECTOR, "1 2", "1 two", "what is there are no numbers"),
    "a cut .npy": (VECTOR, NPY.getvalue(), NPY.getvalue()[:-1], r"no readable \.npy file"),
    "no .npy there": (VECTOR, "1 2", "x.npy", r"x\.npy: No such file"),
    "no attribute": (TRAITS, "a|b", "a|c", "'c' is none of the 2 attributes"),
    "no attribute in a list": (TRAITS, ["a"], ["c"], "'c' is none of the 2 attributes"),
}  # fmt: skip


def left_out(tmp_path: Path, column: pa.Array, setting: str) -> str:
    """The reason for which the second of three rows is left out; the others are there."""
    (tmp_path / "p.png").write_bytes(PNG)
    pq.write_table(pa.table({"x": column}), tmp_path / "t.parquet")
    toml = f'[data]\ntable = "t.parquet"\nval = 0\ntest = 0\n[modalities.x]\n{setting}\n'
    assert prepare(tmp_path, toml).skipped == 1
    assert held(tmp_path / "out").keys() == {"t/000000", "t/000002"}
    return skipped(tmp_path / "out")["t/000001"]


@pytest.mark.parametrize("case", BAD_CELLS)
def test_a_cell_that_cannot_be_used_takes_its_row_alone(tmp_path: Path, case: str) -> None:
    setting, good, bad, sentence = BAD_CELLS[case]
    reason = left_out(tmp_path, pa.array([good, bad, good]), setting)
    assert re.fullmatch(rf"t\.parquet, row 1, column x: .*({sentence}).*", reason)


def test_a_text_that_is_no_utf8_takes_its_row_alone(tmp_path: Path) -> None:
    raw = pa.array([b"a b", b"a \xff", b"b a"])
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    assert left_out(tmp_path, texts, WORDS) == "t.parquet, row 1, column x: the text is no UTF-8"


@pytest.mark.parametrize(("setting", "sentence"), [(WORDS, "there is no text"), (VECTOR, "no value of it can be read")])
def test_a_column_of_another_kind(tmp_path: Path, setting: str, sentence: str) -> None:
    """Lists of lists are neither texts nor vectors."""
    pq.write_table(pa.table({"x": pa.array([[[1.0]], [[2.0]]])}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=sentence):
        prepare(tmp_path, f'[data]\ntable = "t.parquet"\n[modalities.x]\n{setting}\n')


# Files at fault


def cut(name: str, size: int) -> Callable[[Path], object]:
    """Leave the first bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def text_of(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def elsewhere(folder: Path) -> None:
    for number in (0, 1):
        (folder / f"x{number}").mkdir()
        (folder / f"part-{number}.parquet").rename(folder / f"x{number}" / "p.parquet")
    toml = folder / "pairstream.toml"
    toml.write_text(toml.read_text().replace("part-*", "x*/p"))


STATE = "saved/state.json"
BAD_FILES: dict[str, tuple[Any, Callable[[Path], object], str]] = {
    "an empty table": (make_csv, text_of("train.csv", ""), r"train\.csv is empty: its first line has to name"),
    "an open quote": (make_csv, text_of("train.csv", 'id,label\n1,a\n2,"b\n3,c\n'), "csv, line 3: where this row ends"),
    "a stray quote": (make_csv, text_of("train.csv", 'id,label\n1,"a"b\n'), "line 2: where this row ends .*mend it"),
    "a table of names": (make_csv, text_of("train.csv", "id,photo,caption,label\n"), r"train\.csv holds no rows"),
    "no Parquet": (make_parquet, text_of("part-1.parquet", "id"), r"part-1\.parquet is no whole Parquet file \("),
    "a cut Parquet": (make_parquet, cut("part-1.parquet", 900), r"part-1\.parquet is no whole Parquet file \("),
    "a cut Arrow file": (make_dataset, cut("saved/data-00001-of-00002.arrow", 900), r"no whole Arrow stream \(.*save"),
    "no Arrow file": (make_dataset, lambda folder: (folder / STATE).unlink(), r"state\.json cannot be read \(.*save_"),
    "no JSON": (make_dataset, text_of(STATE, "{"), r"state\.json cannot be read \(.*save_to_disk"),
    "other JSON": (make_dataset, text_of(STATE, "[]"), r"state\.json is not what `save_to_disk` writes"),
    "no data files": (make_dataset, text_of(STATE, '{"_data_files": null}'), r"state\.json is not .*: it names no"),
    "no names of files": (make_dataset, text_of(STATE, '{"_data_files": [{}]}'), r"state\.json is not .* it names"),
    "no features": (make_dataset, text_of("saved/dataset_info.json", '{"features": [1]}'), "its features have no"),
    "splits of nothing": (make_dataset, text_of("saved/dataset_dict.json", '{"splits": null}'), "it has no list of s"),
    "a selection": (make_dataset, text_of(STATE, '{"_indices_data_files": [{}]}'), r"save it again after `flatten_ind"),
    "no split": (make_dataset, text_of("saved/dataset_dict.json", '{"splits": ["x"]}'), "saved holds no rows"),
    "two folders": (make_parquet, elsewhere, "the files of .* have to lie in one folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_not_right_are_named(tmp_path: Path, case: str) -> None:
    make, spoil, sentence = BAD_FILES[case]
    (tmp_path / "pairstream.toml").write_text(make(tmp_path, rows()))
    spoil(tmp_path)
    with pytest.raises(UserError, match=sentence) as said:
        prepare(tmp_path, (tmp_path / "pairstream.toml").read_text())
    assert str(tmp_path) in str(said.value)
    assert not (tmp_path / "out").exists()


def test_damage_within_a_table_is_no_end_of_it(tmp_path: Path) -> None:
    toml = make_parquet(tmp_path, rows())
    data = bytearray((tmp_path / "part-1.parquet").read_bytes())
    data[10:700] = bytes(690)
    (tmp_path / "part-1.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"part-1\.parquet cannot be read after row 0 \("):
        prepare(tmp_path, toml)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    from pipeline.corpora import prepare as prepare_corpus

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "pairstream.toml").write_text(ALONE.replace("t.csv", "*.csv"))
    (tmp_path / "raw" / "t.csv").mkdir()
    with pytest.raises(UserError, match=r"raw/t\.csv cannot be read: Is a directory"):
        prepare_corpus("files", tmp_path / "out", source=tmp_path / "raw")


def test_where_no_sample_can_be_used_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label\ngone.png\n")
    with pytest.raises(UserError, match=r"no sample can be used; the first, t/000000: .*No such file or directory$"):
        prepare(tmp_path, ALONE.replace('"label"', '"image"\nsize = [4, 4]'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairstream.toml", "t.csv"]


@pytest.mark.parametrize("text", ['"label"\n"a"\n"b"\n', "label\na\nb\n"])
def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path: Path, text: str) -> None:
    """Windows writes it in front of tables, and of settings."""
    (tmp_path / "t.csv").write_text("\ufeff" + text)
    prepare(tmp_path, "\ufeff" + ALONE)
    assert held(tmp_path / "out") == {"t/000000": {"label": 0}, "t/000001": {"label": 1}}


def test_nan_is_no_class(tmp_path: Path) -> None:
    reason = left_out(tmp_path, pa.array([1.0, np.nan, 2.0]), 'kind = "label"')
    assert reason == "t.parquet, row 1, column x: nan is no number"
    assert json.loads((tmp_path / "out" / "x.names.json").read_text()) == ["1", "2"]


def test_equal_numbers_have_one_order(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label\n" + "".join(f"{'0' * n}1\n" for n in reversed(range(9))))
    prepare(tmp_path, ALONE)
    assert json.loads((tmp_path / "out" / "label.names.json").read_text()) == sorted(f"{'0' * n}1" for n in range(9))


def test_flags_as_pandas_writes_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1.0,0.0\n,\n0.0,1\n")
    prepare(tmp_path, ALONE.replace('"label"', '"attributes"\ncolumns = ["a", "b"]'))
    assert held(tmp_path / "out") == {"t/000000": {"label": [1, 0]}, "t/000002": {"label": [0, 1]}}


def test_a_mark_of_the_byte_order_is_no_part_of_a_label(tmp_path: Path) -> None:
    (tmp_path / "a.label.txt").write_text("\ufeffowl")
    (tmp_path / "b.label.txt").write_text("owl\r\n")
    prepare(tmp_path, ALONE.replace('table = "t.csv"', 'folder = "."'))
    assert held(tmp_path / "out") == {"a": {"label": 0}, "b": {"label": 0}}
