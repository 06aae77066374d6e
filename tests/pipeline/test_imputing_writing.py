"""Completed data appear whole or not at all, are taken up again, and bad input is a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from infra import distributed
from infra.errors import UserError
from modalities import Image, Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.imputing import run
from pipeline.imputing.job import prepared
from pipeline.imputing.run import impute
from pipeline.imputing.settings import Settings
from pipeline.manifest import open_manifest
from pipeline.settings import Pairing
from pipeline.writing import write
from tests.pipeline.imputed import KINDS, Trained, members, value
from tests.pipeline.test_resuming import tree
from tests.pipeline.tiny import given


def test_damage_leaves_a_sample_out_and_says_so(trained: Trained, source: Path, tmp_path: Path) -> None:
    manifest = open_manifest(source)
    member = int(manifest.first[41])
    path = source / manifest.shards[int(manifest.shard[member])].name
    damaged = bytearray(path.read_bytes())
    damaged[int(manifest.block[member]) * 512] ^= 1
    path.write_bytes(damaged)
    result = trained.impute(source, tmp_path / "out")
    assert result.written.skipped == 1
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"key": "train/0041", "reason": json.loads(line)["reason"]}
    assert "checksum differs" in line
    assert set(members(tmp_path / "out")) == set(manifest.keys(range(len(manifest)))) - {"train/0041"}


class Interrupted(Exception):
    pass


@contextmanager
def cut_off() -> Iterator[None]:
    """Imputing ends before the third shard."""
    real = run.write_shard

    def breaking(*arguments: Any) -> None:
        if arguments[1] == 2:
            raise Interrupted
        real(*arguments)

    with patch.object(run, "write_shard", breaking), pytest.raises(Interrupted):
        yield


def test_what_was_cut_off_goes_on_to_the_same_bytes(
    trained: Trained, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.impute(source, tmp_path / "whole")
    shards = len(list((tmp_path / "whole").glob("*.tar")))
    real, calls = run.write_shard, []

    def breaking(*arguments: Any) -> None:
        calls.append(arguments[2])
        if len(calls) in (2, 4):
            raise Interrupted
        real(*arguments)

    monkeypatch.setattr(run, "write_shard", breaking)
    for _ in range(2):
        with pytest.raises(Interrupted):
            trained.impute(source, tmp_path / "out")
    result = trained.impute(source, tmp_path / "out")
    assert (len(calls), result.written.kept) == (shards + 2, 2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()
    again = trained.impute(source, tmp_path / "out")  # done already
    assert (again.written.samples, again.imputed) == (0, result.imputed)
    with pytest.raises(UserError, match="exists and is not empty"):
        trained.impute(source, tmp_path / "out", seed=1)
    with pytest.raises(UserError, match="was completed by a model already"):
        trained.impute(tmp_path / "out", tmp_path / "more")


def test_where_it_was_cut_off_does_not_show_in_the_last_bit(tmp_path: Path) -> None:
    """Networks that are wide enough for torch to share a product among threads, which sum in another order."""
    kinds: dict[str, Any] = {"image": Image(28, 28, hidden=(512, 512)), "label": KINDS["label"]}
    pixels = np.random.default_rng(0).integers(0, 256, (256, 28, 28))
    rows = [
        Entry(f"t{n:03d}", "train", {"image": pixels[n]} if n % 2 else {"label": np.asarray(n % 5)}) for n in range(256)
    ]
    write(tmp_path / "source", given("digits", kinds, rows), workers=1)
    trained = Trained(tmp_path / "run", tmp_path / "source", kinds=kinds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)  # not what a new thread has by itself
    try:
        trained.impute(tmp_path / "source", tmp_path / "whole", 100_000)
        with cut_off():
            trained.impute(tmp_path / "source", tmp_path / "out", 100_000)
        assert trained.impute(tmp_path / "source", tmp_path / "out", 100_000).written.kept == 2
    finally:
        torch.set_num_threads(threads)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_shards_of_other_settings_are_not_taken_up(trained: Trained, source: Path, tmp_path: Path) -> None:
    with cut_off():
        trained.impute(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"finished shards of something else \(other values;"):
        trained.impute(source, tmp_path / "out", seed=1)


def on_a_rank(directory: Path, run: Run, source: Path, out: Path, view: Pairing) -> Any:
    from pipeline.evaluate.run import checkpoint_of

    world = distributed.start("cpu", 1)
    job = prepared(run, directory, checkpoint_of(directory), str(source), Settings(pairing=view))
    try:
        result = impute(job, out, world, 20_000)
    except UserError as error:
        return str(error)
    return result.written.samples if result else None


def test_any_number_of_ranks_gives_the_same_bytes(trained: Trained, source: Path, tmp_path: Path, ranks: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained.impute(source, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    told = ranks.run(on_a_rank, trained.directory, trained.run, source, tmp_path / "two", Pairing())
    assert told == [105, None]
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    told = ranks.run(on_a_rank, trained.directory, trained.run, source, tmp_path / "full", Pairing())
    assert all("exists and is not empty" in sentence for sentence in told)
    told = ranks.run(on_a_rank, trained.directory, trained.run, source, tmp_path / "two", Pairing())  # done already
    assert told == [0, None]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"splits": ("test",)}, "no split 'test'; it has train, val"),
        ({"only": ("lable",)}, "no modality 'lable'; did you mean 'label'"),
        ({"doubt": {"sound": 0.1}}, "no modality 'sound'"),
        ({"doubt": {"label": 2.0}}, "the largest spread of label is 2: choose a number from 0 to 1"),
        ({"samples": 1}, "samples is 1: choose at least 2"),
        ({"splits": ()}, "no split to complete"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(
    trained: Trained, source: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        trained.impute(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out.partial").exists()


def test_members_of_another_form_are_refused(trained: Trained, tmp_path: Path) -> None:
    row = Entry("a", "train", {"image": np.zeros((2, 2), np.uint8)})
    write(tmp_path / "other", given("other", {"image": Image(2, 2)}, [row]))
    with pytest.raises(UserError, match=r"image is .npy of shape \(2, 2\) in the shards, the run wants"):
        trained.impute(tmp_path / "other", tmp_path / "out")


def test_members_that_samples_share_are_refused(trained: Trained, tmp_path: Path) -> None:
    image = {"image": value("image", 0)}
    rows = [Entry("a", "train", image), Entry("b", "train", {"label": np.asarray(1)}, {"image": ["a"]})]
    write(tmp_path / "linked", given("linked", KINDS, rows))
    with pytest.raises(UserError, match="share members that are stored once"):
        trained.impute(tmp_path / "linked", tmp_path / "out")


def test_a_view_that_shows_nothing_is_refused(trained: Trained, source: Path, tmp_path: Path) -> None:
    nothing = Pairing("keep", keep=0.0)
    with pytest.raises(UserError, match="the view shows no row of image, label"):
        trained.impute(source, tmp_path / "out", pairing=nothing, splits=("train", "val"))


def test_a_value_that_the_model_cannot_read_leaves_its_sample_out(trained: Trained, tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"image": KINDS["image"], "label": Label(10)}
    rows = [Entry(f"t{n}", "train", {"label": np.asarray(n)}) for n in range(7)]
    write(tmp_path / "classes", given("classes", kinds, rows))
    assert trained.impute(tmp_path / "classes", tmp_path / "out", only=("image",)).imputed == {"image": 5}
    left = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["key"] for line in left] == ["t5", "t6"]
    assert "label: labels run from 5 to 5, expected 0 to 4" in left[0]["reason"]
