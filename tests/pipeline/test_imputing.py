"""A data set is completed: what is there stays as it is, what is made is marked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from infra.errors import UserError
from modalities import Image, Label, Modality
from pipeline.corpora.corpus import Entry
from pipeline.data import check_data
from pipeline.description import described
from pipeline.imputing.marks import about
from pipeline.manifest import open_manifest
from pipeline.verifying import verify
from pipeline.writing import write
from tests.pipeline.imputed import KINDS, NAMES, Trained, has, marks, members, value
from tests.pipeline.tiny import given


def test_what_is_there_stays_and_what_is_made_is_marked(trained: Trained, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = trained.impute(source, out)
    before, after = members(source), members(out)
    assert list(after) == list(before)
    marked = {(mark["key"], mark["modality"]) for mark in marks(out)}
    assert len(marked) == len(marks(out)) == sum(result.imputed.values())
    for key, held in before.items():
        for name in NAMES:
            made_here = key.startswith("train") and name not in held and bool(held)
            assert ((key, name) in marked) == made_here
            assert after[key].get(name) == (after[key][name] if made_here else held.get(name))
            assert (name in after[key]) == (made_here or name in held)
    assert verify(open_manifest(out)) == []
    nothing = sum(not has(number) for number in range(100))
    assert result.unanswerable == dict.fromkeys(NAMES, nothing)
    assert nothing > 0
    assert result.doubtful == {}


def test_marks_say_whose_work_it_is(trained: Trained, source: Path, tmp_path: Path) -> None:
    trained.impute(source, tmp_path / "out")
    for mark in marks(tmp_path / "out"):
        assert mark["run"] == "run"
        assert mark["step"] == trained.run.train.steps
        assert mark["model"] == trained.checkpoint.weights
        assert 0 <= mark["spread"] <= 1
        assert mark["log_weight_variance"] > 0
    told = about(open_manifest(tmp_path / "out"))
    assert told
    assert told["source"] == open_manifest(source).fingerprint


def test_plain_webdataset_reads_it_and_training_takes_it(trained: Trained, source: Path, tmp_path: Path) -> None:
    trained.impute(source, tmp_path / "out")
    urls = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    seen = {s["__key__"]: set(s) for s in webdataset.WebDataset(urls, shardshuffle=False)}
    assert len(urls) > 2
    assert {"image.npy", "label.cls", "tags.npy", "numbers.npy"} <= seen["train/0001"]
    run = replace(trained.run, data=str(tmp_path / "out"))
    assert described(check_data(run)) == KINDS


def test_a_threshold_leaves_the_doubtful_missing(trained: Trained, source: Path, tmp_path: Path) -> None:
    trained.impute(source, tmp_path / "all")
    spreads = {(m["key"], m["modality"]): m["spread"] for m in marks(tmp_path / "all")}
    most = float(np.median([spread for (_, name), spread in spreads.items() if name == "label"]))
    result = trained.impute(source, tmp_path / "out", doubt={"label": most})
    after = members(tmp_path / "out")
    kept = {(mark["key"], mark["modality"]) for mark in marks(tmp_path / "out")}
    assert kept == {one for one, spread in spreads.items() if one[1] != "label" or spread <= most}
    left = [key for key, name in spreads.keys() - kept]
    assert len(left) == result.doubtful["label"] > 5
    assert not any("label" in after[key] for key in left)


def test_a_model_that_diverged_fills_in_nothing(trained: Trained, source: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        trained.model.decoders["image"][0].weight.fill_(torch.nan)  # type: ignore[index]
    from infra.checkpoint import Checkpoints

    weights = {f"model.{name}": tensor for name, tensor in trained.model.state_dict().items()}
    Checkpoints(trained.directory / "checkpoints").save(
        trained.run.train.steps, weights.items(), {"fingerprint": "", "best": None}
    )
    result = trained.impute(source, tmp_path / "out")
    assert result.doubtful["image"] > 0
    assert "image" not in result.imputed


def test_pictures_with_loss_are_copied_as_they_are(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"image": Image(16, 16, codec="jpg", hidden=(8,)), "label": KINDS["label"]}
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16))
    rows = [
        Entry(f"t{n}", "train", {"image": pixels[n]} | ({"label": np.asarray(1)} if n % 2 else {})) for n in range(20)
    ]
    write(tmp_path / "source", given("photographs", kinds, rows), workers=1)
    trained = Trained(tmp_path / "run", tmp_path / "source", kinds=kinds)
    assert trained.impute(tmp_path / "source", tmp_path / "out").imputed == {"label": 10}
    before, after = members(tmp_path / "source"), members(tmp_path / "out")
    assert all(after[key]["image"] == before[key]["image"] for key in before)


def test_data_without_a_modality_get_it_and_strangers_are_copied(trained: Trained, tmp_path: Path) -> None:
    """The model knows label and text, of which the data have none; the data have an `other`, unknown to the model."""
    kinds: dict[str, Modality] = {"image": KINDS["image"], "other": Label(7)}
    rows = [
        Entry(f"t{n}", "train", {"image": value("image", n), "other": [np.asarray(n % 7), np.asarray(3)]})
        for n in range(20)
    ]
    write(tmp_path / "unlabelled", given("bare", kinds, rows), workers=1)
    (tmp_path / "unlabelled" / "modalities.json").unlink()  # as where somebody else made it
    result = trained.impute(tmp_path / "unlabelled", tmp_path / "out", only=("label", "tags"))
    after, before = members(tmp_path / "out"), members(tmp_path / "unlabelled")
    assert result.imputed == {"label": 20, "tags": 20}
    for key, held in after.items():
        assert set(held) == {"image", "other", "label", "tags"}
        assert {name: held[name] for name in before[key]} == before[key]
    write(tmp_path / "strange", given("bare", {"other": Label(7)}, [Entry("a", "train", {"other": np.asarray(1)})]))
    with pytest.raises(UserError, match="knows image, label, text, tags, numbers: there is nothing to complete"):
        trained.impute(tmp_path / "strange", tmp_path / "more")


@pytest.mark.parametrize("system", ["cvae", "jmvae", "mvae-moe", "mmvae"])
def test_what_a_system_cannot_make_is_left_missing_and_counted(tmp_path: Path, system: str) -> None:
    kinds = {name: KINDS[name] for name in ("image", "label", "tags")}
    every = [[n for b, n in enumerate(kinds) if bits >> b & 1] for bits in range(1, 8)]
    rows = [Entry(f"t{n}", "train", {name: value(name, n) for name in every[n % 7]}) for n in range(70)]
    write(tmp_path / "source", given("some", kinds, rows), workers=1)
    trained = Trained(tmp_path / "run", tmp_path / "source", system, kinds)
    result = trained.impute(tmp_path / "source", tmp_path / "out")
    lacking = {name: 10 * sum(name not in held for held in every) for name in kinds}
    if system == "cvae":  # the first given all others
        assert result.imputed == {"image": 10}
    elif system == "jmvae":  # no network of two
        assert result.imputed == dict.fromkeys(kinds, 20)
    else:
        assert result.imputed == lacking
    for name in kinds:
        assert result.imputed.get(name, 0) + result.unanswerable.get(name, 0) == lacking[name]
