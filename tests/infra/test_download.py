"""Official files are fetched whole and right over servers that break off, and only what is missing of them."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import download
from infra.download import Official, fetch
from infra.errors import UserError
from tests.infra.servers import Faulty, FileServer, Handler, failing, small_disk, until

CONTENT = random.Random(0).randbytes(300_000)
OTHER = CONTENT[::-1]
ETAG, DATE = {"ETag": '"1"'}, {"Last-Modified": "Mon, 26 Jan 1998 15:07:00 GMT"}
CHILD = """
import sys
from pathlib import Path
from infra.download import Official, fetch
url, size, sha256, directory = sys.argv[1:]
fetch([Official("a.gz", url, int(size), sha256)], Path(directory), lambda done, total: None)
"""


class Publisher(Faulty):
    """Serves ranges "from here to the end" as well, if they are of the version that is asked for (If-Range).

    Further faults of an answer: "cut" (the connection ends after half of what was asked for), "stay" (nothing more
    comes after half until `close`), "whole" (no ranges), "odd" (another range than was asked for), "careless" (a
    range whatever the version), "long" (of unknown length, and too long), "moved" (a redirect to the same name below
    /moved/).
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.RequestHandlerClass = _Publisher
        self.agents: set[str] = set()
        self.asked: list[str] = []
        """The ranges that were asked for; "" is a whole file."""


class _Publisher(Handler):
    server: Publisher

    def do_GET(self) -> None:
        name, fault = self._arrive(self.server.gets)
        self.server.agents.add(self.headers["User-Agent"])
        self.server.asked.append(self.headers.get("Range", ""))
        name = name.removeprefix("moved/")
        found, asked = self.server.files.get(name), self.headers.get("Range", "")
        if fault == "moved" and "moved" not in self.path:
            self._say(302, 0, {"Location": f"/data/moved/{name}"})
            return
        if found is None or fault.isdecimal():
            self._say(int(fault) if fault else 404, 0)
            return
        time.sleep(self.server.pause)
        status, extra = 200, {}
        same = self.headers["If-Range"] in self.server.headers.values()
        if asked and fault != "whole" and (same or fault == "careless"):
            first = int(asked.removeprefix("bytes=").removesuffix("-")) + (fault == "odd")
            status, extra = 206, {"Content-Range": f"bytes {first}-{len(found) - 1}/{len(found)}"}
            if first >= len(found):
                self._say(416, 0)
                return
            found = found[first:]
        if fault == "long":
            self._say(200, 0, {"Content-Length": "", "Connection": "close"})
            self.wfile.write(found + b"!")
            return
        self._say(status, len(found), extra)
        half = fault in ("cut", "stay")
        self.wfile.write(found[: len(found) // 2] if half else found)
        self.wfile.flush()
        if fault == "stay":
            self.server.freed.wait()
        self.close_connection = half

    def _say(self, status: int, length: int, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(length)} | self.server.headers | (extra or {})
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(download, "LONGEST_DELAY", 0.004)
    monkeypatch.setattr(download, "PIECE_BYTES", 10_000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Publisher]:
    started = Publisher({"a.gz": CONTENT, "b.gz": OTHER})
    yield started
    started.close()


def official(url: str, name: str = "a.gz", content: bytes = CONTENT) -> Official:
    return Official(name, f"{url}/{name}", len(content), hashlib.sha256(content).hexdigest())


def quiet(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def first(*faults: str) -> Callable[[int, str], str]:
    """The faults of the first requests."""
    return lambda number, name: faults[number - 1] if number <= len(faults) else ""


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def holds(directory: Path, **files: bytes) -> None:
    """The directory holds these official files, and nothing else but the lock."""
    assert left(directory) == sorted([*(f"{name}.gz" for name in files), "download.lock"])
    for name, content in files.items():
        assert (directory / f"{name}.gz").read_bytes() == content


def refusal(directory: Path, *files: Official) -> str:
    """The one sentence that fetching ends with."""
    with pytest.raises(UserError) as caught:
        fetch(files, directory, quiet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_fetched_once_and_progress_counts_their_bytes(server: Publisher, tmp_path: Path) -> None:
    files, raw, said = [official(server.url), official(server.url, "b.gz", OTHER)], tmp_path / "new/raw", []
    fetch(files, raw, lambda *numbers: said.append(numbers))
    holds(raw, a=CONTENT, b=OTHER)
    done = [number for number, _ in said]
    assert {total for _, total in said} == {600_000}
    assert (done[0], done[-1]) == (0, 600_000)
    assert done == sorted(done)
    assert len(set(done)) > 60  # a piece at a time
    assert server.agents == {"pairstream"}

    said.clear()
    (raw / "a.gz").unlink()
    fetch(files, raw, lambda *numbers: said.append(numbers))
    holds(raw, a=CONTENT, b=OTHER)
    assert said[0] == (300_000, 600_000)
    assert said[-1] == (600_000, 600_000)
    (raw / "download.lock").unlink()
    fetch(files, raw, quiet)
    assert left(raw) == ["a.gz", "b.gz"]  # nothing is written where nothing is missing
    assert server.asked == ["", "", ""]


def test_nothing_has_the_name_of_a_file_before_it_is_whole(server: Publisher, tmp_path: Path) -> None:
    seen = []

    def look(done: int, total: int) -> None:
        seen.append((tmp_path / "a.gz").exists())

    fetch([official(server.url)], tmp_path, look)
    assert seen == [False] * (len(seen) - 1) + [True]


@pytest.mark.parametrize("mark", [ETAG, DATE, {"ETag": 'W/"1"'} | DATE])
def test_after_a_cut_only_the_rest_is_asked_for(server: Publisher, tmp_path: Path, mark: dict[str, str]) -> None:
    server.headers, server.fault = mark, first("cut", "503", "cut")
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "bytes=150000-", "bytes=150000-", "bytes=225000-"]


@pytest.mark.parametrize("mark", [{"ETag": ""}, {"ETag": 'W/"1"'}])
def test_a_server_that_tells_no_version_sends_the_file_anew(
    server: Publisher, tmp_path: Path, mark: dict[str, str]
) -> None:
    server.headers, server.fault = mark, first("cut")
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", ""]


def test_a_server_without_ranges_sends_the_file_anew(server: Publisher, tmp_path: Path) -> None:
    server.fault, said = first("cut", "whole"), []
    fetch([official(server.url)], tmp_path, lambda done, total: said.append(done))
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "bytes=150000-"]
    assert 0 < said[said.index(150_000) + 1] <= 10_000  # what was thrown away is not counted twice


def test_another_range_than_was_asked_for_is_not_taken(server: Publisher, tmp_path: Path) -> None:
    server.fault = first("cut", "odd")
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "bytes=150000-", ""]


@pytest.mark.parametrize("fault", ["", "careless"])
def test_a_file_that_changes_on_the_server_is_not_mixed(server: Publisher, tmp_path: Path, fault: str) -> None:
    server.files["a.gz"], server.fault = OTHER, first("cut", "403")
    assert "403 Forbidden" in refusal(tmp_path, official(server.url))
    assert (tmp_path / "a.gz.part").read_bytes() == OTHER[:150_000]
    server.files["a.gz"], server.headers, server.fault = CONTENT, {"ETag": '"2"'}, lambda *_: fault
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "bytes=150000-", "bytes=150000-", ""][: 4 if fault else 3]


