"""Every rank tells the others that it lives and how far it is, so that one that is lost is named, not waited for.

A rank that dies or hangs leaves the others in a collective that never ends, or that ends with an error of the network
in which nothing is said of ranks. Here a thread of each rank writes to a store of rank 0 every few seconds and reads
what the others wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType

from infra.distributed import World
from infra.errors import UserError
from infra.preemption import LOST

BEATS = 12
"""In the time after which a rank counts as lost."""
LEAVE = 15.0
"""Seconds for a process to end after it has said why."""


class LostRank(UserError):
    """Another rank is gone or hangs."""

    code = LOST


@dataclass
class Pulse:
    """What a rank says of itself."""

    host: str
    step: int = 0
    doing: str = "starting"
    beat: int = 0
    ended: bool = False
    """It has left, and all was well."""

    def told(self, rank: int) -> str:
        return f"rank {rank} on {self.host} (step {self.step:,}, {self.doing})"


class Heartbeat:
    """A context around all that ranks do together. With one rank it does nothing.

    A rank that says nothing for `patience` seconds is lost: the others say so and end with code LOST, also out of a
    collective that would never return. An error of a collective becomes a sentence that names who is gone.
    """

    def __init__(self, world: World, patience: float) -> None:
        self.world, self.patience = world, patience
        self.mine = Pulse(platform.node())
        self._stop, self._saying = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def beat(self, step: int, doing: str) -> None:
        """Say how far this rank is."""
        self.mine.step, self.mine.doing = step, doing

    def __enter__(self) -> Heartbeat:
        """Collective."""
        if self.world.size == 1:
            return self
        import torch.distributed as dist

        address, waiting = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=self.patience)
        server = None
        if self.world.is_main:
            server = dist.TCPStore(address, 0, is_master=True, timeout=waiting, wait_for_workers=False)
        port = int(str(self.world.gather(server.port if server else 0)[0]))
        self._store = server or dist.TCPStore(address, port, timeout=waiting, wait_for_workers=False)
        self._say()
        self.world.gather(None)
        self._heard = dict(enumerate(self._read()))
        self._round = time.monotonic()
        """When the store answered last."""
        self._changed = dict.fromkeys(self._heard, self._round)
        """When each rank was heard last."""
        talk = threading.Thread(target=self._talk, name="pairstream-pulse", daemon=True)  # may hang with the store
        self._thread = threading.Thread(target=self._watch, name="pairstream-heartbeat", daemon=True)
        talk.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LostRank in place of an error that another rank's end, or its delay, has caused."""
        if self._thread is None:
            return
        lost, how = [], "is gone"
        if value is not None and _of_collective(value):
            lost = self._gone()
            if not lost:  # all live, and one did not come
                how = f"kept the others waiting for too long ({str(value).strip().splitlines()[0]})"
                lost = [min(self._heard, key=lambda rank: (self._heard[rank].step, rank == self.world.rank))]
        self._stop.set()
        self._thread.join()
        if not lost:
            self.mine.ended = value is None or getattr(value, "shared", False)
            with contextlib.suppress(RuntimeError):
                self._say()
        elif self._speaks(lost):
            leave = threading.Timer(LEAVE, os._exit, (LOST,))  # to leave the group may be to wait for the lost one
            leave.daemon = True
            leave.start()
            raise LostRank(self._sentence(lost, how)) from None
        else:
            os._exit(LOST)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(self.patience / BEATS):
            looked, before = time.monotonic(), looked
            if looked - before > self.patience / 2:  # this process was suspended: nobody could be heard
                self._round = looked
                self._changed = dict.fromkeys(self._changed, looked)
            elif lost := self._lost(self.patience):
                if self._speaks(lost):
                    how = f"has said nothing for {self.patience:.0f} s"
                    print(f"pairstream: {self._sentence(lost, how)}", file=sys.stderr, flush=True)
                os._exit(LOST)

    def _lost(self, patience: float) -> list[int]:
        """The ranks that have been silent for so many seconds; rank 0, which keeps the store, where that is silent."""
        if time.monotonic() - self._round > patience:
            return [0]
        return [
            rank
            for rank, pulse in self._heard.items()
            if rank != self.world.rank and not pulse.ended and self._round - self._changed[rank] > patience
        ]

    def _talk(self) -> None:
        """Say that this rank lives, and note who else has said so."""
        while not self._stop.wait(self.patience / BEATS):
            try:
                self._say()
                told = self._read()
            except RuntimeError:
                continue
            self._round = time.monotonic()
            for rank, pulse in enumerate(told):
                if pulse != self._heard[rank]:
                    self._heard[rank], self._changed[rank] = pulse, self._round

    def _say(self) -> None:
        with self._saying:
            self.mine.beat += 1
            self._store.set(str(self.world.rank), json.dumps(asdict(self.mine)))

    def _read(self) -> list[Pulse]:
        return [Pulse(**json.loads(value)) for value in self._store.multi_get([str(n) for n in range(self.world.size)])]

    def _gone(self) -> list[int]:
        """Those that do not beat any more, after an error; waits for a few beats."""
        time.sleep(4 * self.patience / BEATS)
        return self._lost(2 * self.patience / BEATS)

    def _speaks(self, lost: list[int]) -> bool:
        """Whether this is the first rank that is left; a node goes down with all of its ranks."""
        hosts = {self._heard[rank].host for rank in lost} - {self.mine.host}
        gone = {rank for rank, pulse in self._heard.items() if rank in lost or pulse.host in hosts}
        return self.world.rank == min(set(self._heard) - gone, default=self.world.rank)

    def _sentence(self, lost: list[int], how: str) -> str:
        first, more = self._heard[lost[0]], len(lost) - 1
        return (
            f"{first.told(lost[0])}{f' and {more} more' if more else ''} {how}; the other ranks end at step "
            f"{self.mine.step:,}. Look at that node; --resume goes on from the newest checkpoint"
        )


def _of_collective(error: BaseException) -> bool:
    """Whether an error comes from where ranks talk to each other; gloo's is a plain RuntimeError."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
    )
