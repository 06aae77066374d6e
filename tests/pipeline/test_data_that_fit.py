"""What a run's data must hold, and what may be mixed in beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from modalities import Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.data import check_data, training_stream
from pipeline.settings import Model, Training
from pipeline.writing import write
from tests.pipeline.tiny import given

KINDS = {"label": Label(classes=3)}


def written(out: Path, splits: tuple[str, ...] = ("train", "val"), **files: bytes) -> str:
    entries = [Entry(f"{out.name}/{split}{n}", split, {"label": np.asarray(n)}) for split in splits for n in range(3)]
    write(out, replace(given("tiny", KINDS, entries), files={f"label.{end}": data for end, data in files.items()}))
    return str(out)


def a_run(data: str, *mixed: str) -> Run:
    mix = tuple(f"{one}=0.25" for one in mixed)
    return Run("r", data, KINDS, mix=mix, model=Model(latent=2, system="vae"), train=Training(batch=8))


def test_other_tokens_for_the_same_words_are_not_mixed_in(tmp_path: Path) -> None:
    run = a_run(
        written(tmp_path / "a", model=b"1"), written(tmp_path / "same", model=b"1"), written(tmp_path / "plain")
    )
    assert len(training_stream(run, check_data(run)).manifests) == 3
    other = a_run(run.data, written(tmp_path / "other", model=b"2"))
    with pytest.raises(UserError, match=r"^mix: .*/other has another label\.model than .*/a: "):
        training_stream(other, check_data(other))


def test_a_split_of_which_no_sample_could_be_used(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    manifest = check_data(a_run(data))
    empty = {**manifest.splits, "val": range(3, 3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.manifest.Manifest.split", lambda self, name: empty[name])
        with pytest.raises(UserError, match="split 'val' holds no sample"):
            check_data(a_run(data))
