"""Every table of the papers is made, from tiny files of its corpora: its metrics exist, its pictures are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from jobs.cli import main
from pipeline.corpora import prepare
from pipeline.reproduce import TABLES, archive, faces, likelihoods, sentences, weak, worth
from pipeline.reproduce.writer import read
from tests.pipeline.corpora import tiny, without_extras

DATA = {
    "digits-weak": ("digits",),
    "mnist-weak": ("mnist",),
    "label-weight": ("mnist",),
    "fashion-weak": ("fashion-mnist",),
    "multimnist-weak": ("multimnist",),
    "likelihoods": ("binary-mnist", "mnist", "fashion-mnist", "multimnist", "celeba"),
    "mnist-split": ("mnist-split",),
    "mnist-split3": ("mnist-split3",),
    "mnist-split-levels": ("mnist-split",),
    "two-domains-levels": ("mnist-digits",),
    "cub-levels": ("cub-features",),
    "two-domains": ("mnist-digits",),
    "celeba-weak": ("celeba",),
    "k-effect": ("celeba",),
    "celeba-drop": ("celeba",),
    "celeba-transforms": ("celeba-transforms",),
    "translation": ("iwslt-en-vi",),
    "cub-coherence": ("cub-features",),
    "worth": ("mnist", "celeba"),
}
SOME = {
    "digits-weak": ["--columns", "20 %", "100 %"],
    "mnist-weak": ["--columns", "50 %", "100 %"],
    "fashion-weak": ["--columns", "100 %"],
    "multimnist-weak": ["--columns", "50 %", "100 %"],
    "celeba-weak": ["--columns", "50 %", "100 %"],
    "mnist-split-levels": ["--columns", "10 %", "100 %", "--rows", "MMVAE", "SVAE"],
    "two-domains-levels": ["--columns", "10 %", "100 %", "--rows", "MMVAE", "SVAE"],
    "cub-levels": ["--columns", "10 %", "100 %", "--rows", "MMVAE", "SVAE"],
    "k-effect": ["--columns", "k = 0", "k = 1"],
    "celeba-drop": ["--columns", "p = 0.5", "p = 1"],
    "translation": ["--columns", "10 %", "100 %"],
}
"""Some of what a table has many of."""
SAME = {"weight-variance": "likelihoods"}
"""Tables of another one's trainings: made after it, without any of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES if name not in SAME])
def test_every_table_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    without_extras(monkeypatch)
    monkeypatch.setattr("pipeline.pictures.illustrate", lambda *_: [])  # takes longer than the training
    for module in (likelihoods, faces, sentences):
        monkeypatch.setattr(module, "ROWS", 4)
    for module in (faces, sentences):
        monkeypatch.setattr(module, "SAMPLES", 5)
    monkeypatch.setattr(likelihoods, "SAMPLES", dict.fromkeys(likelihoods.DATA, 5))
    birds = {row: settings | {"objective.samples": 1} for row, settings in sentences.BIRDS.items()}
    monkeypatch.setattr(sentences, "BIRDS", birds)
    monkeypatch.setattr(worth, "LEVEL", 0.5)
    monkeypatch.setattr(weak, "COURSE", (1.0,))  # trainings of one step have no course
    archive._finished.cache_clear()
    for corpus in DATA[name]:
        _, source = tiny(corpus, tmp_path / "raw" / corpus)
        prepare(corpus, Path("data", corpus), source=source)
    made(name, DATA[name], capsys)
    for other in [other for other, first in SAME.items() if first == name]:
        before = saved()
        assert before
        made(other, DATA[name], capsys)
        assert saved() == before


def saved() -> dict[Path, int]:
    """When each checkpoint was written."""
    return {path: path.stat().st_mtime_ns for path in Path("runs/reproduce").glob("*/checkpoints/*/*")}


def made(name: str, corpora: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A table is written, whole, and nothing is left to do for it."""
    command = ["reproduce", name, "--budget", "1e-6", *SOME.get(name, [])]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == 0
    numbers = read(Path(f"runs/reproduce/{name}.csv"))
    assert numbers
    assert {number.data.split()[0] for number in numbers} == {f"data/{corpus}" for corpus in corpora}
    assert cv2.imread(f"runs/reproduce/{name}.png") is not None
    assert main([*command, "--dry-run"]) == 0
    states = [line.split("steps")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(states) == {"done"}
