"""`pairstream inspect`: what a directory holds, what is damaged in it, and what a view makes of it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import look
from jobs.cli import main
from pipeline import verifying
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.sheet import choose
from pipeline.stream import Stream
from tests.infra.servers import Faulty
from tests.pipeline.tiny import MODALITIES, NAMES, held, make


def inspect(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, dict[str, Any]]:
    """(exit code, what was printed, the closing object)."""
    code = main(["inspect", *map(str, options), "--json"])
    said = capsys.readouterr().out
    return code, " ".join(said.split()), json.loads(said.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    assert main(["inspect", *map(str, options)]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A directory that has lost its shards: whatever is said of it stands in the manifest."""
    manifest = make(tmp_path_factory.mktemp("bare") / "d", 80)
    for shard in manifest.shards:
        (Path(manifest.directory) / shard.name).unlink()
    return manifest


def flip(manifest: Manifest, member: int) -> None:
    path = Path(manifest.directory) / manifest.shards[int(manifest.shard[member])].name
    data = bytearray(path.read_bytes())
    data[int(manifest.block[member]) * BLOCK] ^= 1
    path.write_bytes(data)


# Contents and damage


def test_what_a_directory_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make(tmp_path / "d", 80)
    code, said, found = inspect(capsys, manifest.directory)
    assert (code, found["damaged"]) == (0, [])
    assert "every member is what the manifest declares" in said
    assert found["fingerprint"] == manifest.fingerprint
    expected: dict[str, int] = {}
    for number in range(80):
        present = "+".join(held(number)) or "nothing"
        expected[present] = expected.get(present, 0) + 1
    assert found["patterns"]["train"] == expected
    labels = sum(len(str(number % 10)) for number in range(80) if held(number) == ["label"])
    assert f"│ train │ label │ 10 │ {labels} │" in said


def test_many_patterns_are_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "SHOWN", 3)
    _, said, found = inspect(capsys, make(tmp_path / "d", 81).directory)
    assert len(found["patterns"]["train"]) == 8
    assert "… 8 patterns in all" in said
    assert said.count("│ train │") == 4
    assert f"│ train │ {'+'.join(held(80)) or 'nothing'} │ 11 │" in said, "the most frequent one is shown"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_damaged_members_are_printed_and_json_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    manifest = make(tmp_path / "d", 80)
    for member in range(0, 75, 3):
        flip(manifest, member)
    code, said, found = inspect(capsys, manifest.directory, "--workers", workers)
    assert code == 1
    assert len(found["damaged"]) == 25
    assert said.count("checksum differs") == 20 + 25
    assert "… 25 in all" in said
    first = found["damaged"][0]
    assert f"damaged train-000000.tar at byte {first['offset']}: {first['key']} {first['modality']}: checksum" in said
    assert "another data set" not in said
    assert inspect(capsys, manifest.directory, "--no-verify")[0] == 0


def test_a_shard_of_another_data_set_is_hinted_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make(tmp_path / "d", 80, shard_bytes=16_000)
    for shard in manifest.shards[:2]:
        path = tmp_path / "d" / shard.name
        path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    code, said, _ = inspect(capsys, manifest.directory)
    assert code == 1
    assert said.count("is this shard from another data set?") == 1
    assert f"{manifest.shards[0].name} and 1 more: nothing there is what was written" in said
    for shard in manifest.shards:
        (tmp_path / "d" / shard.name).unlink()
    assert "another data set" not in inspect(capsys, manifest.directory)[1], "what is missing is not another's"


def test_a_bar_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make(tmp_path / "d", 40).directory
    assert main(["inspect", directory]) == 0
    assert capsys.readouterr().err == ""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(verifying, "MEMBERS", 5)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["inspect", directory, "--json"]) == 0
    assert "verifying" in terminal.getvalue()
    assert "/s" in terminal.getvalue(), "the rate"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["damaged"] == []


def test_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    manifest = make(tmp_path / "d", 40)
    flip(manifest, 7)
    with closing(Faulty({path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()})) as server:
        code, _, found = inspect(capsys, server.url, "--view", "declared", "--rows", 3)
        here = inspect(capsys, manifest.directory, "--view", "declared", "--rows", 3)[2]
        assert (code, found.pop("directory")) == (1, server.url)
        assert found == {name: value for name, value in here.items() if name != "directory"}


