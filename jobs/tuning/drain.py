"""A node that is to go: Ray says so beforehand (a preemption, an autoscaler), and what trains on it saves and stops."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.disk import write_whole
from infra.journal import Journal
from infra.preemption import StopRequest
from jobs.tuning.stall import WHY

EVERY = 2.0
"""Seconds between two looks."""
DRAINED = "its node is drained"
NODE = "ray.node"
"""A run's tag: the id of the node that it was trained on, beside `system.host`."""


@contextmanager
def on_drain(do: Callable[[], bool]) -> Iterator[None]:
    """Calls `do`, in a thread of its own, at each look from when the node of this process is drained until it returns
    True: who is to hear of it may not listen yet."""
    import ray
    from ray._private.state import state  # nothing public tells of it; Ray Train looks there too

    node, over = ray.get_runtime_context().get_node_id(), threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            with contextlib.suppress(Exception):  # the head may be gone: others have to find that out
                if node in state.get_draining_nodes() and not over.is_set() and do():
                    return

    thread = threading.Thread(target=look, name="pairstream-drain", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(EVERY)  # a head that is gone answers late


@contextmanager
def stopping_on_drain(directory: Path, main: bool = True) -> Iterator[None]:
    """A trial's training within is asked to stop once its node is drained. The `main` rank's run gets Ray's name of the
    node (of a trial that is begun anew elsewhere, the last one counts), and its directory says why it has stopped."""
    import ray

    if main:
        with contextlib.closing(Journal(directory)) as journal:
            journal.tags({NODE: ray.get_runtime_context().get_node_id()})

    def stop() -> bool:
        if not StopRequest.ask():
            return False
        print(f"trial {directory.name}: {DRAINED}, it saves", file=sys.stderr, flush=True)
        if main:
            write_whole(directory / WHY, DRAINED + "\n")
        return True

    with on_drain(stop):
        yield