def test_a_part_that_the_server_says_is_too_long_is_dropped(server: Publisher, tmp_path: Path) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT + b"!")
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    server.files["b.gz"] = OTHER[:200]
    (tmp_path / "b.gz.part").write_bytes(OTHER[:1000])
    (tmp_path / "b.gz.part.version").write_text('"1"')
    assert "has 200 bytes, the official one 300,000" in refusal(tmp_path, official(server.url, "b.gz", OTHER))
    assert server.asked == ["", "bytes=1000-", ""]  # the second got 416


def test_a_killed_process_leaves_what_the_next_one_takes_up(
    server: Publisher, tmp_path: Path, start_child: Callable[..., subprocess.Popen[bytes]]
) -> None:
    file, part = official(server.url), tmp_path / "a.gz.part"
    server.fault = first("stay")
    child = start_child(CHILD, file.url, file.size, file.sha256, tmp_path)
    until(lambda: part.exists() and part.stat().st_size == 150_000)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "a.gz").exists()
    said = []
    fetch([file], tmp_path, lambda done, total: said.append(done))
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "bytes=150000-"]
    assert said[1] > 150_000


def test_killed_before_the_name_was_given(server: Publisher, tmp_path: Path) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT)
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == []


def test_two_processes_fetch_a_file_once(
    server: Publisher, tmp_path: Path, start_child: Callable[..., subprocess.Popen[bytes]]
) -> None:
    file, server.pause = official(server.url), 1.0
    children = [start_child(CHILD, file.url, file.size, file.sha256, tmp_path) for _ in range(2)]
    for child in children:
        assert child.communicate() == (None, b"")
        assert child.returncode == 0
    holds(tmp_path, a=CONTENT)
    assert server.asked == [""]


def test_an_interrupted_call_is_taken_up(server: Publisher, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([official(server.url)], tmp_path, interrupt)
    arrived = (tmp_path / "a.gz.part").stat().st_size
    assert 100_000 <= arrived < 110_000
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", f"bytes={arrived}-"]


def test_a_real_server(tmp_path: Path) -> None:
    published, raw = tmp_path / "www/a.gz", tmp_path / "raw"
    published.parent.mkdir()
    published.write_bytes(CONTENT)
    real, said = FileServer(published.parent, tmp_path), []

    def interrupt(done: int, total: int) -> None:
        if done >= 100_000:
            raise KeyboardInterrupt

    real.start()
    try:
        file = official(real.url)
        with pytest.raises(KeyboardInterrupt):
            fetch([file], raw, interrupt)
        fetch([file], raw, lambda done, total: said.append(done))
        holds(raw, a=CONTENT)
        assert said[1] > 100_000  # a real range, of a real mark
        (raw / "a.gz").unlink()
        with pytest.raises(KeyboardInterrupt):
            fetch([file], raw, interrupt)
        published.write_bytes(OTHER)
        os.utime(published, (0, 0))
        said.clear()
        fetch([official(real.url, content=OTHER)], raw, lambda done, total: said.append(done))
        holds(raw, a=OTHER)
        assert 0 < said[1] <= 10_000  # from the beginning
    finally:
        real.kill()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_range(server: Publisher, tmp_path: Path, status: int) -> None:
    server.fault = first("moved", "cut", "moved")
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "", "bytes=150000-", "bytes=150000-"]
    assert server.gets["moved/a.gz", "bytes=150000-"] == 1


