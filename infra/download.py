"""Official files from public addresses, fetched into a directory: whole and right, or not at all.

Beside a file NAME that is to appear, the directory holds while it is fetched

    NAME.part            what has arrived; a later call asks only for the rest (a range, RFC 9110 section 14)
    NAME.part.version    the server's mark of the version that it is of: another version is fetched from its beginning
                         (If-Range, section 13.1.5)

and `download.lock`, which one process at a time holds.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLCertVerificationError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

from infra.disk import sync_to_disk, write_whole
from infra.errors import UserError
from infra.storage.faults import PASSING_STATUS, ShortAnswer, said
from infra.storage.requests import ATTEMPTS, FIRST_DELAY, LONGEST_DELAY, SILENCE_SECONDS

PIECE_BYTES = 1 << 20
"""At most so much of a file is in memory."""
Progress = Callable[[int, int], None]
"""Called now and then with the bytes of all files that are there, and all bytes."""


@dataclass(frozen=True)
class Official:
    """A file as its publishers hand it out."""

    name: str
    url: str
    size: int
    """In bytes."""
    sha256: str
    """In hexadecimal digits."""


def fetch(files: Sequence[Official], directory: Path, progress: Progress) -> None:
    """Fetch those of the files that are not in the directory yet; what is there is only checked, never overwritten.

    A process that finds another fetching into the directory waits for it. What has arrived when a call is interrupted
    or fails is taken up by the next one.

    Raises UserError where a server refuses a file, hands out another one, or breaks off time and again; where what
    arrived or what is there has another checksum than the official file; and where the directory cannot be used.
    """

    def report(arrived: int) -> None:
        progress(done + arrived, total)

    try:
        missing = [file for file in files if not _there(file, directory)]
        total = sum(file.size for file in files)
        done = total - sum(file.size for file in missing)
        report(0)
        if not missing:  # the directory may be one that cannot be written
            return
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "download.lock"):
            for file in missing:
                if not _there(file, directory):  # else another process has fetched it meanwhile
                    _Transfer(file, directory / file.name).run(report)
                done += file.size
                report(0)
    except OSError as error:
        raise UserError(
            f"{error.filename or directory} cannot be used ({error.strerror or error}): give a directory that you may "
            "write to and that has room; what has arrived is kept there, so that starting again goes on from it"
        ) from None


def _there(file: Official, directory: Path) -> bool:
    """Whether the official file is there. Raises UserError where there is another one of its name."""
    path = directory / file.name
    if not path.exists():
        return False
    found = _sha256(path)
    if found != file.sha256:
        raise UserError(
            f"{path} is not the official file (SHA-256 {found}, expected {file.sha256}): move it away to have that "
            "fetched, or go on without a download to use what is there"
        )
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Passing(Exception):
    """A fault of the server or the way to it: asking again may help."""


class _Transfer:
    """A file on its way to `path`; its process holds the directory's lock."""

    def __init__(self, file: Official, path: Path) -> None:
        self.file, self.path = file, path
        self.part = path.with_name(f"{path.name}.part")
        self.version = path.with_name(f"{path.name}.part.version")

    def run(self, report: Callable[[int], None]) -> None:
        """Fetch what is missing, and tell now and then how many bytes are there. Raises UserError and OSError."""
        furthest, attempts, began = self._arrived(), 0, time.monotonic()
        while self._arrived() != self.file.size:
            try:
                self._attempt(report)
            except _Passing as fault:
                if self._arrived() > furthest:
                    furthest, attempts, began = self._arrived(), 0, time.monotonic()
                attempts += 1
                if attempts == ATTEMPTS:
                    raise self._failed(
                        f"{ATTEMPTS} attempts over {time.monotonic() - began:.0f} seconds, last {fault}",
                        f"start again later, which goes on from the {self._arrived():,} bytes of {self.file.size:,} "
                        "that are there, or ",
                    ) from None
                time.sleep(min(FIRST_DELAY * 2 ** (attempts - 1), LONGEST_DELAY))
        self._finish()

    def _attempt(self, report: Callable[[int], None]) -> None:
        """Ask once for what is missing, and append it. Raises _Passing, UserError and OSError."""
        with self._ask() as response:
            if response.status != 206:
                self.part.write_bytes(b"")
                write_whole(self.version, _version(response))
            arrived = self._arrived()
            with self.part.open("ab") as part:
                while piece := _read(response):
                    arrived += len(piece)
                    if arrived > self.file.size:
                        self._forget()
                        raise self._another(f"more than {self.file.size:,}")
                    part.write(piece)
                    report(arrived)
        if arrived < self.file.size:
            raise _Passing(said(ShortAnswer(f"the answer ended after {arrived:,} bytes of {self.file.size:,}")))

    def _ask(self) -> HTTPResponse:
        """An answer with what is missing (status 206), or with the whole file. Raises _Passing and UserError."""
        arrived = self._arrived()
        version = self.version.read_text() if self.version.exists() else ""
        headers = {"User-Agent": "pairstream"}  # some servers refuse Python's own
        if version and arrived:
            headers |= {"Range": f"bytes={arrived}-", "If-Range": version}
        try:
            response: HTTPResponse = urlopen(Request(self.file.url, headers=headers), timeout=SILENCE_SECONDS)
        except HTTPError as error:
            error.close()
            if error.code == 416:  # Range Not Satisfiable: what is there cannot be of this file
                self._forget()
            elif error.code not in PASSING_STATUS and error.code < 500:
                raise self._failed(f"the server answers {error.code} {error.reason}") from None
            raise _Passing(said(error)) from None
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
            if isinstance(cause, SSLCertVerificationError):
                raise self._failed(said(cause)) from None
            raise _Passing(said(cause)) from None
        size = response.headers.get("Content-Length", "")
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != arrived or _version(response) not in ("", version):
                response.close()
                self._forget()  # some servers make nothing of If-Range
                raise _Passing("the server answered with a range of another version, or with another range")
            size = found[2]
        if size.isdecimal() and int(size) != self.file.size:
            response.close()
            raise self._another(f"{int(size):,}")
        return response

    def _finish(self) -> None:
        """Give the file its name, if its checksum is right."""
        found = _sha256(self.part)
        if found != self.file.sha256:
            self._forget()
            raise self._failed(
                f"what arrived has SHA-256 {found}, expected {self.file.sha256}, and was removed", "start again, or "
            )
        self.version.unlink(missing_ok=True)
        sync_to_disk(self.part)
        self.part.rename(self.path)
        sync_to_disk(self.path.parent)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def _another(self, size: str) -> UserError:
        return self._failed(f"the file there has {size} bytes, the official one {self.file.size:,}")

    def _failed(self, why: str, instead: str = "") -> UserError:
        by_hand = f"fetch the official file by hand and put it there as {self.path}"
        return UserError(f"{self.file.url} cannot be fetched: {why}; {instead}{by_hand}")


def _version(response: HTTPResponse) -> str:
    """The mark by which the server knows the version again; "" where it gives none, and a rest cannot be asked for."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")  # a weak tag (W/) is no mark


def _read(response: HTTPResponse) -> bytes:
    """What has come of an answer; nothing at its end. Raises _Passing."""
    try:
        return response.read1(PIECE_BYTES)
    except (OSError, HTTPException) as error:
        raise _Passing(said(error)) from None
