"""Several modalities of a run may lie in one member of the shards: one set of shards, two views (CelebA and MVAE19)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from modalities import AnyModality, Attributes, Image
from pipeline.baselines import complete_samples, read
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.data import check_data, training_stream
from pipeline.settings import Pairing
from pipeline.shards import Reader
from pipeline.stream import Stream
from pipeline.writing import write
from tests.pipeline.tiny import given

STORED = {"image": Image(height=1, width=2), "flags": Attributes(count=3)}
PARTS: dict[str, AnyModality] = {
    "image": STORED["image"],
    **{name: Attributes(count=1, of="flags", first=place, among=3) for place, name in enumerate(("a", "b", "c"))},
}  # type: ignore[dict-item]
COUNT = 24


def flags(number: int) -> np.ndarray:
    return np.array([number & 1, number >> 1 & 1, number >> 2 & 1])


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> str:
    """Every third sample lacks its flags."""
    entries = [
        Entry(f"k/{n}", split, {"image": np.full((1, 2), n)} | ({"flags": flags(n)} if n % 3 else {}))
        for split, numbers in (("train", range(COUNT)), ("val", range(COUNT, COUNT + 6)))
        for n in numbers
    ]
    write(tmp_path / "d", given("tiny", STORED, entries))
    return str(tmp_path / "d")


def run_of(data: str, modalities: dict[str, AnyModality] = PARTS, **pairing: float | str) -> Run:
    return Run(recipe="parts", data=data, modalities=modalities, pairing=Pairing(**pairing))  # type: ignore[arg-type]


def stream_of(run: Run) -> Stream:
    return training_stream(run, check_data(run))


def test_each_part_has_its_own_element(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_members: list[int] = []
    plain = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, m: read_members.extend(m.tolist()) or plain(self, m))
    stream = stream_of(run_of(data))
    batch = Collator(stream.manifests, PARTS)(stream.rows(np.arange(COUNT)))
    for row, key in enumerate(batch.keys):
        number = int(key.removeprefix("k/"))
        assert batch.present_BM[row].tolist() == [True, *[bool(number % 3)] * 3]
    for place, name in enumerate(("a", "b", "c"), start=1):
        rows = batch.rows_of[name]
        assert rows.tolist() == np.flatnonzero(batch.present_BM[:, place]).tolist()
        numbers = [int(batch.keys[row].removeprefix("k/")) for row in rows]
        assert batch.values[name].shape == (len(rows), 1)
        assert batch.values[name][:, 0].tolist() == [flags(n)[place - 1] for n in numbers]
    assert len(read_members) == len(set(read_members)) == COUNT + COUNT * 2 // 3  # each member once, not three times


def test_a_view_shows_parts_apart(data: str) -> None:
    stream = stream_of(run_of(data, view="split", fraction=0.0))
    shown = COUNT * 2 // 3
    assert stream.describe() == {"only image": COUNT, "only a": shown, "only b": shown, "only c": shown}
    batch = Collator(stream.manifests, PARTS)(stream.rows(np.arange(COUNT + 3 * shown)))
    assert (batch.present_BM.sum(1) == 1).all()
    numbers = [int(batch.keys[row].removeprefix("k/")) for row in batch.rows_of["b"]]
    assert sorted(numbers) == [n for n in range(COUNT) if n % 3]
    assert batch.values["b"][:, 0].tolist() == [flags(n)[1] for n in numbers]
    kept = stream_of(run_of(data, view="keep", keep=0.5))
    batch = Collator(kept.manifests, PARTS)(kept.rows(np.arange(kept.views[0].describe()["kept"])))
    assert 1 < len({tuple(row) for row in batch.present_BM[:, 1:].tolist()}) <= 8  # drawn for each part by itself


def test_both_views_of_one_set_of_shards(data: str) -> None:
    parts, whole = run_of(data), run_of(data, STORED)  # type: ignore[arg-type]
    for run in (parts, whole):
        manifest = check_data(run)
        samples = complete_samples(manifest, run, "train")
        assert len(samples) == COUNT * 2 // 3
        values = read(manifest, run, samples)
        if run is parts:
            held = np.concatenate([values[name] for name in ("a", "b", "c")], 1)
    np.testing.assert_array_equal(held, values["flags"])


def test_a_part_of_what_the_shards_do_not_hold(data: str) -> None:
    for part, sentence in {
        Attributes(count=1, of="marks", first=0, among=3): "the shards hold no modality 'marks', only image, flags",
        Attributes(count=1, of="flags", first=0, among=4): r"modality flags is \.npy of shape \(3,\) .* shape \(4,\)",
    }.items():
        with pytest.raises(UserError, match=sentence):
            check_data(run_of(data, {"image": STORED["image"], "a": part}))  # type: ignore[dict-item]
