"""Requests to a storage: many at once, made again while their faults may pass."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from infra.errors import UserError
from infra.storage.faults import RangesIgnored, ShortAnswer, judge, said

KINDS = ("s3", "http", "https", "memory")
"""The schemes of URLs that can be read; the last is for tests."""
AT_ONCE = 32
"""Requests under way at a time, of one call."""
ATTEMPTS = 10
FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0
"""Seconds between attempts, doubled each time: ten attempts outlast a restart of half a minute."""
SILENCE_SECONDS = 30.0
"""A server that sends nothing for so long counts as failing."""
REQUEST_SECONDS = 300.0
"""As does one that takes so long over one range, where the package can limit that (HTTP)."""
_KEPT: list[Any] = []
"""File systems, open until the process ends: one collected in a forked child would take its parent's sockets along."""
T = TypeVar("T")


class Requests:
    """What can be asked of the files below a URL. Safe to share among threads, and usable after a fork."""

    def __init__(self, place: str) -> None:
        """Raises UserError for a URL of an unknown kind or one whose package is not installed."""
        self.place, self.retries = place, 0
        self._scheme, _, rest = place.partition("://")
        if self._scheme not in KINDS or not rest:
            raise UserError(
                f"{place}: no URL that can be read; give a local directory, s3://BUCKET/..., http://HOST/... "
                "or https://HOST/..."
            )
        self._delays = random.Random()  # not the global one, whose state is the run's
        self._counting = threading.Lock()
        self._connected = self._connect()

    def url(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.place}/{name}"

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | FileNotFoundError]:
        """The bytes of (name, start, size), all of which the file has. Raises UserError on a lasting fault."""
        return self._persist(wanted, lambda each: each[0], self._ask_ranges)

    def infos(self, names: Sequence[str]) -> list[dict[str, Any] | FileNotFoundError]:
        """What the storage says of files: "size", "type" and marks of its version. Raises UserError as above."""
        found: list[dict[str, Any] | FileNotFoundError] = []
        for first in range(0, len(names), AT_ONCE):
            found += self._persist(names[first : first + AT_ONCE], lambda name: name, self._ask_infos)
        return found

    def _persist(self, wanted: Sequence[T], name: Callable[[T], str], ask: Callable[[list[T]], list[Any]]) -> list[Any]:
        if not wanted:
            return []
        answers: list[Any] = [None] * len(wanted)
        pending, began, fault = list(range(len(wanted))), time.monotonic(), ""
        for attempt in range(ATTEMPTS):
            if attempt:
                with self._counting:
                    self.retries += len(pending)
                longest = min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY)
                time.sleep(longest * self._delays.uniform(0.5, 1))  # not all ranks in the same instant
            failed = []
            for index, answer in zip(pending, ask([wanted[index] for index in pending]), strict=True):
                url = self.url(name(wanted[index]))
                verdict = judge(url, answer) if isinstance(answer, BaseException) else answer
                if verdict is None:
                    fault = f"{url}: {said(answer.__cause__ or answer)}"
                    failed.append(index)
                elif isinstance(verdict, UserError):
                    raise verdict
                answers[index] = verdict
            if not failed:
                return answers
            pending = failed
        raise UserError(
            f"{self.place} cannot be read: {ATTEMPTS} attempts over {time.monotonic() - began:.0f} seconds, "
            f"last {fault}; the run can be resumed once it answers"
        )

    def _ask_ranges(self, wanted: list[tuple[str, int, int]]) -> list[bytes | BaseException]:
        filesystem, root = self._filesystem()
        names, starts, sizes = zip(*wanted, strict=True)
        paths = [self._path(root, name) for name in names]
        stops = [start + size for start, size in zip(starts, sizes, strict=True)]
        answers = filesystem.cat_ranges(paths, list(starts), stops, on_error="return")
        for index, (answer, size) in enumerate(zip(answers, sizes, strict=True)):
            if isinstance(answer, bytes) and len(answer) != size:
                short = ShortAnswer(f"{len(answer):,} bytes of {size:,}")
                answers[index] = short if len(answer) < size else RangesIgnored()
        return answers

    def _ask_infos(self, names: list[str]) -> list[dict[str, Any] | BaseException]:
        filesystem, root = self._filesystem()
        paths = [self._path(root, name) for name in names]
        if not filesystem.async_impl:
            return [_outcome(filesystem.info, path) for path in paths]

        import asyncio

        from fsspec.asyn import sync

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(filesystem._info(path) for path in paths), return_exceptions=True)

        return sync(filesystem.loop, all_at_once)

    def _path(self, root: str, name: str) -> str:
        return f"{root}/{quote(name) if self._scheme.startswith('http') else name}"

    def _filesystem(self) -> tuple[Any, str]:
        process, filesystem, root = self._connected
        if process != os.getpid():  # forked: the connections and their thread stayed with the parent
            self._connected = process, filesystem, root = self._connect()
        return filesystem, root

    def _connect(self) -> tuple[int, Any, str]:
        """The process, its fsspec file system and the URL's path in it."""
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._scheme.startswith("http"):
            options["client_kwargs"] = _http_options()
        elif self._scheme == "s3":
            options["config_kwargs"] = {
                "connect_timeout": SILENCE_SECONDS,
                "read_timeout": SILENCE_SECONDS,
                "max_pool_connections": AT_ONCE,
                "retries": {"total_max_attempts": 1},  # counted and spaced here
            }
        try:
            filesystem, root = url_to_fs(self.place, **options)
        except ImportError as error:
            install = "pip install 'pairstream[s3]'" if self._scheme == "s3" else "pip install 'fsspec[http]'"
            raise UserError(f"{self.place} needs a package that is missing ({error}): {install}") from None
        if self._scheme == "s3":
            filesystem.retries = 1
        _KEPT.append(filesystem)
        return os.getpid(), filesystem, root.rstrip("/")


def _http_options() -> dict[str, Any]:
    """Arguments of aiohttp's ClientSession."""
    from aiohttp import ClientResponse, ClientTimeout

    async def refuse_whole_files(response: ClientResponse) -> None:
        """Before a body of any length is read."""
        asked = response.request_info.headers.get("Range")
        if asked and response.status == 200:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            if response.content_length is None or response.content_length > last - first + 1:
                raise RangesIgnored

    return {
        "timeout": ClientTimeout(REQUEST_SECONDS, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS),
        "headers": {"Accept-Encoding": "identity"},  # a range of compressed bytes would be another range
        "raise_for_status": refuse_whole_files,
        "trust_env": True,  # proxies and ~/.netrc
    }


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return error
