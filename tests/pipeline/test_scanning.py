"""Foreign tars that are damaged: what is kept is whole, and the damage is located (promise 3)."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest

from infra.errors import UserError
from pipeline.indexing import Findings
from pipeline.manifest import BLOCK
from tests.pipeline.test_indexing import Held, expected, indexed, pairs, tar

KEYS = ["a", "b", "c", "d"]


def damage(tmp_path: Path, data: bytes) -> tuple[Findings, Held]:
    """What is left of a damaged shard beside a whole one."""
    broken, whole = tmp_path / "broken.tar", tar(tmp_path / "whole.tar", pairs(["z"]))
    broken.write_bytes(data)
    result, got = indexed(tmp_path, broken, whole)
    return result.findings, got


def test_a_cut_never_makes_an_unpaired_sample(tmp_path: Path) -> None:
    """At every block and inside it: whatever is kept is whole, everything in front of the open sample is kept."""
    whole = tar(tmp_path / "t.tar", pairs(KEYS)).read_bytes()
    member = 3 * BLOCK  # a header, and two blocks of bytes
    end = 8 * member
    for cut in sorted({*range(0, end + 2 * BLOCK, BLOCK), *range(100, end + 2 * BLOCK, 333)}):
        findings, got = damage(tmp_path, whole[:cut])
        named = min(8, (cut + 2 * BLOCK) // member)  # members whose header is there
        kept = max(0, named - 1) // 2
        assert got == expected([*KEYS[:kept], "z"]), cut
        (entry,) = findings.damaged
        assert entry["key"] == (KEYS[kept] if named else "")
        assert entry["offset"] == min(cut, end) // member * member, cut
        assert entry["shard"] == str(tmp_path / "broken.tar")


def test_garbage_headers_and_zeroed_headers(tmp_path: Path) -> None:
    whole = tar(tmp_path / "t.tar", pairs(KEYS)).read_bytes()
    member = 3 * BLOCK
    for number in range(8):
        kept = KEYS[: max(0, (number - 1) // 2)]
        at = number * member
        flips = [whole[: at + i] + bytes([whole[at + i] ^ 1]) + whole[at + i + 1 :] for i in (0, 100, 130, 156, 260)]
        blocks = [bytes(BLOCK), random.Random(number).randbytes(BLOCK)]
        for data in [*flips, *(whole[:at] + block + whole[at + BLOCK :] for block in blocks)]:
            findings, got = damage(tmp_path, data)
            assert got == expected([*kept, "z"]), number
            assert [e["offset"] for e in findings.damaged] == [at]


def test_other_damage(tmp_path: Path) -> None:
    whole = tar(tmp_path / "t.tar", pairs(KEYS)).read_bytes()
    long = tar(tmp_path / "l.tar", [*pairs(["a"]), ("x" * 150 + ".jpg", b"1")], tarfile.GNU_FORMAT).read_bytes()
    end = 24 * BLOCK
    for data, offset, kept, words in (
        (b"", 0, [], "empty file"),
        (b"garbage" * 999, 0, [], "header damaged"),
        (bytes(2**20), 0, [], "behind the end-of-archive"),
        (whole[:end], end, KEYS[:3], "end-of-archive mark is missing"),
        (whole[: end + BLOCK], end, KEYS[:3], "end-of-archive mark is missing"),
        (whole + whole, end, KEYS[:3], "behind the end-of-archive"),
        (whole[: end + 1030] + b"\1" + whole[end + 1031 :], end, KEYS[:3], "behind the end-of-archive"),
        (whole[: 9 * BLOCK] + bytes(2**16), 9 * BLOCK, KEYS[:1], "behind the end-of-archive"),  # a tail never written
        (long[: 7 * BLOCK], 6 * BLOCK, [], "header damaged"),  # cut inside a long name: the sample before it is open
    ):
        findings, got = damage(tmp_path, data)
        assert got == expected([*kept, "z"]), words
        (entry,) = findings.damaged
        assert (entry["offset"], words in str(entry["reason"])) == (offset, True), entry


def test_damage_where_keys_come_back_keeps_complete_samples_only(tmp_path: Path) -> None:
    """A tar sorted by extension: behind the cut lie labels of samples in front of it, and of other shards' samples."""
    members = sorted(pairs(KEYS), key=lambda member: member[0].rpartition(".")[2], reverse=True)
    whole = tar(tmp_path / "t.tar", members).read_bytes()
    findings, got = damage(tmp_path, whole[: 3 * BLOCK * 6 + 700])
    assert got == expected(["a", "b", "z"])  # "c" is open, "d" has lost its label
    assert findings.damaged[0]["key"] == "c"
    images, labels = members[:4], tar(tmp_path / "t.tar", members[4:]).read_bytes()
    (tmp_path / "labels.tar").write_bytes(labels[: 3 * BLOCK + 100])
    with pytest.raises(UserError, match="no usable sample"):  # every label is lost or open: nothing is certain
        indexed(tmp_path, tar(tmp_path / "images.tar", images), tmp_path / "labels.tar")
    (tmp_path / "labels.tar").write_bytes(labels[: 6 * BLOCK + 100])
    result, got = indexed(tmp_path, tmp_path / "images.tar", tmp_path / "labels.tar")
    assert got == expected(["a"])
    assert result.findings.incomplete == 2  # beside "b", which was open
