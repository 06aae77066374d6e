"""`verify` and tar headers: what Python's tarfile reads decides, whichever way it was found out."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.verifying import _octal, verify
from pipeline.writing import write
from tests.pipeline import tiny
from tests.pipeline.test_verifying import place, reasons
from tests.pipeline.tiny import LABEL, make, one


def test_headers_that_name_another_member(tmp_path: Path) -> None:
    """Two headers exchanged: every checksum holds by offset, but plain WebDataset would mix up the samples."""
    write(tmp_path / "d", tiny.given("two", LABEL, [one("a", label=1), one("b", label=2)]))
    path = tmp_path / "d" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[:512], data[1024:1536] = data[1024:1536], data[:512]
    path.write_bytes(data)
    assert [str(d["reason"]) for d in verify(open_manifest(tmp_path / "d"))] == [
        "tar header names b.label.cls with 1 bytes", "tar header names a.label.cls with 1 bytes",
    ]  # fmt: skip


def header(member: str, size: int, **fields: str | bytes | int) -> bytes:
    info = tarfile.TarInfo(member)
    info.size = size
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "surrogateescape")


def changed(header: bytes, start: int, field: bytes) -> bytes:
    """A header with other bytes in one field, and its sum made right."""
    new = bytearray(header)
    new[start : start + len(field)] = field
    new[148:156] = b" " * 8
    new[148:156] = b"%06o\0 " % sum(new)
    return bytes(new)


HEADERS: dict[str, tuple[bytes, bool]] = {
    "as written": (header("a.label.cls", 1), True),
    "another time, owner and mode": (header("a.label.cls", 1, mtime=99, uname="me", uid=7, mode=0o600), True),
    "in the current folder": (header("./a.label.cls", 1), True),
    "a number that ends with a blank": (changed(header("a.label.cls", 1), 135, b" "), True),
    "an old tar's file": (header("a.label.cls", 1, type=tarfile.AREGTYPE), True),
    "a binary size": (changed(header("a.label.cls", 1), 124, b"\x80" + bytes(10) + b"\1"), True),
    "another binary size": (changed(header("a.label.cls", 1), 124, b"\x80" + bytes(10) + b"\2"), False),
    "another size": (header("a.label.cls", 2), False),
    "another key": (header("b.label.cls", 1), False),
    "a longer key": (header("ab.label.cls", 1), False),
    "another modality": (header("a.labels.cls", 1), False),
    "below a folder": (header("x" * 99 + "/a.label.cls", 1), False),
    "a name that is no text": (header("a.label.cl\udcff", 1), False),
    "a link": (changed(header("a.label.cls", 1), 156, b"2"), False),
    "a shorter name": (header("a", 1), False),
    "nothing": (bytes(BLOCK), False),
    "garbage": (bytes(range(256)) * 2, False),
    "a wrong sum": (header("a.label.cls", 1)[:-1] + b"\1", False),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_every_form(tmp_path: Path, name: str) -> None:
    write(tmp_path / "d", tiny.given("two", LABEL, [one("a"), one("c")]))
    data, good = HEADERS[name]
    path = tmp_path / "d" / "train-000000.tar"
    path.write_bytes(data + path.read_bytes()[BLOCK:])
    found = verify(open_manifest(tmp_path / "d"))
    assert [(d["key"], str(d["reason"])[:10]) for d in found] == ([] if good else [("a", "tar header")])


def test_digits_of_base_8() -> None:
    digits = np.frombuffer(b"0177001800 10/110000", np.uint8).reshape(-1, 4)
    assert _octal(digits).tolist() == [127, -1, -1, -1, 0]


FIELDS = {"name": (0, 100), "size": (124, 136), "sum": (148, 156), "type": (156, 157), "prefix": (345, 500)}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_quick_look_agrees_with_tarfile(tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes in any field of headers, sums made right again or not: what tarfile reads decides."""
    directory = tmp_path / "d"
    manifest = open_manifest(directory) if directory.exists() else make(directory, 12)
    path = directory / "train-000000.tar"
    intact = path.read_bytes()
    broken = bytearray(intact)
    members = np.flatnonzero(manifest.shard == 0).tolist()
    for member in data.draw(st.lists(st.sampled_from(members), min_size=1, max_size=4, unique=True)):
        start = (int(manifest.block[member]) - 1) * BLOCK
        low, high = FIELDS[data.draw(st.sampled_from(list(FIELDS)))]
        at = data.draw(st.integers(low, high - 1))
        letters = st.sampled_from([b" ", b"\0", b"0", b"1", b"7", b"8", b".", b"/", b"\x80", b"\xff", b"L", b"x"])
        new = b"".join(data.draw(st.lists(letters, min_size=1, max_size=3)))[: high - at]
        broken[start + at : start + at + len(new)] = new
        if data.draw(st.booleans()):
            broken[start : start + BLOCK] = changed(broken[start : start + BLOCK], 0, b"")
    try:
        path.write_bytes(broken)
        assert set(reasons(manifest)) == {place(manifest, m) for m in members if named_otherwise(manifest, broken, m)}
    finally:
        path.write_bytes(intact)


def named_otherwise(manifest: Manifest, shard: bytes, member: int) -> bool:
    """Whether tarfile reads another name, size or kind of file in front of a member."""
    key, modality, offset = place(manifest, member)
    assert xxhash.xxh3_64_intdigest(shard[offset : offset + int(manifest.size[member])]) == manifest.checksum[member]
    try:
        info = tarfile.TarInfo.frombuf(shard[offset - BLOCK : offset], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return True
    named = info.name.removeprefix("./").startswith(f"{key}.{modality}.")
    return not (named and info.isreg() and info.size == int(manifest.size[member]))