# Sheets


def test_a_sheet_of_samples(digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sheet.svg"
    code, said, found = inspect(capsys, digits_dir, "--no-verify", "--sheet", file, "--samples", 3, "--split", "val")
    assert (code, found["sheet"]) == (0, str(file))
    assert f"samples drawn: {file}" in said
    title, *keys, name = re.findall("<!-- (.*) -->", file.read_text())[:5]
    assert (title, name) == ("digits, val: 3 of 269 samples", "top")
    manifest = open_manifest(digits_dir)
    assert set(keys) < set(manifest.keys(manifest.split("val")))
    assert "sheet" not in inspect(capsys, digits_dir, "--no-verify")[2]


def test_a_sheet_of_remote_and_of_damaged_data(
    digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    here, there = tmp_path / "here.png", tmp_path / "there.png"
    assert inspect(capsys, digits_dir, "--no-verify", "--sheet", here)[0] == 0
    files = {path.name: path.read_bytes() for path in digits_dir.iterdir()}
    with closing(Faulty(files)) as server:
        assert inspect(capsys, server.url, "--no-verify", "--sheet", there)[0] == 0
    assert here.read_bytes() == there.read_bytes()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    manifest = open_manifest(tmp_path)
    flip(manifest, int(manifest.first[choose(manifest, "train", 8)[0]]))
    code, _, found = inspect(capsys, tmp_path, "--sheet", tmp_path / "damaged.svg")
    assert (code, len(found["damaged"])) == (1, 1)
    assert (tmp_path / "damaged.svg").read_text().count("<!-- damaged -->") == 1


def test_a_sheet_of_what_nobody_describes(bare: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(bare.directory, "modalities.json").unlink()
    said = refused(capsys, bare.directory, "--no-verify", "--sheet", tmp_path / "sheet.png")
    assert "modalities.json cannot be read (no such file): `pairstream prepare` writes it" in said


def test_a_sheet_that_cannot_be_written_is_refused_before_the_data_are_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "gone is no directory" in refused(capsys, tmp_path / "no-data", "--sheet", tmp_path / "gone/sheet.png")
    assert "choose 1 to 50" in refused(capsys, tmp_path, "--sheet", tmp_path / "sheet.png", "--samples", 99)


# Views


@pytest.mark.parametrize(
    "options",
    [
        Pairing(view="declared"),
        Pairing(view="split", fraction=0.25),
        Pairing(view="keep-one", fraction=0.25),
        Pairing(view="keep", keep=0.4),
        Pairing(view="split", fraction=0.25, composition="balanced", complete_share=0.2),
    ],
)
def test_a_view_is_shown_as_training_would_see_it(
    bare: Manifest, capsys: pytest.CaptureFixture[str], options: Pairing
) -> None:
    given = ["--view", options.view, "--fraction", options.fraction, "--keep", options.keep, "--seed", 4]
    given += ["--composition", options.composition, "--complete-share", options.complete_share, "--batch", 20]
    code, said, found = inspect(capsys, bare.directory, "--no-verify", *given, "--rows", 50)
    assert code == 0
    shown = view(bare, "train", NAMES, options, 4, 20)
    assert found["view"] == shown.describe()
    assert found["empty"] == shown.empty >= 10, "every eighth sample holds nothing at all"
    assert {one["pool"]: one["rows"] for one in found["pools"]} == {pool.name: len(pool) for pool in shown.pools}
    assert sum(one["share"] for one in found["pools"]) == pytest.approx(1)
    assert sum(one["rows_per_step"] for one in found["pools"]) == pytest.approx(20)
    if shown.counts:
        assert [one["rows_per_step"] for one in found["pools"]] == shown.counts
        assert "on average" not in said
    refs = Stream([shown], MODALITIES, 4).rows(np.arange(50))
    assert [one["row"] for one in found["rows"]] == list(range(50))
    assert [one["key"] for one in found["rows"]] == bare.keys(refs.sample_B)
    for one, member_M in zip(found["rows"], refs.member_BM, strict=True):
        assert one["shown"] == [name for name, member in zip(NAMES, member_M, strict=True) if member >= 0]
        assert f"│ {one['row']} │ {one['key']} │ {'+'.join(one['shown'])} │" in said
    rows = sum(len(pool) for pool in shown.pools)
    assert f"{rows} rows of 80 samples; {shown.empty} of these show nothing" in said


def test_rows_per_step_of_uneven_steps_are_means(bare: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    _, said, found = inspect(capsys, bare.directory, "--no-verify", "--view", "split", "--fraction", 0.5)
    total = sum(one["rows"] for one in found["pools"])
    for one in found["pools"]:
        assert one["rows_per_step"] == pytest.approx(100 * one["rows"] / total)
        mean = f"{100 * one['rows'] / total:.1f}"
        assert f"│ {one['pool']} │ {one['rows']} │ {one['share']:.1%} │ {mean} on average │" in said


def test_the_run_s_modalities_and_another_split(bare: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--no-verify", "--view", "declared", "--modalities", "label, tag", "--split", "val", "--rows", 8]
    _, _, found = inspect(capsys, bare.directory, *options)
    expected = {f"val/{n:04d}": sorted(set(held(n)) & {"label", "tag"}) for n in range(5)}
    assert found["view"]["declared"] == sum(bool(names) for names in expected.values())
    assert found["empty"] == sum(not names for names in expected.values())
    assert found["rows"]
    for one in found["rows"]:
        assert one["shown"] == expected[one["key"]], "in the order in which they were named"


def test_a_long_list_of_rows_is_worked_out_in_parts(
    bare: Manifest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--no-verify", "--view", "split", "--fraction", 0.5, "--composition", "balanced", "--rows", 100]
    _, _, whole = inspect(capsys, bare.directory, *options)
    monkeypatch.setattr("jobs.views.TOGETHER", 7)
    assert inspect(capsys, bare.directory, *options)[2]["rows"] == whole["rows"]


def test_a_batch_too_small_for_balanced_steps(bare: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--no-verify", "--view", "split", "--fraction", 0.5, "--composition", "balanced", "--batch", 2]
    code, said, found = inspect(capsys, bare.directory, *options)
    assert (code, found["starved"]) == (0, ["only tag", "only label"])
    assert "a step would hold no row of only tag, only label, which training refuses" in said
    assert "too small for pairing.composition = balanced" in refused(capsys, bare.directory, *options, "--rows", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fraction", 0.1], "--fraction needs --view"),
        (["--complete-share", 0.1], "--complete-share needs --view"),
        (["--rows", 5], "--rows needs --view"),
        (["--samples", 5], "--samples needs --sheet"),
        (["--split", "val"], "or --sheet"),
        (["--sheet", "sheet.png", "--rows", 5], "--rows needs --view"),
        (["--view", "keep", "--fraction", 0.1], "pairing.fraction"),
        (["--view", "split", "--keep", 0.1], "belongs to pairing.view = keep"),
        (["--view", "split", "--fraction", 2], "between 0 and 1"),
        (["--view", "split", "--modalities", "image,lable", "--no-verify"], "no modality 'lable'"),
        (["--view", "split", "--split", "trian", "--no-verify"], "no split 'trian'"),
        (["--view", "split", "--batch", 0], "--batch 0: choose 1 or more"),
        (["--view", "split", "--rows", -1], "--rows -1: choose 0 or more"),
        (["--workers", -1], "--workers -1: choose 0 or more"),
    ],
)
def test_a_sentence_for_what_cannot_be_shown(
    bare: Manifest, capsys: pytest.CaptureFixture[str], options: list[object], words: str
) -> None:
    assert words in refused(capsys, bare.directory, *options)


HELP = """
import sys
from jobs.cli import main
try:
    main(["inspect", "--help"])
finally:
    print("heavy:", *{"matplotlib", "pyarrow", "torch", "webdataset", "fsspec"} & set(sys.modules))
"""


def test_help_answers_in_under_a_second() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert time.perf_counter() - started < 5, "a busy machine is forgiven"
    assert "--complete-share" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"
