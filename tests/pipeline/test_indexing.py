"""A manifest for tars that somebody else made: the same samples as webdataset sees, and no damage taken for absence."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset

from infra.errors import UserError
from pipeline.collate import Collator
from pipeline.corpora.digits import DIGITS
from pipeline.indexing import Findings, Indexed, index
from pipeline.manifest import NAME, open_manifest
from pipeline.pairing import view
from pipeline.rules import Rules
from pipeline.settings import Pairing
from pipeline.shards import Reader
from pipeline.stream import Stream, in_order
from pipeline.verifying import verify
from tests.pipeline.tiny import make, read

Held = dict[str, dict[str, list[bytes]]]
RULES = Rules.read(["jpg=image", "cls=label", "caption.*.txt=caption"])
DIGITS_RULES = Rules.read(["top.npy=top", "bottom.npy=bottom", "label.cls=label"])


def tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def pairs(keys: Sequence[str]) -> list[tuple[str, bytes]]:
    """Members of a picture and a label per key."""
    return [(f"{key}.{ext}", f"{ext} of {key} ".encode() * 100) for key in keys for ext in ("jpg", "cls")]


def held(out: Path) -> Held:
    """{key: {modality: the bytes of each instance}}, read by offset."""
    manifest = open_manifest(out)
    reader, names, result = Reader([manifest]), list(manifest.modalities), {}
    for row in range(len(manifest)):
        mine: dict[str, list[bytes]] = {}
        for member in range(int(manifest.first[row]), int(manifest.first[row + 1])):
            mine.setdefault(names[int(manifest.modality[member])], []).append(read(reader, member))
        result[manifest.key(row)] = mine
    assert len(result) == len(manifest), "no key twice"
    return result


def expected(keys: Sequence[str]) -> Held:
    return {
        key: {"image": [f"jpg of {key} ".encode() * 100], "label": [f"cls of {key} ".encode() * 100]} for key in keys
    }


def indexed(tmp_path: Path, *shards: Path, workers: int = 1) -> tuple[Indexed, Held]:
    """Index into a fresh directory, and read everything back."""
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    result = index(shards, out, RULES, workers=workers)
    return result, held(out)


def test_indexed_digits_are_the_digits(digits_dir: Path, tmp_path: Path) -> None:
    original = open_manifest(digits_dir)
    index([digits_dir], tmp_path, DIGITS_RULES)
    other = open_manifest(tmp_path)
    assert other.corpus == "indexed"
    assert other.splits == original.splits
    assert other.keys(range(len(other))) == original.keys(range(len(original)))
    for name in ("first", "modality", "shard", "block", "size", "checksum"):
        assert np.array_equal(getattr(other, name), getattr(original, name)), name
    assert not other.damaged_shards
    pictures = {}
    for manifest in (original, other):  # the same batches in storage order, the same values of a key in any
        collate = Collator([manifest], DIGITS.modalities)
        ordered = [collate(refs) for refs in in_order(manifest, "val", list(DIGITS.modalities), 50)]
        rows = view(manifest, "train", list(DIGITS.modalities), Pairing(), 0, 100)
        batch = collate(Stream([rows], DIGITS.modalities, 0).global_batch(3))
        pictures[manifest] = dict(zip(batch.keys, batch.values["top"].numpy(), strict=True))
        pictures[manifest] |= {
            key: value
            for one in ordered
            for key, value in zip(filter(None, one.keys), one.values["top"].numpy(), strict=True)
        }
        if manifest is original:
            first = ordered
    for a, b in zip(first, ordered, strict=True):
        assert a.keys == b.keys
        assert all(np.array_equal(a.values[name], b.values[name]) for name in DIGITS.modalities)
    shared = pictures[original].keys() & pictures[other].keys()
    assert len(shared) >= 269
    assert all(np.array_equal(pictures[original][key], pictures[other][key]) for key in shared)


def test_partial_samples_and_instances(tmp_path: Path) -> None:
    original = make(tmp_path / "d", 40, shard_bytes=5000)
    rules = Rules.read(["image.npy=image", "tag.*.cls=tag", "label.cls=label"])
    index([tmp_path / "d"], tmp_path / "i", rules)
    assert held(tmp_path / "i") == {key: members for key, members in held(tmp_path / "d").items() if members}
    assert list(open_manifest(tmp_path / "i").modalities) == list(original.modalities)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_samples_that_webdataset_sees(tmp_path: Path, form: int) -> None:
    """Long names, folders, capitals, captions by number, metadata, members that no rule names."""
    long = "a-folder-with-a-rather-long-name/" * (4 if form == tarfile.USTAR_FORMAT else 9)
    members = [("__index__.json", b"{}"), ("README", b"hello"), *pairs(["k1", f"{long}k2"])]
    members += [("k3.JPG", b"big"), ("k3.json", b"{}"), *((f"k3.caption.{i}.txt", b"%d" % i) for i in (2, 10, 1))]
    members += [("k4.thumb.jpg", b"small"), ("k4.cls", b"7"), ("__meta__/k5.jpg", b"skipped")]
    path = tar(tmp_path / "a.tar", members, form)
    result, got = indexed(tmp_path, path)
    plain = {
        str(s["__key__"]): {
            modality: [data for ext, data in s.items() if ext[:2] != "__" and ext.split(".")[-1] == last]
            for modality, last in (("image", "jpg"), ("label", "cls"), ("caption", "txt"))
        }
        for s in webdataset.WebDataset(str(path), shardshuffle=False)
        if s["__key__"] != "__index__"
    }
    plain["k4"]["image"] = []  # thumb.jpg is another extension
    assert got == {key: {name: values for name, values in of.items() if values} for key, of in plain.items()}
    assert got["k3"]["caption"] == [b"2", b"10", b"1"]
    assert result.findings == Findings(unnamed=result.findings.unnamed)
    assert dict(result.findings.unnamed) == {"": 1, "json": 1, "thumb.jpg": 1}
    assert result.members == {"image": 3, "label": 3, "caption": 3}


def test_webdatasets_own_writer(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "w.tar"), encoder=False) as writer:
        for number in range(20):
            sample = {"__key__": f"{number:06d}", "jpg": b"%d" % number}
            writer.write(sample | ({"cls": b"%d" % (number % 10)} if number % 3 else {}))
    result, got = indexed(tmp_path, tmp_path / "w.tar")
    assert result.samples == 20
    assert got["000004"] == {"image": [b"4"], "label": [b"4"]}
    assert got["000003"] == {"image": [b"3"]}
    assert open_manifest(tmp_path / "out").modalities["image"].shape is None


def test_a_key_that_comes_back_is_joined_and_a_duplicate_is_not_doubled(tmp_path: Path) -> None:
    a = tar(tmp_path / "a.tar", [("k1.jpg", b"1"), ("k2.jpg", b"2"), ("k1.cls", b"one"), ("k2.jpg", b"other")])
    b = tar(tmp_path / "b.tar", [("k2.cls", b"two"), ("k3.jpg", b"3"), ("k3.jpg", b"again"), ("k1.cls", b"late")])
    result, got = indexed(tmp_path, a, b)
    assert got == {
        "k1": {"image": [b"1"], "label": [b"one"]},
        "k2": {"image": [b"2"], "label": [b"two"]},
        "k3": {"image": [b"3"]},
    }
    where = [(Path(str(e["shard"])).name, e["key"], e["offset"]) for e in result.findings.interleaved]
    assert where == [("a.tar", "k1", 2560), ("a.tar", "k2", 3584), ("b.tar", "k2", 512), ("b.tar", "k1", 3584)]
    where = [(Path(str(e["shard"])).name, e["key"], e["offset"]) for e in result.findings.duplicates]
    assert where == [("a.tar", "k2", 3584), ("b.tar", "k3", 2560), ("b.tar", "k1", 3584)]
    assert [e["modality"] for e in result.findings.duplicates] == ["image", "image", "label"]


def test_a_key_belongs_to_one_split(tmp_path: Path) -> None:
    train, val = tar(tmp_path / "train-0.tar", pairs(["a", "b"])), tar(tmp_path / "val-0.tar", pairs(["b", "c"]))
    result, got = indexed(tmp_path, val, train)
    assert got == expected("abc")
    assert open_manifest(tmp_path / "out").splits == {"train": range(2), "val": range(2, 3)}
    assert {e["reason"] for e in result.findings.duplicates} == {"its key belongs to another split"}


def test_keys_and_members_that_no_manifest_can_hold(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in [*pairs(["ok"]), ("sp ace.jpg", b"1"), ("linked.cls", b"1"), ("v1.2/k.jpg", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("linked.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "ok.jpg"
        file.addfile(link)
        file.addfile(tarfile.TarInfo("b\udcffd.jpg"))
    result, got = indexed(tmp_path, tmp_path / "a.tar")
    assert got == expected(["ok"]), "a linked picture is not an absent one"
    assert [e["key"] for e in result.findings.refused] == ["sp ace", "v1.2/k", "b\\udcffd", "linked"]
    assert result.findings.unnamed == {}


def test_any_number_of_workers_gives_the_same_manifest(tmp_path: Path) -> None:
    for number in range(5):
        tar(tmp_path / f"{number}.tar", pairs([f"{number}-{i}" for i in range(20)] + ["shared"]))
    (tmp_path / "3.tar").write_bytes((tmp_path / "3.tar").read_bytes()[:5000])
    one, _ = indexed(tmp_path, tmp_path)
    three, _ = indexed(tmp_path, tmp_path, workers=3)
    assert one == three
    assert one.samples == 20 * 4 + 1 + 1
    assert len(one.findings.interleaved) == 3


def test_shards_below_out_are_named_relative_to_it(digits_dir: Path, tmp_path: Path) -> None:
    here = tmp_path / "data"
    shutil.copytree(digits_dir, here / "shards")
    told: list[int] = []
    index([here / "shards" / "train-000000.tar"], here, DIGITS_RULES, progress=told.append)
    assert [shard.name for shard in open_manifest(here).shards] == ["shards/train-000000.tar"]
    assert told == [(digits_dir / "train-000000.tar").stat().st_size]
    here.rename(tmp_path / "moved")
    assert not open_manifest(tmp_path / "moved").damaged_shards
    assert sorted(os.listdir(tmp_path / "moved")) == [NAME, "shards"]


def test_another_manifest_is_not_overwritten(tmp_path: Path) -> None:
    a, b = tar(tmp_path / "a.tar", pairs(["a"])), tar(tmp_path / "b.tar", pairs(["b"]))
    first = index([a], tmp_path / "out", RULES)
    before = (tmp_path / "out" / NAME).stat().st_mtime_ns
    assert index([a], tmp_path / "out", RULES) == first
    assert (tmp_path / "out" / NAME).stat().st_mtime_ns == before
    for shards, rules in (([b], RULES), ([a], Rules.read(["jpg=image"]))):
        with pytest.raises(UserError, match=rf"another manifest.*{first.fingerprint}.*choose another --out"):
            index(shards, tmp_path / "out", rules)
    assert held(tmp_path / "out") == expected(["a"])
    assert os.listdir(tmp_path / "out") == [NAME]


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars_are_refused(tmp_path: Path, mode: str, name: str) -> None:
    with tarfile.open(str(tmp_path / "a.tar"), mode) as file:  # type: ignore[call-overload]
        file.addfile(tarfile.TarInfo("k.jpg"))
    with pytest.raises(UserError, match=rf"compressed \({name}\).*by offset"):
        index([tmp_path / "a.tar"], tmp_path / "out", RULES)


def test_nothing_usable(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("k.png", b"1"), ("k.json", b"1")])
    with pytest.raises(UserError, match=r"no usable sample.*\.png \(1\), \.json \(1\)"):
        index([path], tmp_path / "out", RULES)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable sample.*damaged shards: 1.*a.tar at byte 0: an empty file"):
        index([path], tmp_path / "out", RULES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_verify_knows_other_peoples_names(tmp_path: Path, form: int) -> None:
    """Members called KEY.jpg are whole; a flipped byte in one of them is found, and nothing else."""
    long = "a-folder-with-a-rather-long-name/" * (4 if form == tarfile.USTAR_FORMAT else 9)
    path = tar(tmp_path / "a.tar", pairs(["k1", f"{long}k2", "k3"]), form)
    indexed(tmp_path, path)
    manifest = open_manifest(tmp_path / "out")
    assert verify(manifest) == []
    data = bytearray(path.read_bytes())
    data[data.index(b"jpg of k3 ")] ^= 1
    path.write_bytes(data)
    (damage,) = verify(manifest)
    assert (damage["key"], damage["modality"], damage["reason"]) == ("k3", "image", "checksum differs")