def test_a_wrong_checksum_is_told_and_nothing_stays(server: Publisher, tmp_path: Path) -> None:
    server.files["a.gz"] = OTHER
    file = official(server.url)
    assert refusal(tmp_path, file) == (
        f"{file.url} cannot be fetched: what arrived has SHA-256 {hashlib.sha256(OTHER).hexdigest()}, expected "
        f"{file.sha256}, and was removed; start again, or fetch the official file by hand and put it there as "
        f"{tmp_path / 'a.gz'}"
    )
    holds(tmp_path)
    assert server.asked == [""]


@pytest.mark.parametrize(
    ("fault", "content", "why"),
    [
        ("404", CONTENT, "404 Not Found"),
        ("403", CONTENT, "403 Forbidden"),
        ("", CONTENT[1:], "has 299,999 bytes, the official one 300,000"),
        ("long", CONTENT, "has more than 300,000 bytes"),
    ],
)
def test_what_does_not_pass_is_asked_for_once(
    server: Publisher, tmp_path: Path, fault: str, content: bytes, why: str
) -> None:
    server.fault, server.files["a.gz"] = first(fault), content
    said = refusal(tmp_path, official(server.url))
    assert said.startswith(f"{server.url}/a.gz cannot be fetched: ")
    assert why in said
    assert said.endswith(f"; fetch the official file by hand and put it there as {tmp_path / 'a.gz'}")
    holds(tmp_path)
    assert server.asked == [""]


@pytest.mark.parametrize("fault", ["503", "500", "429", "cut"])
def test_a_server_that_gets_no_further_is_given_up(
    server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    monkeypatch.setattr(download, "LONGEST_DELAY", 0.1)
    server.headers, server.fault = {"ETag": ""}, lambda number, name: fault  # "cut": half of it, time and again
    said = refusal(tmp_path, official(server.url))
    arrived = 150_000 if fault == "cut" else 0
    assert "cannot be fetched: 10 attempts over 0 seconds, last " in said
    assert f"start again later, which goes on from the {arrived:,} bytes of 300,000 that are there, or fetch" in said
    assert {"cut": "the answer ended after 150,000 bytes of 300,000"}.get(fault, f"HTTP Error {fault}") in said
    assert len(server.asked) == 10
    assert [wait for wait in waits if wait] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1]


def test_as_long_as_bytes_arrive_it_goes_on(server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.fault = first(*["cut"] * 15)
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert len(server.asked) == 16


def test_nobody_answers(nobody: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, official(nobody))
    assert re.search(r"10 attempts over \d seconds, last ConnectionRefusedError .*; start again later", said)
    holds(tmp_path)


def test_a_server_that_falls_silent_is_asked_again(
    server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    server.fault = first("stay")
    fetch([official(server.url)], tmp_path, quiet)
    holds(tmp_path, a=CONTENT)
    assert server.asked == ["", "bytes=150000-"]


def test_a_file_of_ones_own_is_left_alone(server: Publisher, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(OTHER)
    said = refusal(tmp_path, official(server.url), official(server.url, "b.gz", OTHER))
    assert said.startswith(
        f"{tmp_path / 'a.gz'} is not the official file (SHA-256 {hashlib.sha256(OTHER).hexdigest()}, expected "
        f"{hashlib.sha256(CONTENT).hexdigest()}): move it away"
    )
    assert left(tmp_path) == ["a.gz"]
    assert (tmp_path / "a.gz").read_bytes() == OTHER
    assert server.asked == []


def test_a_directory_that_cannot_be_written(server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no directory")
    said = refusal(tmp_path / "file", official(server.url))
    assert said.startswith(f"{tmp_path / 'file'} cannot be used (")
    assert "give a directory that you may write to" in said
    monkeypatch.setattr(download.Path, "rename", failing(errno.EACCES))
    assert f"{tmp_path} cannot be used (Permission denied): give" in refusal(tmp_path, official(server.url))
    assert server.asked == [""]


def test_a_full_disk_keeps_what_has_arrived(server: Publisher, tmp_path: Path) -> None:
    with small_disk(120_000, tmp_path / "raw") as raw:
        said = refusal(raw, official(server.url))
        assert said.startswith(f"{raw} cannot be used (No space left on device): give a directory")
        assert "starting again goes on from it" in said
        arrived = (raw / "a.gz.part").read_bytes()
        assert arrived
        assert CONTENT.startswith(arrived)
    assert server.asked == [""]
