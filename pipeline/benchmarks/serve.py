"""The trained model behind `mlflow models serve`: how long an answer takes, many clients at once, requests of any kind.

The model is that of the MNIST recipe with its initial weights; the server has one core and one thread.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import string
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pandas as pd

from infra.errors import UserError
from pipeline.benchmarks import Progress
from pipeline.benchmarks.harness import Outcome, Turn, alternate, one_thread
from pipeline.benchmarks.impute import fresh_run
from pipeline.benchmarks.servers import Child, model_server
from pipeline.manifest import open_manifest

CLIENTS, EACH = 100, 5
"""Clients at once, and requests of each."""
ASKED = 200
"""One-row requests of a turn."""
FUZZED, CHECKED = 10_000, 100
"""Requests of any kind, and after how many of them a correct one has to succeed."""
ROW = {"label": 3}
JSON = "application/json"
KINDS = (JSON, JSON, JSON, "text/csv", "application/vnd.apache.parquet", "text/plain", "nonsense")
OVER_HTTP, WITHIN = "one row over HTTP", "the same in this process"


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Requests per second of one client at a time against the model without a server. `samples`: requests of any kind,
    FUZZED for 0. Raises UserError where one of `CLIENTS` at once gets no answer, or a correct request fails."""
    from pipeline import serving

    with one_thread(), tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settled = fresh_run("mnist", place, CHECKED)
        saved = serving.save(settled, place / "run", open_manifest(settled.data).reading(settled.modalities))
        model, frame, times = serving.load(saved), pd.DataFrame([ROW]), list[float]()
        with _on_one_core(model_server(saved, place)) as server:
            client = Client(server.url)
            found = alternate(
                "serve",
                case,
                "requests",
                {OVER_HTTP: _turn(client.correct, times), WITHIN: _turn(lambda: model.predict(frame), [])},
                blocks,
                [WITHIN],
                progress=progress,
            )
            crowd = _crowd(server.url)
            statuses = fuzzed(server.url, samples or FUZZED)
    quantiles = statistics.quantiles(times[ASKED:], n=100)  # the first turn was to warm up
    return replace(
        found,
        figures={
            "an answer, ms": 1000 * statistics.median(times[ASKED:]),
            "99 of 100 answers, ms": 1000 * quantiles[98],
            f"{CLIENTS} clients at once, an answer, ms": 1000 * statistics.median(crowd),
            **{f"requests of any kind, status {status}": float(count) for status, count in sorted(statuses.items())},
        },
    )


class Client:
    """One connection to a server, kept open."""

    def __init__(self, url: str) -> None:
        self.host = url.removeprefix("http://")
        self._connection = HTTPConnection(self.host, timeout=120)

    def ask(self, body: bytes, kind: str = JSON) -> tuple[int, bytes]:
        """Status and answer. Raises UserError where there is none."""
        reason = ""
        for _ in range(2):  # it may have closed the connection after the last request
            try:
                self._connection.request("POST", "/invocations", body, {"Content-Type": kind})
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (OSError, HTTPException) as error:
                self._connection.close()  # the next request opens it again
                reason = str(error) or type(error).__name__
        raise UserError(f"the server at {self.host} gave no answer: {reason}")

    def correct(self) -> None:
        """Raises UserError where a correct request is not answered as it should be."""
        status, answer = self.ask(json.dumps({"dataframe_records": [ROW]}).encode())
        if status != 200 or json.loads(answer)["predictions"][0]["label"] != ROW["label"]:
            raise UserError(f"a correct request got {status}: {answer[:200].decode(errors='replace')}")


def _turn(ask: Callable[[], Any], times: list[float]) -> Turn:
    def turn() -> tuple[int, float]:
        began = last = time.perf_counter()
        for _ in range(ASKED):
            ask()
            now = time.perf_counter()
            times.append(now - last)
            last = now
        return ASKED, last - began

    return turn


def _crowd(url: str) -> list[float]:
    """Seconds of each answer to clients that ask at once."""

    def one(_: int) -> list[float]:
        client, times = Client(url), list[float]()
        for _ in range(EACH):
            began = time.perf_counter()
            client.correct()
            times.append(time.perf_counter() - began)
        return times

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [seconds for times in pool.map(one, range(CLIENTS)) for seconds in times]


def fuzzed(url: str, count: int, seed: int = 0) -> Counter[int]:
    """How often each status answers so many requests of any kind; after each CHECKED of them, and the last, a correct
    one. Raises UserError where that fails."""
    client, chance, found = Client(url), random.Random(seed), Counter[int]()
    for number in range(count):
        body, kind = request(chance)
        status, _ = client.ask(body, kind)
        found[status] += 1
        if number % CHECKED == CHECKED - 1 or number == count - 1:
            client.correct()
    return found


def request(chance: random.Random) -> tuple[bytes, str]:
    """A request's body and its content type: correct but for a part, or nothing that anybody would send."""
    how = chance.randrange(5)
    if how == 0:
        return chance.randbytes(chance.randrange(200)), chance.choice(KINDS)
    if how == 1:
        return json.dumps(_anything(chance, 3)).encode(), chance.choice(KINDS)
    names = [*ROW, "image", "label ", ""]
    rows = [{chance.choice(names): _anything(chance, 2) for _ in range(chance.randrange(4))} for _ in range(3)]
    body: dict[str, Any] = {"dataframe_records": rows[: chance.randrange(1, 4)]}
    if how == 2:
        body["params"] = {chance.choice(["sample", "seed", "x"]): _anything(chance, 1)}
    if how == 3:
        body = {"dataframe_split": {"columns": chance.choices(names, k=2), "data": [_anything(chance, 2)] * 2}}
    data = bytearray(json.dumps(body).encode())
    if how == 4:
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        del data[chance.randrange(1, len(data) + 1) :]
    return bytes(data), JSON


def _anything(chance: random.Random, depth: int) -> Any:
    """A value that JSON can say."""
    leaves: list[Callable[[], Any]] = [
        lambda: None,
        lambda: chance.random() < 0.5,
        lambda: chance.randrange(-3, 13),
        lambda: chance.choice([10**30, -(2**63), 1e308, float("nan"), float("inf"), 2.5]),
        lambda: "".join(chance.choices(string.printable + "äệ\u0000\U0001f600", k=chance.randrange(20))),
        lambda: b64encode(b"\x89PNG\r\n\x1a\n" + chance.randbytes(chance.randrange(60))).decode(),
    ]
    if depth and chance.random() < 0.4:
        some = [_anything(chance, depth - 1) for _ in range(chance.randrange(5))]
        return some if chance.random() < 0.5 else {str(number): one for number, one in enumerate(some)}
    return chance.choice(leaves)()


@contextmanager
def _on_one_core(server: Child) -> Iterator[Child]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # which a child begins with
    try:
        server.start()
    finally:
        os.sched_setaffinity(0, cores)
    with closing(server):
        yield server
