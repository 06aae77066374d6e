"""A trial that hangs ends its process: Ray, or another process that has joined, begins it anew as often as it may."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.disk import write_whole
from infra.preemption import LOST

WHY = "lost.txt"
"""In a trial's directory: why its worker failed, or ended itself."""


@contextmanager
def ending_when_stalled(directory: Path, minutes: float) -> Iterator[Callable[[int, float], None]]:
    """Ends this process where what is yielded is not called for so many minutes (0: never). It is a training's
    `on_step`."""
    over, last = threading.Event(), time.monotonic()
    (directory / WHY).unlink(missing_ok=True)

    def on_step(step: int, loss: float) -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        while not over.wait(min(1.0, 6 * minutes)):
            if time.monotonic() - last > 60 * minutes:
                why = f"has taken no step for {minutes:g} minutes (--stall)"
                print(f"trial {directory.name} {why}: its process ends with it", file=sys.stderr, flush=True)
                try:
                    write_whole(directory / WHY, why + "\n")
                finally:  # on a full disk too
                    os._exit(LOST)

    if minutes:
        threading.Thread(target=watch, name="pairstream-stall", daemon=True).start()
    try:
        yield on_step
    finally:
        over.set()
