"""train_packed(members, slots): many trials on one device, each of them the run that `train` would have made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from infra import distributed
from infra.distributed import World
from infra.errors import UserError
from infra.preemption import StopRequest
from pipeline.collate import Waiting, prefetch
from pipeline.config import Run
from pipeline.course import Result
from pipeline.objectives.systems import remark
from pipeline.packing.alike import packable
from pipeline.packing.joined import Joined, join
from pipeline.packing.program import Program
from pipeline.packing.seat import Member, Seat
from pipeline.train import gauges

Ended = Result | UserError
"""How a member ended, or why it failed."""


@dataclass(frozen=True)
class Round:
    """The rows of the next step of every seat; none where one of them could not be read, and why."""

    batch: Joined | None
    failures: dict[int, UserError]


@dataclass(frozen=True)
class Waited:
    """The share of the time that was spent waiting for data, for all that ask in one round."""

    told: float

    def share(self) -> float:
        return self.told


def train_packed(
    members: Iterable[Member],
    slots: int,
    *,
    resume: bool = False,
    report: Callable[[Member, int, dict[str, float]], bool] | None = None,
    on_result: Callable[[Member, Ended], None] | None = None,
    on_step: Callable[[Member, int, float], None] | None = None,
) -> list[Ended]:
    """Train members, at most `slots` at a time, and return in their order how each ended, or the UserError it failed
    with: the others go on. Those beyond wait until one ends; they are asked for then, so that an iterator may decide
    late.

    `report` and `on_step` are those of `train`, of each member; `on_result` is called when one ends. Told to stop, all
    save and are preempted, also those that have not begun, which leave nothing. Raises UserError where this process is
    one of several ranks.
    """
    return _Packing(members, slots, resume, report, on_result, on_step).train()


class _Packing:
    def __init__(
        self, members: Iterable[Member], slots: int, resume: bool,
        report: Callable[[Member, int, dict[str, float]], bool] | None,
        on_result: Callable[[Member, Ended], None] | None,
        on_step: Callable[[Member, int, float], None] | None,
    ) -> None:  # fmt: skip
        self.waiting, self.slots, self.resume = enumerate(members), slots, resume
        self.report, self.on_result, self.on_step = report, on_result, on_step
        self.first: Run | None = None
        self.world: World
        self.seats: list[Seat] = []
        self.number: dict[Seat, int] = {}
        self.ended: dict[int, Ended] = {}
        self.moved = True
        """Whether a seat has been taken or left since the program was put together."""

    def train(self) -> list[Ended]:
        with StopRequest() as self.stop, ExitStack() as self.open, distributed.flushing_denormals():
            self.ahead = Waiting(self._rounds())
            self._fill()
            for round_ in self.ahead:
                if not self._settled(round_):
                    continue
                assert round_.batch is not None
                steps = [seat.progress.step for seat in self.seats]
                ballots = self.program.step(steps, round_.batch, self.stop.asked)
                for seat, ballot in zip(self.seats, ballots, strict=True):
                    seat.progress.vote = ballot
                    seat.progress.step += 1
                    seat.progress.window.steps += 1
                if any(seat.course.due for seat in self.seats):
                    self._pause(steps)
            if self.stop.asked:
                for number, member in self.waiting:
                    self._tell(
                        number, member, Result(member.directory, "preempted", 0, float("nan"), {}, None, {}, 0, 0)
                    )
        return [self.ended[number] for number in sorted(self.ended)]

    def _settled(self, round_: Round) -> bool:
        """Whether all that sit can go on: what the last step and this round's data say."""
        for place, seat in enumerate(list(self.seats)):
            try:
                if place in round_.failures:
                    raise round_.failures[place]
                if seat.course.settle():
                    self._leave(seat)
            except UserError as error:
                self._leave(seat, error)
        return not self.moved

    def _pause(self, steps: list[int]) -> None:
        self._hand_out()
        waited = Waited(self.ahead.share())
        for seat, step in zip(list(self.seats), steps, strict=True):
            try:
                over = seat.course.pause(partial(gauges, seat, seat.run, seat.collate, waited, step))  # type: ignore[arg-type]
                if over or seat.progress.step == seat.run.train.steps:
                    self._leave(seat)
            except UserError as error:
                self._leave(seat, error)

    def _rounds(self) -> Iterator[Round]:
        """What every seat reads next, ahead; and anew whenever a seat is taken or left."""
        while self.seats:
            self._put_together()
            seats, starts = list(self.seats), [seat.progress.step for seat in self.seats]
            fetch = partial(_fetch, seats, starts)
            left = min(seat.run.train.steps - start for seat, start in zip(seats, starts, strict=True))
            for round_ in prefetch(fetch, 0, left, seats[0].run.engine.workers):
                yield round_
                if self.moved:
                    self._fill()
                    break

    def _put_together(self) -> None:
        if self.moved:
            self.program = Program([seat.module for seat in self.seats], [seat.run for seat in self.seats], self.world)
            for number, seat in enumerate(self.seats):
                seat.enter(self.program, number)
            self.moved = False

    def _fill(self) -> None:
        """Members that wait take free seats."""
        while len(self.seats) < self.slots and not self.stop.asked:
            number, member = next(self.waiting, (None, None))
            if member is None or number is None:
                return
            try:
                packable([self.first or member.run, member.run])
            except UserError as error:
                self._tell(number, member, error)
                continue
            if self.first is None:
                self._begin(member.run)
            try:
                seat = self.open.enter_context(Seat(member, self.world, self.resume, self.report, self.on_step))
            except UserError as error:
                self._tell(number, member, error)
                continue
            self.number[seat], self.moved = number, True
            self.seats.append(seat)
            if seat.course.status != "finished" or seat.progress.step >= member.run.train.steps:
                self._leave(seat)

    def _begin(self, run: Run) -> None:
        self.world = distributed.start(run.engine.device, run.engine.threads)
        if self.world.size > 1:
            raise UserError(f"a pack of trials trains in one process, this is one of {self.world.size} ranks")
        self.first = run
        if remark(run):
            print(remark(run), flush=True)

    def _leave(self, seat: Seat, failure: UserError | None = None) -> None:
        """A seat's end: its last checkpoint or pictures, its record, its result."""
        self._hand_out()
        self.seats.remove(seat)
        self.moved = True
        try:
            if failure is None:
                seat.course.end()
        except UserError as error:
            failure = error
        finally:
            seat.close()
        self._tell(self.number.pop(seat), seat.member, failure or seat.course.result(self.ahead.total))

    def _hand_out(self) -> None:
        """Give each window its sums, while all still sit where the program has them."""
        if not self.moved:
            self.program.tally.hand_out([seat.progress.window for seat in self.seats])

    def _tell(self, number: int, member: Member, ended: Ended) -> None:
        self.ended[number] = ended
        if self.on_result:
            self.on_result(member, ended)


def _fetch(seats: list[Seat], starts: list[int], ahead: int) -> Round:
    batches, failures = [], {}
    for place, (seat, start) in enumerate(zip(seats, starts, strict=True)):
        try:
            batches.append(seat.read(start + ahead))
        except UserError as error:
            failures[place] = error
    if failures:
        return Round(None, failures)
    joined = join(batches)
    return Round(joined.pinned() if seats[0].world.device.type == "cuda" else joined, failures)
