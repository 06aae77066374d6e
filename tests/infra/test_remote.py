"""Ranges behind a URL: all bytes arrive right over servers that fail for a while; what lasts is one sentence."""

from __future__ import annotations

import errno
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from infra.errors import UserError
from infra.storage import open_directory, remote, requests
from tests.infra.servers import Emulator, Faulty, FileServer, until

CONTENT = random.Random(0).randbytes(50_500)
BLOCK = 1000
V = "version"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, short delays and a cache of the test's own."""
    monkeypatch.setattr(remote, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(requests, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(requests, "LONGEST_DELAY", 0.02)
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Faulty]:
    started = Faulty({"a.tar": CONTENT, "b c#1%.tar": CONTENT[::-1], "empty": b""})
    yield started
    started.close()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    started = Emulator()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        started.put("shards", {"data/a.tar": CONTENT, "data/manifest.arrow": CONTENT[:5500]})
    yield started
    started.close()


@pytest.fixture
def bucket(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Emulator:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", emulator.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    emulator.every = emulator.refused = 0
    return emulator


def every(number: int, fault: str) -> Callable[[int, str], str]:
    return lambda count, name: fault if count % number == 0 else ""


def reads_right(directory: Any, name: str = "a.tar", content: bytes = CONTENT) -> None:
    """Everything of one file, in ranges of many sizes and in a random order."""
    draw = random.Random(1)
    starts = [0, *(draw.randrange(len(content)) for _ in range(40)), len(content) - 1, len(content), len(content) + 99]
    sizes = [len(content), *(draw.choice((0, 1, 300, BLOCK, 4321)) for _ in range(40)), 9, 9, 9]
    answers = directory.read([name] * len(starts), starts, sizes, V)
    assert answers == [content[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def test_ranges_and_names(server: Faulty) -> None:
    directory = open_directory(server.url + "/")
    assert directory.place == server.url
    reads_right(directory)
    reads_right(directory, "b c#1%.tar", CONTENT[::-1])
    asked = server.gets.total()
    reads_right(directory)
    reads_right(open_directory(server.url))
    assert server.gets.total() == asked == len(server.gets) == 2 * 51  # each block once
    assert directory.sizes(["b c#1%.tar", "none", "empty"]) == [50_500, None, 0]
    assert directory.read(["empty"], [0], [5], V) == [b""]
    assert directory.retries == 0


@pytest.mark.parametrize("fault", ["503", "500", "429", "cut", "short"])
def test_passing_faults_pass(server: Faulty, fault: str) -> None:
    server.fault = every(3, fault)
    directory = open_directory(server.url)
    reads_right(directory)
    assert directory.size("a.tar") == 50_500
    assert directory.whole("a.tar").read_bytes() == CONTENT
    assert directory.retries > 10


def test_a_server_that_hangs_is_asked_again(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SILENCE_SECONDS", 0.3)
    server.fault = lambda count, name: "hang" if count in (5, 20) else ""
    directory = open_directory(server.url)
    reads_right(directory)
    assert directory.retries == 2


def test_a_server_without_ranges_is_named(server: Faulty, tmp_path: Path) -> None:
    server.fault = every(1, "whole")
    directory = open_directory(server.url)
    with pytest.raises(UserError, match=re.escape(f"{server.url}/a.tar: the server does not serve ranges")):
        directory.read(["a.tar"], [0], [1], V)
    assert directory.retries == 0
    assert not list((tmp_path / "cache").glob("??/*"))
    server.files["small"] = b"no longer than a block"
    assert directory.read(["small"], [3], [6], V) == [b"longer"]
    server.files["a.tar"] = bytes(64 << 20)
    with pytest.raises(UserError, match="does not serve ranges"):
        open_directory(server.url).read(["a.tar"], [0], [1], V)
    until(lambda: server.broken == 1)  # nobody takes the whole of it into memory


def test_too_many_bytes_from_any_storage_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/data/a.tar", CONTENT)
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: CONTENT)
    with pytest.raises(UserError, match=r"memory://data/a.tar: the server does not serve ranges"):
        open_directory("memory://data").read(["a.tar"], [0], [1], V)


def test_a_missing_file_is_an_error_in_its_place(server: Faulty) -> None:
    directory = open_directory(server.url)
    missing, found = directory.read(["none.tar", "a.tar"], [0, 7], [9, 9], V)
    assert isinstance(missing, FileNotFoundError)
    assert missing.errno == errno.ENOENT
    assert found == CONTENT[7:16]
    with pytest.raises(FileNotFoundError):
        directory.whole("none.tar")
    server.files["none.tar"] = CONTENT
    reads_right(directory, "none.tar")
    del server.files["a.tar"]  # in the midst of a run
    gone, cached = directory.read(["a.tar", "none.tar"], [30_000, 0], [5000, 5], V)
    assert isinstance(gone, FileNotFoundError)
    assert cached == CONTENT[:5]
    assert directory.retries == 0


@pytest.mark.parametrize(
    ("status", "sentence"),
    [("403", "access refused .*netrc"), ("401", "access refused"), ("400", "correct the URL"), ("416", "correct")],
)
def test_what_does_not_pass_is_one_sentence(server: Faulty, status: str, sentence: str) -> None:
    server.fault = every(1, status)
    directory = open_directory(server.url)
    for ask in (lambda: directory.read(["a.tar"], [0], [1], V), lambda: directory.whole("a.tar")):
        with pytest.raises(UserError, match=f"{server.url}/a.tar cannot be read: .*{sentence}") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert directory.retries == 0


def test_a_file_of_unknown_length_is_one_sentence(server: Faulty) -> None:
    server.headers = {"Content-Length": "", "Connection": "close"}
    with pytest.raises(UserError, match="does not say how long"):
        open_directory(server.url).read(["a.tar"], [0], [1], V)


def test_a_server_gone_for_good_is_one_sentence(nobody: str) -> None:
    directory, began = open_directory(nobody), time.monotonic()
    with pytest.raises(UserError, match=rf"{nobody} cannot be read: 10 attempts over 0 seconds, last .*resumed"):
        directory.read(["a.tar", "b.tar"], [0, 0], [1, 1], V)
    assert time.monotonic() - began < 5
    assert directory.retries == 18


def test_a_real_server_killed_in_mid_read_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(requests, "LONGEST_DELAY", 1.0)
    content = CONTENT * 20
    (tmp_path / "www").mkdir()
    (tmp_path / "www/a.tar").write_bytes(content)
    server = FileServer(tmp_path / "www", tmp_path)
    server.start()
    try:
        directory, answers = open_directory(server.url), []

        def read() -> None:
            for start in range(0, len(content), 10_000):
                answers.extend(directory.read(["a.tar"], [start], [10_000], V))
                time.sleep(0.002)

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: len(answers) >= 20)
        server.kill()
        until(lambda: directory.retries > 3)
        assert len(answers) < 90
        server.start()
        reader.join(20)
        assert b"".join(answers) == content
    finally:
        server.kill()


def test_a_manifest_is_copied_once_and_again_when_it_changes(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AT_ONCE", 4)  # so that it comes in several parts
    directory = open_directory(server.url)
    path = directory.whole("a.tar")
    assert path.read_bytes() == CONTENT
    asked = server.gets.total()
    assert open_directory(server.url).whole("a.tar") == path
    assert server.gets.total() == asked
    server.files["a.tar"], server.headers = CONTENT[::-1], {"ETag": '"2"'}
    assert directory.whole("a.tar").read_bytes() == CONTENT[::-1]
    server.headers = {}  # no mark of a version: fetched every time
    server.files["a.tar"] = CONTENT
    assert directory.whole("a.tar").read_bytes() == CONTENT
    server.files["a.tar"] = CONTENT[::-1]
    assert directory.whole("a.tar").read_bytes() == CONTENT[::-1]


def test_a_manifest_rewritten_while_it_is_copied(server: Faulty) -> None:
    def rewrite(count: int, name: str) -> str:
        if count == 20:
            server.files["a.tar"], server.headers = CONTENT[::-1], {"ETag": '"2"'}
        return ""

    server.fault = rewrite
    assert open_directory(server.url).whole("a.tar").read_bytes() == CONTENT[::-1]
    server.fault = lambda count, name: server.headers.update(ETag=f'"{count}"') or ""
    with pytest.raises(UserError, match="changed 3 times"):
        open_directory(server.url).whole("a.tar")


def test_s3_of_an_emulator(bucket: Emulator) -> None:
    directory = open_directory("s3://shards/data/")
    reads_right(directory)
    assert directory.sizes(["a.tar", "none.tar"]) == [50_500, None]
    assert directory.whole("manifest.arrow").read_bytes() == CONTENT[:5500]
    [missing] = directory.read(["none.tar"], [0], [1], V)
    assert isinstance(missing, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        open_directory("s3://no-such-bucket/data").whole("manifest.arrow")
    assert directory.retries == 0


def test_s3_of_an_emulator_that_asks_to_slow_down(bucket: Emulator) -> None:
    bucket.every = 4
    directory = open_directory("s3://shards/data")
    reads_right(directory)
    assert directory.whole("manifest.arrow").read_bytes() == CONTENT[:5500]
    assert directory.retries == bucket.refused > 10  # none is made again behind our back


def test_s3_without_credentials_or_server(bucket: Emulator, monkeypatch: pytest.MonkeyPatch, nobody: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    with pytest.raises(UserError, match="10 attempts over"):
        open_directory("s3://shards/data").size("a.tar")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match=r"access refused .*set AWS_PROFILE"):
        open_directory("s3://shards/data").read(["a.tar"], [0], [1], V)


def test_urls_that_can_never_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("gopher://h/d", "S3//bucket://", "http://", "s3:///"):
        with pytest.raises(UserError, match=f"{url.rstrip('/')}: no URL that can be read; give .* s3://BUCKET"):
            open_directory(url)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)  # not installed
    with pytest.raises(UserError, match=re.escape("pip install 'pairstream[s3]'")):
        open_directory("s3://shards/data")


def test_any_file_system_of_fsspec() -> None:
    fsspec.filesystem("memory").pipe("/data/a.tar", CONTENT)
    directory = open_directory("memory://data")
    reads_right(directory)
    assert directory.whole("a.tar").read_bytes() == CONTENT
    assert directory.sizes(["a.tar", "b.tar"]) == [50_500, None]
