"""What a view hides is missing: it is not copied, and nothing hangs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalities import Attributes
from pipeline.corpora.corpus import Entry
from pipeline.manifest import open_manifest
from pipeline.settings import Pairing
from pipeline.writing import write
from tests.pipeline.imputed import KINDS, NAMES, Trained, data, everything, marks, members, value
from tests.pipeline.tiny import given


@pytest.mark.parametrize("view", [Pairing("keep-one", 0.2), Pairing("split", 0.2), Pairing("keep", keep=0.4)])
def test_what_a_view_hides_leaves_no_trace(tmp_path: Path, view: Pairing) -> None:
    """What is shown is copied, what is hidden is not, wherever else it may be shown."""
    source, out = tmp_path / "source", tmp_path / "out"
    data(source, 60, everything)
    trained = Trained(tmp_path / "run", source)
    result = trained.impute(source, out, pairing=view)
    marked = {(mark["key"], mark["modality"]) for mark in marks(out)}
    truth, after = members(source), members(out)
    rows = [key for key in after if key.startswith("train")]
    if view.view == "split":
        apart = {key: "/".join(key.split("/")[:2]) for key in rows}
        assert len(rows) == 12 + 48 * len(NAMES)
    else:
        apart = {key: key for key in rows}
        assert len(rows) == (60 if view.view == "keep-one" else len(rows))
    alike = []
    for key in rows:
        assert set(after[key]) == set(NAMES)
        shown = [name for name in NAMES if (key, name) not in marked]
        assert all(after[key][name] == truth[apart[key]][name] for name in shown)
        assert len(shown) in (1, len(NAMES)) or view.view == "keep"
        if view.view == "split" and key.count("/") == 2:
            assert shown == [key.split("/")[2]]
        alike += [after[key]["numbers"] == truth[apart[key]]["numbers"] for n in ["numbers"] if (key, n) in marked]
    assert alike
    assert not any(alike), "a hidden value was copied"
    assert sum(result.imputed.values()) == len(marked)
    assert {key: held for key, held in after.items() if key.startswith("val")} == {
        key: held for key, held in truth.items() if key.startswith("val")
    }


@pytest.mark.parametrize("view", [Pairing("keep-one", 0.2), Pairing("keep", keep=0.4)])
def test_hidden_values_change_nothing(tmp_path: Path, view: Pairing) -> None:
    data(tmp_path / "source", 60, everything)
    trained = Trained(tmp_path / "run", tmp_path / "source")
    trained.impute(tmp_path / "source", tmp_path / "out", pairing=view)
    marked = {(mark["key"], mark["modality"]) for mark in marks(tmp_path / "out")}
    manifest = open_manifest(tmp_path / "source")
    rows = [
        Entry(key, key.split("/")[0], {n: value(n, int(key[-4:]) + 1001 * ((key, n) in marked)) for n in NAMES})
        for key in manifest.keys(range(len(manifest)))
    ]
    write(tmp_path / "other", given("partial", KINDS, rows), 20_000, 1)
    trained.impute(tmp_path / "other", tmp_path / "more", pairing=view)
    assert members(tmp_path / "source") != members(tmp_path / "other")
    assert members(tmp_path / "more") == members(tmp_path / "out")


def test_a_run_s_own_pairs_are_the_pairs(tmp_path: Path) -> None:
    from pipeline.pairing import view

    source = tmp_path / "source"
    manifest = data(source, 60, everything)
    trained = Trained(tmp_path / "run", source)
    pairing = Pairing("keep-one", 0.2)
    trained.impute(source, tmp_path / "out", pairing=pairing)
    pools = view(manifest, "train", NAMES, pairing, trained.run.seed, 10).pools
    complete = next(set(manifest.keys(p.samples[np.arange(len(p))])) for p in pools if p.name == "complete")
    marked = {mark["key"] for mark in marks(tmp_path / "out")}
    assert {key for key in members(tmp_path / "out") if key.startswith("train")} - marked == complete


def test_attributes_that_share_a_member_are_made_together(tmp_path: Path) -> None:
    """And a view that hides some of them keeps the others."""
    held: dict[str, Any] = {"image": KINDS["image"], "tags": KINDS["tags"]}
    rows = [
        Entry(f"t{n}", "train", {name: value(name, n) for name in held if n % 3 or name == "image"}) for n in range(30)
    ]
    write(tmp_path / "source", given("parts", held, rows), workers=1)
    parts = {f"tag{i}": Attributes(1, (8, 8), of="tags", first=i, among=3) for i in (2, 0, 1)}
    trained = Trained(tmp_path / "run", tmp_path / "source", kinds={"image": KINDS["image"], **parts})
    result = trained.impute(tmp_path / "source", tmp_path / "out")
    assert result.imputed == {"tags": 10}
    hidden = trained.impute(tmp_path / "source", tmp_path / "hidden", pairing=Pairing("keep", keep=0.5))
    before, after = members(tmp_path / "source"), members(tmp_path / "hidden")
    decode = KINDS["tags"].decode
    agree = [decode(after[k]["tags"])[0] == decode(before[k]["tags"])[0] for k in after if "tags" in before[k]]
    assert hidden.imputed["tags"] > 10
    assert np.mean(agree) > 0.6  # those that are shown and, by chance, half of the others
    known = {name: part for name, part in parts.items() if name != "tag1"}
    partly = Trained(tmp_path / "fewer", tmp_path / "source", kinds={"image": KINDS["image"], **known})
    assert partly.impute(tmp_path / "source", tmp_path / "fewer-out").imputed == {}
