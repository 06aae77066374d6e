"""Processes and threads share one cache: each block is fetched once, and whoever dies holds up nobody."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.storage import cache as caching
from infra.storage import open_directory, remote
from tests.infra.servers import Faulty, until

CONTENT = random.Random(0).randbytes(50_500)
BLOCK = 1000
V = "version"
READ = """
import random, sys, time
from pathlib import Path
from infra.storage import open_directory, remote
remote.BLOCK_BYTES = 1000
url, out, seed = sys.argv[1:]
directory = open_directory(url)
starts = list(range(0, 50_500, 500))
random.Random(seed).shuffle(starts)
(Path(out) / f"ready{seed}").touch()
while not (Path(out) / "go").exists():
    time.sleep(0.001)
answers = []
for first in range(0, len(starts), 10):
    some = starts[first : first + 10]
    answers += directory.read(["a.tar"] * len(some), some, [500] * len(some), "version")
whole = directory.whole("a.tar").read_bytes()
assert [whole[start : start + 500] for start in starts] == answers
(Path(out) / f"done{seed}").write_bytes(whole)
"""
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and a cache of the test's own."""
    monkeypatch.setattr(remote, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(caching, "SMALLEST_BYTES", 1)
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Faulty]:
    started = Faulty({"a.tar": CONTENT})
    yield started
    started.close()


def read(directory: remote.Remote, version: str = V) -> bytes:
    starts = range(0, len(CONTENT), 700)
    return b"".join(directory.read(["a.tar"] * len(starts), starts, [700] * len(starts), version))  # type: ignore


def remote_directory(server: Faulty) -> remote.Remote:
    directory = open_directory(server.url)
    assert isinstance(directory, remote.Remote)
    return directory


def blocks(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("??/*.block"))


def taken(cache: caching.Cache) -> int:
    """Bytes of the cache, with evicting stopped while they are counted; what gets its name meanwhile counts once."""
    sizes: dict[str, int] = {}
    with cache._usage():
        for path in cache.directory.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path.stem] = path.stat().st_size
    return sum(sizes.values())


def test_two_processes_fetch_each_block_once(server: Faulty, tmp_path: Path, start_child: Start) -> None:
    server.pause = 0.005
    children = [start_child(READ, server.url, tmp_path, seed) for seed in range(2)]
    until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    (tmp_path / "go").touch()
    assert [child.communicate(timeout=30)[1].decode() for child in children] == ["", ""]
    assert [(tmp_path / f"done{seed}").read_bytes() for seed in range(2)] == [CONTENT] * 2
    assert len(server.gets) == 51
    assert set(server.gets.values()) == {2}  # once as a block, once for the whole file
    assert not list((tmp_path / "cache").glob("??/*.part"))


def test_threads_fetch_each_block_once(server: Faulty) -> None:
    server.pause = 0.005
    directory, answers = remote_directory(server), list[bytes]()
    threads = [threading.Thread(target=lambda: answers.append(read(directory))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [CONTENT] * 6
    assert len(server.gets) == server.gets.total() == 51


@pytest.mark.parametrize("deed", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_stops_in_mid_download_holds_up_nobody(
    server: Faulty, tmp_path: Path, start_child: Start, monkeypatch: pytest.MonkeyPatch, deed: signal.Signals
) -> None:
    if deed == signal.SIGSTOP:  # only then has anybody to lose patience
        monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.3)
    server.fault = lambda count, name: "hang" if server.gets.total() else ""
    (tmp_path / "go").touch()
    child = start_child(READ, server.url, tmp_path, 0)
    try:
        until(lambda: server.gets.total() >= 5)
        child.send_signal(deed)
        server.fault = lambda count, name: ""
        assert list((tmp_path / "cache").glob("??/*.part"))
        began = time.monotonic()
        directory = remote_directory(server)
        assert read(directory) == CONTENT
        assert directory.whole("a.tar").read_bytes() == CONTENT
        assert time.monotonic() - began < 10
    finally:
        child.kill()
        child.communicate()
    assert read(remote_directory(server)) == CONTENT
    assert not list((tmp_path / "cache").glob("??/*.part"))


def test_the_bound_holds_while_more_is_read_than_it_allows(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRSTREAM_CACHE_BYTES", str(8 * BLOCK))
    answers, most = list[bytes](), 0

    def read_twice() -> None:
        directory = remote_directory(server)
        answers.extend(read(directory) for _ in range(2))

    readers = [threading.Thread(target=read_twice) for _ in range(2)]
    for reader in readers:
        reader.start()
    cache = caching.Cache.from_environment()
    while any(reader.is_alive() for reader in readers):
        most = max(most, taken(cache))
        time.sleep(0.001)
    assert answers == [CONTENT] * 4
    assert 4 * BLOCK < most <= (8 + 2) * BLOCK


def test_damaged_blocks_are_fetched_again_once_forgotten(server: Faulty, tmp_path: Path) -> None:
    directory = remote_directory(server)
    assert read(directory) == CONTENT
    for path in blocks(tmp_path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert read(directory) != CONTENT
    directory.forget("a.tar", 0, 2 * BLOCK, V)
    assert directory.read(["a.tar"], [0], [2 * BLOCK], V) == [CONTENT[: 2 * BLOCK]]
    assert directory.read(["a.tar"], [2 * BLOCK], [BLOCK], V) != [CONTENT[2 * BLOCK : 3 * BLOCK]]
    directory.forget("a.tar", 2 * BLOCK, len(CONTENT), V)
    assert read(directory) == CONTENT


@pytest.mark.parametrize("length", [0, 400])
def test_blocks_cut_off_under_a_reader_are_fetched_again(server: Faulty, tmp_path: Path, length: int) -> None:
    directory = remote_directory(server)
    assert read(directory) == read(directory) == CONTENT  # now it has them open
    for path in blocks(tmp_path):
        os.truncate(path, length)
    assert read(directory) == CONTENT
    assert server.gets.total() == 2 * 51


def test_a_manifest_whose_claim_is_held_for_ever_is_fetched_nevertheless(
    server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.1)
    directory, claim, held = remote_directory(server), caching.Cache.claim, list[object]()

    def stolen(cache: caching.Cache, path: Path) -> object:
        if not held:
            held.append(claim(cache, path))
        return claim(cache, path)

    monkeypatch.setattr(caching.Cache, "claim", stolen)
    assert directory.whole("a.tar").read_bytes() == CONTENT
    assert held != [None]


def test_another_version_is_never_served(server: Faulty) -> None:
    directory = remote_directory(server)
    assert read(directory, "1") == CONTENT
    server.files["a.tar"] = CONTENT[::-1]
    assert read(directory, "2") == CONTENT[::-1]
    assert read(remote_directory(server), "1") == CONTENT


def test_a_cache_emptied_in_mid_run_fills_again(server: Faulty, tmp_path: Path) -> None:
    directory = remote_directory(server)
    assert read(directory) == CONTENT
    shutil.rmtree(tmp_path / "cache")
    assert read(remote_directory(server)) == CONTENT
    assert len(blocks(tmp_path)) == 51


def test_a_forked_process_reads_on(server: Faulty) -> None:
    directory = remote_directory(server)
    directory.read(["a.tar"], [0], [1], V)
    child = os.fork()
    if not child:
        os._exit(0 if read(directory) == CONTENT else 1)
    assert read(directory) == CONTENT
    assert os.waitpid(child, 0)[1] == 0
