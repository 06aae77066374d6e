"""What a job leaves in its directory: its log, and its exit code."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from infra.preemption import REQUEUE
from jobs.submitting import EXIT, LOG, State


def exit_code(directory: Path) -> int | None:
    """The code that the job left, None where it has left none."""
    file = directory / EXIT
    return int(file.read_text()) if file.exists() else None


def ended(directory: Path) -> State:
    """The state of a job that is known to run no more."""
    code = exit_code(directory)
    last = directory / (LOG if code is None else EXIT)
    return State(name_of(code), code, last.stat().st_mtime if last.exists() else None)


def name_of(code: int | None) -> str:
    """How a job has ended that left this exit code."""
    if code is not None and 128 < code < 255:
        return "killed"
    return {0: "finished", REQUEUE: "preempted", None: "killed"}.get(code, "failed")


def follow_files(logs: Sequence[Path], alive: Callable[[], bool], pace: float = 0.2) -> None:
    """Print files that may still grow, to their ends; of several, what each says below the name of its directory.
    `pace`: seconds between two looks."""
    with ExitStack() as stack:
        files = {log: stack.enter_context(log.open("rb")) for log in logs}
        running, last = True, None
        while running:  # asked before reading, so that the last words are read too
            running = alive()
            for log, file in files.items():
                if file.tell() == os.fstat(file.fileno()).st_size:
                    continue
                if len(files) > 1 and log != last:
                    print(f"==> {log.parent.name} <==", flush=True)
                shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.flush()
                last = log
            time.sleep(pace if running else 0)
