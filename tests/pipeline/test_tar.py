"""Shards are the tars that webdataset writes, byte for byte."""

from __future__ import annotations

import io
import tarfile

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.writing.tar import TarWriter

NAMES = st.from_regex(r"[A-Za-z0-9_\-.]{1,100}", fullmatch=True)
DATA = st.binary(max_size=1500)


def ours(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    tar = TarWriter(file)
    for name, data in members:
        tar.write(name, data)
    assert tar.written == file.tell()
    tar.close()
    return file.getvalue()


def theirs(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        tar.tarstream.format = tarfile.USTAR_FORMAT  # what it means to ask for
        for name, data in members:
            key, _, rest = name.partition(".")
            tar.write({"__key__": key, rest: data})
    return file.getvalue()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, DATA), max_size=30))
def test_any_members_are_laid_out_as_pythons_tarfile_does(members: list[tuple[str, bytes]]) -> None:
    """The headers are tarfile's own, and it reads everything back."""
    written = ours(members)
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        infos = tar.getmembers()
        found = [(info.name, tar.extractfile(info).read()) for info in infos]  # type: ignore[union-attr]
    assert found == members
    for info in infos:
        assert written[info.offset :][:512] == info.tobuf(tarfile.USTAR_FORMAT)
        assert (info.mode, info.mtime, info.type) == (0o444, 0, tarfile.REGTYPE)
    assert len(written) % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 9_216, 70_000])
@pytest.mark.parametrize("letters", [1, 20, 90])
def test_shards_are_webdatasets_own_bytes(size: int, letters: int) -> None:
    members = [(f"{'k' * letters}.image.png", bytes(size)), ("other/0.label.cls", b"7")]
    assert ours(members) == theirs(members)
    assert ours(members * 9) == theirs(members * 9)


def test_a_name_that_is_too_long_is_never_written_in_part() -> None:
    with pytest.raises(AssertionError):
        ours([("k" * 101, b"")])
