"""Being told to stop: a signal sets a flag, the ranks agree at a step's boundary, everybody saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import ClassVar

REQUEUE = 75
"""Exit code of a run that was told to stop and has saved (EX_TEMPFAIL): a scheduler should run it again."""

LOST = 69
"""Exit code of a rank that has lost another, or has not met it (EX_UNAVAILABLE): the job should be started again."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """A context in which stop signals only set `asked`. A second SIGINT interrupts at once, for impatient people.

    Outside the main thread (a Ray trial) signals belong to somebody else, and nothing is installed: `ask` does what
    they do. Of several, one within the other, all are asked, and one that is entered later than that too.
    """

    asked = False
    _entered: ClassVar[list[StopRequest]] = []

    def __enter__(self) -> StopRequest:
        self._previous = {}
        self._entered.append(self)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
            self.asked = any(outer.asked for number in SIGNALS for outer in self._outer(number))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @classmethod
    def ask(cls) -> bool:
        """Ask all that this process is within: for a thread that hears otherwise that this machine is to go. Returns
        whether there is any."""
        within = cls._entered.copy()
        for request in within:
            request.asked = True
        return bool(within)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        for outer in self._outer(number):
            outer.asked = True

    def _outer(self, number: int) -> Iterator[StopRequest]:
        """Those that this one is within."""
        outer = getattr(self._previous[signal.Signals(number)], "__self__", None)
        if isinstance(outer, StopRequest):
            yield outer
            yield from outer._outer(number)


class StopAtOnce(StopRequest):
    """One that ends the process with REQUEUE, but for where another within it stands for something to be saved."""

    def _ask(self, number: int, frame: FrameType | None) -> None:
        super()._ask(number, frame)
        raise SystemExit(REQUEUE)
