"""Local ranges come as plain reads give them, and what cannot be read is an error in its place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.storage import is_remote, local, open_directory
from tests.infra.servers import failing

BYTES = bytes(range(256)) * 40
V = "version"


def test_what_is_remote() -> None:
    assert is_remote("s3://bucket/data")
    assert is_remote("http://host/data")
    assert not is_remote("/data/s3")
    assert not is_remote(Path("data"))


def test_local_data_needs_no_fsspec() -> None:
    program = """
import sys
from infra.storage import open_directory
open_directory(".").read(["README.md"], [0], [1], "")
assert not {"fsspec", "aiohttp", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_local_ranges(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BYTES)
    (tmp_path / "b").write_bytes(BYTES[::-1])
    directory = open_directory(tmp_path)
    names, starts, sizes = ["b", "a", "a", "a", "b"], [5, 0, 10_000, 99_999, 0], [7, 10_240, 10_000, 1, 0]
    assert directory.read(names, starts, sizes, V) == [BYTES[::-1][5:12], BYTES, BYTES[10_000:], b"", b""]
    assert directory.place == str(tmp_path)
    assert directory.whole("a") == tmp_path / "a"
    assert directory.sizes(["a", "none", "b"]) == [10_240, None, 10_240]
    directory.forget("a", 0, 1, V)


def test_a_read_that_the_system_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(BYTES)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, min(size, 1000), start))
    assert open_directory(tmp_path).read(["a", "a"], [0, 500], [10_240, 99_999], V) == [BYTES, BYTES[500:]]


def test_what_is_no_file_is_an_error_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BYTES)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    directory = open_directory(tmp_path)
    names = ["none", "folder", "pipe", "a/below", "a"]
    answers = directory.read(names, [0] * 5, [3] * 5, V)
    assert all(isinstance(answer, FileNotFoundError) for answer in answers[:4])
    assert answers[4] == BYTES[:3]
    assert directory.sizes(names) == [None] * 4 + [10_240]
    for name in names[:4]:
        with pytest.raises(FileNotFoundError):
            directory.whole(name)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_disk_that_fails_is_an_error_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "a").write_bytes(BYTES)
    monkeypatch.setattr(os, "pread", failing(code))
    [answer] = open_directory(tmp_path).read(["a"], [0], [1], V)
    assert isinstance(answer, OSError)
    assert answer.errno == code


def test_a_fault_of_the_process_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(BYTES)
    monkeypatch.setattr(os, "pread", failing(errno.EMFILE))
    with pytest.raises(OSError, match="Too many"):
        open_directory(tmp_path).read(["a"], [0], [1], V)


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "OPEN_FILES", 10)
    names = [str(number) for number in range(50)]
    for name in names:
        (tmp_path / name).write_text(name)
    directory, before = open_directory(tmp_path), _open_files()
    answers: list[list[bytes | OSError]] = []

    def read() -> None:
        answers.append(directory.read(names * 20, [0] * 1000, [9] * 1000, V))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[name.encode() for name in names] * 20] * 4
    assert _open_files() <= before + 10


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
