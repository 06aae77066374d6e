"""Members that several samples show are stored once: rows of the manifest, not copies of bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from infra.errors import UserError
from modalities import Image, Label
from pipeline.collate import Collator
from pipeline.corpora.corpus import Corpus, Entry
from pipeline.manifest import Manifest, open_manifest
from pipeline.pairing import view
from pipeline.settings import Pairing
from pipeline.shards import Reader
from pipeline.stream import Stream
from pipeline.verifying import foreign_shards, verify
from pipeline.writing import write
from tests.pipeline.tiny import given

MODALITIES = {"digit": Image(height=1, width=2), "partner": Image(height=1, width=2), "label": Label(classes=3)}
PARTNERS, DIGITS = 9, 6


def pixels(number: int) -> np.ndarray:
    return np.array([[number, 255 - number]])


def corpus(order: int = 1) -> Corpus:
    """Digits of three classes; each shows the three partners of its class, which lie in the pool."""
    pool = [Entry(f"p/{n}", "pool", {"partner": pixels(100 + n)}) for n in range(PARTNERS)]
    digits = [
        Entry(
            f"d/{n}", "train" if n < 4 else "test", {"digit": pixels(n), "label": np.asarray(n % 3)},
            {"partner": [f"p/{m}" for m in range(PARTNERS) if m % 3 == n % 3]},
        )
        for n in range(DIGITS)
    ]  # fmt: skip
    return given("linked", MODALITIES, [*digits, *pool][::order])


@pytest.fixture(params=[(1, 2**20, 1), (-1, 2**20, 1), (1, 2048, 2)], name="made")
def _made(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    """In either order; in one shard each, and in one for each few samples, by two processes."""
    order, size, workers = request.param
    write(tmp_path / "d", corpus(order), size, workers)
    return open_manifest(tmp_path / "d")


def test_each_sample_shows_its_partners_and_each_is_stored_once(made: Manifest) -> None:
    assert {split: len(rows) for split, rows in made.splits.items()} == {"train": 4, "test": 2, "pool": 9}
    stored = {(int(s), int(b)) for s, b in zip(made.shard, made.block, strict=True)}
    assert len(stored) == 2 * DIGITS + PARTNERS
    assert len(made.size) == 2 * DIGITS + PARTNERS + 3 * DIGITS
    rows = made.split("train")
    stream = Stream([view(made, "train", list(MODALITIES), Pairing(), 0, 4)], MODALITIES, 0)
    collate = Collator([made], MODALITIES)
    seen: dict[str, list[int]] = {}
    for step in range(3):  # an epoch each: every partner is seen once
        batch = collate(stream.global_batch(step))
        assert batch.present_BM.all()
        for key, digit, partner, label in zip(batch.keys, *(batch.values[name] for name in MODALITIES), strict=True):
            number = int(key.removeprefix("d/"))
            assert round(float(digit[0, 0]) * 255) == number
            assert int(label) == number % 3
            seen.setdefault(key, []).append(round(float(partner[0, 0]) * 255) - 100)
    assert set(seen) == set(made.keys(rows))
    for key, partners in seen.items():
        assert sorted(partners) == [m for m in range(PARTNERS) if m % 3 == int(key.removeprefix("d/")) % 3]


def test_webdataset_reads_the_shards_and_verify_finds_damage_once(made: Manifest) -> None:
    paths = [f"{made.directory}/{shard.name}" for shard in made.shards]
    read = {sample["__key__"]: sample for sample in webdataset.WebDataset(paths, shardshuffle=False)}
    assert {key: sorted(name for name in sample if name[0] != "_") for key, sample in read.items()} == {
        **{f"d/{n}": ["digit.npy", "label.cls"] for n in range(DIGITS)},
        **{f"p/{n}": ["partner.npy"] for n in range(PARTNERS)},
    }
    assert verify(made) == []
    row = made.keys(range(len(made))).index("p/5")
    member = int(made.first[row])
    with Path(made.directory, made.shards[made.shard[member]].name).open("r+b") as file:
        file.seek(int(made.block[member]) * 512 + 128)
        file.write(b"\xff")
    (damage,) = verify(made)
    assert (damage["key"], damage["modality"], damage["reason"]) == ("p/5", "partner", "checksum differs")


def test_a_shard_of_the_pool_that_is_another_or_longer_is_told_once(made: Manifest) -> None:
    row = made.keys(range(len(made))).index("p/5")
    name = made.shards[made.shard[made.first[row]]].name
    held = int(np.unique(made.block[made.shard == made.shard[made.first[row]]]).size)
    path = Path(made.directory, name)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(512))
    damage = verify(made)
    assert (len(damage), {entry["shard"] for entry in damage}) == (held, {name})
    assert {str(entry["key"])[0] for entry in damage} == {"p"}
    path.write_bytes(bytes(len(whole)))
    damage = verify(made)
    assert len(damage) == held
    assert foreign_shards(made, damage) == [name]


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    for target in ("p/77", "d/1"):
        lost = replace(
            given("linked", MODALITIES, []),
            entries=lambda _, target=target: [  # type: ignore[misc]
                Entry("d/0", "train", {"digit": pixels(0)}, {"partner": [target]}),
                Entry("d/1", "train", {"digit": pixels(1)}),
            ],
        )
        with pytest.raises(UserError, match=f"d/0 shows partner of {target}, which holds no such member"):
            write(tmp_path / "d", lost)


def test_links_keep_their_order_and_all_instances_of_a_target(tmp_path: Path) -> None:
    """Behind a sample's own members of the modality, link by link; a target with two shows both."""
    entries = [
        Entry("d/0", "train", {"partner": pixels(1)}, {"partner": ["p/1", "p/0", "p/1"]}),
        Entry("d/1", "train", {"digit": pixels(2)}),
        Entry("p/0", "pool", {"partner": pixels(10)}),
        Entry("p/1", "pool", {"digit": pixels(11), "partner": [pixels(12), pixels(13)]}),
    ]
    write(tmp_path / "d", given("linked", MODALITIES, entries))
    manifest = open_manifest(tmp_path / "d")
    members = np.arange(manifest.first[0], manifest.first[1])
    values = MODALITIES["partner"].decode(Reader([manifest]).read(members))  # type: ignore[arg-type]
    assert np.rint(values[:, 0, 0] * 255).tolist() == [1, 12, 13, 10, 12, 13]
    assert np.diff(manifest.first).tolist() == [6, 1, 1, 3]
