"""How long work shows itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def training_progress(steps: int, name: str) -> Iterator[Callable[[int, float], None]]:
    """A bar with the loss on a terminal; ten lines over the whole run in a log."""
    if not sys.stderr.isatty():
        every = max(1, steps // 10)

        def line(step: int, loss: float) -> None:
            if step % every == 0 or step == steps:
                print(f"{name}: step {step}/{steps}, loss {loss:.4f}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=steps)

        def update(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"{name}  loss {loss:.3f}")

        yield update


@contextmanager
def writing_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over samples on a terminal; ten lines in a log."""
    if not sys.stderr.isatty():
        said = 0

        def line(done: int, total: int) -> None:
            nonlocal said
            if done * 10 // total > said:
                said = done * 10 // total
                print(f"{name}: {done:,} of {total:,} samples", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def bytes_progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes with their rate on a terminal, nothing in a log; is told the bytes that are done, and all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
