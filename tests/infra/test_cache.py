"""The cache is bounded, shared, evicts what was not used for longest, and says what is wrong with its disk."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import cache as caching
from infra.storage.cache import Cache
from infra.storage.claims import Claim, part_of
from tests.infra.servers import failing, small_disk


def test_a_bound_is_bytes_or_has_a_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    for text, size in {"": 20 << 30, "5000000": 5_000_000, "20G": 20 << 30, "3 MiB": 3 << 20, "1tb": 1 << 40}.items():
        monkeypatch.setenv("PAIRSTREAM_CACHE_BYTES", text)
        assert Cache.from_environment().bound == size
    for text in ("much", "-1", "0", "5k", "1.5G", "20 G B"):
        monkeypatch.setenv("PAIRSTREAM_CACHE_BYTES", text)
        with pytest.raises(UserError, match=f"PAIRSTREAM_CACHE_BYTES is '{text}'"):
            Cache.from_environment()


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAIRSTREAM_CACHE", "PAIRSTREAM_CACHE_BYTES", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache.from_environment().directory == tmp_path / ".cache/pairstream"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache.from_environment().directory == tmp_path / "xdg/pairstream"
    monkeypatch.setenv("PAIRSTREAM_CACHE", "~/own")
    assert Cache.from_environment().directory == tmp_path / "own"


def test_a_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(UserError, match=f"{tmp_path}/file/cache .*Not a directory.*set PAIRSTREAM_CACHE"):
        Cache(tmp_path / "file/cache", 1 << 30)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4000)
    for number in range(4):
        _put(cache, number)
        _age(cache, number, 100 - number)
    again = Cache(tmp_path, 4000)  # another process
    assert again.read((0,), 1000, 0, 5) == b"00000"  # used: now the youngest
    _put(cache, 4)
    assert _held(cache, range(5)) == [0, 2, 3, 4]
    assert again.read((0,), 1000, 5, 5) == b"00000"
    _put(cache, 5)
    assert _held(cache, range(6)) == [0, 3, 4, 5]


def test_use_is_marked_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 16 << 24)
    _put(cache, 0)
    assert cache.read((0,), 1000, 0, 1) == b"0"
    _age(cache, 0, 500)
    assert cache.read((0,), 1000, 0, 1) == b"0"
    assert time.time() - cache.path((0,), "block").stat().st_mtime > 400
    monkeypatch.setattr(caching, "TOUCH_SECONDS", 0.0)
    assert cache.read((0,), 1000, 0, 1) == b"0"
    assert time.time() - cache.path((0,), "block").stat().st_mtime < 400


def test_the_directory_is_looked_at_only_to_evict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    entries = caching._entries
    monkeypatch.setattr(caching, "_entries", lambda place: looked.append(place) or entries(place))
    cache = Cache(tmp_path, 160_000)
    for number in range(400):
        _put(cache, number)
        assert _total(tmp_path) <= 160_000
    assert len(looked) <= 1 + (400 - 160) // 10 + 1


def test_evicting_spares_what_is_not_the_caches_own(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab/thesis.tex").write_text("x" * 9000)
    (tmp_path / "notes").write_text("x" * 9000)
    cache = Cache(tmp_path, 3000)
    for number in range(9):
        _put(cache, number)
    assert (tmp_path / "ab/thesis.tex").exists()
    assert (tmp_path / "notes").exists()


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3000)
    left, held = (part_of(cache.path((name,), "block")) for name in ("left", "held"))
    claim = cache.claim(cache.path(("held",), "block"))
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x" * 500)
    for part in (left, held):
        os.utime(part, (0, 0))
    for number in range(5):
        _put(cache, number)
    assert not left.exists()
    assert held.exists()
    assert claim
    claim.release()
    assert not held.exists()


def test_a_path_just_handed_out_is_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3000)
    path = cache.path(("manifest",), "whole")
    claim = cache.claim(path)
    assert claim
    cache.store(claim, [b"m" * 500, b"m" * 500], 1000)
    for number in range(9):
        _put(cache, number)
    assert cache.held(path, 1000)
    os.utime(path, (0, 0))
    for number in range(9, 18):
        _put(cache, number)
    assert not cache.held(path, 1000)


def test_a_file_is_claimed_once_until_it_is_there(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, 9000), Cache(tmp_path, 9000)
    path = cache.path((0,), "block")
    claim = cache.claim(path)
    assert claim
    assert other.claim(path) is None
    claim.release()
    claim = other.claim(path)
    assert claim
    other.store(claim, [b"0" * 1000], 1000)
    assert cache.claim(path) is None
    assert cache.read((0,), 1000, 0, 1000) == b"0" * 1000
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no .part is left


def test_a_lock_on_what_was_dropped_meanwhile_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, claims = Cache(tmp_path, 9000), list[Claim | None]()
    path = cache.path((0,), "block")
    claims.append(cache.claim(path))
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        assert claims[0]
        claims[0].release()
        claims.append(cache.claim(path))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert cache.claim(path) is None
    assert claims[1]
    claims[1].release()


def test_one_at_a_time_counts_and_a_forked_process_keeps_no_lock(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 9000)
    thread = threading.Thread(target=_put, args=(cache, 0))
    with cache._usage():
        thread.start()
        thread.join(0.1)
        assert not cache.path((0,), "block").exists()
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        thread.join(5)
        assert cache.path((0,), "block").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("length", [0, 400, 1001])
def test_a_block_of_another_length_is_none(tmp_path: Path, length: int) -> None:
    cache, path = Cache(tmp_path, 9000), Cache(tmp_path, 9000).path((0,), "block")
    _put(cache, 0)
    os.truncate(path, length)
    assert cache.read((0,), 1000, 0, 5) is None
    assert not path.exists()


def test_somebody_empties_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 9000)
    _put(cache, 0)
    claim = cache.claim(cache.path((1,), "block"))
    assert claim
    shutil.rmtree(tmp_path / "cache")
    cache.store(claim, [b"1" * 1000], 1000)
    _put(cache, 2)
    assert _held(cache, range(3)) == [2]


def test_a_small_disk_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    with small_disk(1 << 20, tmp_path / "disk") as disk:
        cache = Cache(disk / "cache", 1 << 30)
        for number in range(1000):
            _put(cache, number, 4096)
        assert 999 in _held(cache, range(1000), 4096)
        shutil.rmtree(disk / "cache")
        with (disk / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
            filler.write(bytes(2 << 20))
        full = r"the disk of the cache is full.*free space.*PAIRSTREAM_CACHE .*PAIRSTREAM_CACHE_BYTES"
        with pytest.raises(UserError, match=full):
            _put(Cache(disk, 1 << 30), 0, 1 << 20)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_half_of_the_cache_makes_room_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    cache = Cache(tmp_path, 1 << 20)
    for number in range(8):
        _put(cache, number)
        _age(cache, number, 100 - number)
    write, failures = os.write, [code]
    monkeypatch.setattr(os, "write", lambda *a: failing(failures.pop())() if failures else write(*a))
    _put(cache, 8)
    assert _held(cache, range(9)) == [4, 5, 6, 7, 8]
    failures += [code] * 2
    with pytest.raises(UserError, match=f"{tmp_path}: the disk of the cache is full"):
        _put(cache, 9)
    _put(cache, 9)  # nobody holds it


def _put(cache: Cache, number: int, size: int = 1000) -> None:
    claim = cache.claim(cache.path((number,), "block"))
    assert claim
    try:
        cache.store(claim, [str(number % 10).encode() * size], size)
    finally:
        claim.release()


def _held(cache: Cache, numbers: range, size: int = 1000) -> list[int]:
    return [number for number in numbers if cache.path((number,), "block").exists()]


def _age(cache: Cache, number: int, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.path((number,), "block"), (then, then))


def _total(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("??/*"))
