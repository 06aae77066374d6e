"""Whether the head of a Ray cluster is still there. Where it is lost, the driver's main thread hangs in Ray's own code,
where no Python reaches it, until Ray ends the process a minute later: what is to be done, another thread has to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY, MISSES = 2.0, 8
"""Seconds between two looks, and how many in a row without an answer are a loss: less than Ray's minute."""


@contextmanager
def watched(address: str, lost: Callable[[], None]) -> Iterator[None]:
    """Calls `lost`, in a thread of its own, when nothing answers at HOST:PORT any longer."""
    host, _, port = address.rpartition(":")
    over = threading.Event()

    def look() -> None:
        misses = 0
        while not over.wait(EVERY):
            try:
                socket.create_connection((host, int(port)), timeout=EVERY).close()
                misses = 0
            except OSError:
                misses += 1
            if misses == MISSES:
                lost()
                return

    threading.Thread(target=look, name="pairstream-pulse", daemon=True).start()
    try:
        yield
    finally:
        over.set()
