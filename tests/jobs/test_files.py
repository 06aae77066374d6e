"""Data of one's own without a line of Python: a CSV with pictures, texts and labels, half of its cells empty."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jobs.cli import main

TOML = """
[data]
table = "birds.csv"
key = "id"

[modalities.photo]
kind = "image"
size = [16, 16]

[modalities.caption]
kind = "sentences"
vocabulary = 300
length = 24
embedding = 16
hidden = 16

[modalities.species]
kind = "label"
"""
COUNT = 40


def birds(place: Path) -> Path:
    """Every second cell is empty; one photo is broken, another is not there."""
    (place / "photos").mkdir(parents=True)
    with (place / "birds.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "photo", "caption", "species"])
        for n in range(COUNT):
            picture = np.full((20, 30, 3), 6 * n, np.uint8)
            (place / "photos" / f"{n}.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
            cells = [f"photos/{n}.jpg", f"bird {n % 7} sings, {'again' * (n % 2)} a song", ("owl", "wren")[n % 2]]
            table.writerow([f"b{n:02d}", *(cell if (n + column) % 2 else "" for column, cell in enumerate(cells))])
    (place / "photos" / "1.jpg").write_bytes(b"no picture")
    (place / "photos" / "3.jpg").unlink()
    (place / "pairstream.toml").write_text(TOML)
    return place


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, dict[str, Any]]:
    """Exit code, standard error, and the closing JSON object."""
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, captured.err, json.loads(captured.out.splitlines()[-1])


def test_from_a_table_to_a_trained_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = birds(tmp_path / "mine")
    code, _, prepared = run(capsys, "prepare", "files", "--source", source, "--out", "data/mine")
    assert (code, prepared["samples"], prepared["samples_skipped"]) == (0, COUNT - 2, 2)
    left_out = [json.loads(line) for line in Path("data/mine/skipped.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in left_out} == {"b01", "b03"}
    assert all("column photo: photos/" in entry["reason"] for entry in left_out)

    code, _, found = run(capsys, "inspect", "data/mine", "--sheet", "sheet.png")
    patterns: dict[str, int] = {}
    for split in found["patterns"].values():
        for pattern, count in split.items():
            patterns[pattern] = patterns.get(pattern, 0) + count
    assert (code, patterns) == (0, {"caption": COUNT // 2, "photo+species": COUNT // 2 - 2})
    assert Path("sheet.png").is_file()

    options = ["--data", "data/mine", "--out", "run", "--steps", 4, "--train.batch", 8, "--tracking.no-enabled"]
    code, _, trained = run(capsys, "train", "files", *options)
    assert (code, trained["status"], trained["steps"]) == (0, "finished", 4)
    assert {"val/recon.photo", "val/recon.caption", "val/recon.species", "val/tokens.caption"} <= set(
        trained["metrics"]
    )
    code, _, evaluated = run(capsys, "evaluate", "run")
    assert code == 0
    assert np.isfinite(list(evaluated["metrics"].values())).all()


def test_what_the_recipe_needs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys, "train", "files")
    assert (code, said) == (
        2,
        "pairstream: recipe files takes its modalities from the data: say with --data DIR which\n",
    )
    code, said, _ = run(capsys, "train", "files", "--data", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere is no directory: run `pairstream prepare CORPUS" in said
    (tmp_path / "mine").mkdir()
    code, said, _ = run(capsys, "prepare", "files", "--source", tmp_path / "mine", "--out", tmp_path / "out")
    assert code == 2
    assert "mine/pairstream.toml: No such file or directory: write there what your files are" in said


def test_other_files_are_not_taken_for_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = birds(tmp_path / "mine")
    again = ("prepare", "files", "--source", source, "--out", "mine.d")
    assert run(capsys, *again)[0] == 0
    code, _, closing = run(capsys, *again)
    assert (code, closing["samples_written"], closing["samples"]) == (0, 0, COUNT - 2)
    changes = {
        "pairstream.toml": TOML.replace("[16, 16]", "[8, 8]"),
        "birds.csv": (source / "birds.csv").read_text() + "b99,,a bird more,\n",
    }
    for name, changed in changes.items():
        before = (source / name).read_text()
        (source / name).write_text(changed)
        code, said, _ = run(capsys, *again)
        assert code == 2
        assert f"mine.d holds something else than {source} says now: choose another --out" in said
        (source / name).write_text(before)
