"""What the record costs a training step while the tracking server is up, slow, or gone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

from infra import distributed
from infra.distributed import free_port
from infra.journal import Journal
from infra.store import Destination, prepare_store
from infra.tracking import Tracker
from infra.usage import Usage
from pipeline.benchmarks import Progress, cases
from pipeline.benchmarks.harness import Outcome, alternate, one_thread
from pipeline.benchmarks.servers import mlflow_server, slow_way
from pipeline.benchmarks.step import digits
from pipeline.engine import Engine
from pipeline.train import build

SLOW = 2.0
"""Seconds that each call takes longer."""
SHIP_EVERY = 0.5
"""Seconds between deliveries, a tenth of the usual: a turn meets several of them."""
STEPS = 200
"""Of a turn."""
POINT = 10
"""Steps between two points of the curves, as in the recipe."""
JOURNAL, UP, LATE, DOWN = "journal alone", "server up", f"server slow ({SLOW:g} s a call)", "server down"


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Steps of the digits recipe per second, one CPU thread, a point of the curves after every tenth, delivered to
    MLflow's own server on SQLite.

    Reference is a run whose journal nobody delivers. Only the contender whose turn it is has a thread that delivers.
    `figures`: of each the median step, and how much longer its longest one took than the reference's, in
    milliseconds. `samples` is the number of steps of a turn, 200 where it is 0.
    """
    steps = samples or STEPS
    with one_thread(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        took: dict[str, list[float]] = {name: [] for name in (JOURNAL, UP, LATE, DOWN)}
        step = _training_step()
        for name in ("server", "proxy"):
            (folder / name).mkdir()
        up = stack.enter_context(mlflow_server(f"sqlite:///{folder}/mlflow.db", folder / "server")).url
        late = stack.enter_context(slow_way(up, SLOW, folder / "proxy")).url
        prepare_store(up, "benchmark", None)
        addresses = {UP: up, LATE: late, DOWN: f"http://127.0.0.1:{free_port()}"}

        def turn(name: str) -> Callable[[], tuple[int, float]]:
            numbers, began = count(), count()

            def work() -> tuple[int, float]:
                place, first = folder / f"{name}-{next(numbers)}", next(began) == 0
                with _book(place, addresses.get(name)) as book:
                    usage = Usage()
                    ends = [time.perf_counter()]
                    for number in range(steps):
                        loss = step()
                        if number % POINT == 0:
                            book.metrics(number, {"train/elbo": loss, "train/kl": loss} | usage.take())
                        ends.append(time.perf_counter())
                    usage.close()
                if not first:  # it warms up
                    took[name] += [after - before for before, after in pairwise(ends)]
                return steps, ends[-1] - ends[0]

            return work

        outcome = alternate(
            "tracking", case, "steps", {name: turn(name) for name in took}, blocks, [JOURNAL], (), progress
        )
    longest = max(took[JOURNAL])
    figures = {f"median step, {name} (ms)": 1e3 * statistics.median(each) for name, each in took.items()}
    figures |= {f"longest step, {name} (ms)": 1e3 * max(each) for name, each in took.items()}
    figures |= {
        f"longest step beyond the reference's, {name} (ms)": 1e3 * (max(took[name]) - longest) for name in addresses
    }
    return replace(outcome, figures=figures)


def _training_step() -> Callable[[], float]:
    """A step of the digits recipe under the engine; returns its loss."""
    settings, batches = digits()
    engine, numbers = Engine(build(settings), settings, distributed.start("cpu", 1)), count()

    def step() -> float:
        number = next(numbers)
        loss = cases.loss(engine.module, settings, batches[number % len(batches)], number)
        engine.step(loss)
        return float(loss.detach())

    return step


@contextmanager
def _book(place: Path, address: str | None) -> Iterator[Journal | Tracker]:
    """A journal, delivered where there is an address."""
    if address is None:
        book: Journal | Tracker = Journal(place)
        yield book
        book.close()
    else:
        tracker = Tracker(place, Destination(address, "benchmark", place.name, place.name), SHIP_EVERY)
        yield tracker
        tracker.close("KILLED", timeout=60)  # and its thread ends: the next turn is without it
