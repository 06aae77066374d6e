"""pairstream reproduce TABLE [--budget 0.2] [--seeds 3] [--rows TEXT …] [--columns NAME …] [--parallel 2] [--json]

Makes a table of the papers again: trains what is missing, goes on with what was cut, takes what is done already (here
or in MLflow), and writes TABLE.csv and TABLE.png: the paper's number, ours with its spread, seeds, epochs, data,
command. What has no data here is left out; what fails is told, ends with code 1, and keeps nothing else from being
made. --budget takes a share of the paper's epochs; the table then says so. --dry-run lists what would be done. A
signal saves and ends with code 75: the same command goes on from there (an RBM, scikit-learn's, begins anew).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.distributed import is_worker
from infra.errors import UserError
from infra.preemption import REQUEUE, StopAtOnce, StopRequest
from infra.store import RUNS
from jobs.arguments import closing_json, parse, split_name
from pipeline.settings import Precision, check

if TYPE_CHECKING:
    from pipeline.reproduce.table import Cell, Number, Table
    from pipeline.reproduce.work import Work

Works = dict[str, list["Work"]]
"""By key: those of one key share a training, and differ in what is asked of it."""
STDERR = 2
"""The file descriptor to which other processes talk: standard output is for the table, and for JSON."""


@dataclass(frozen=True)
class Options:
    budget: float = 1.0
    """Share of the paper's epochs."""
    seeds: int = 1
    """Runs of each number, which differ in seed: mean ± standard deviation."""
    rows: tuple[str, ...] = ()
    """Only rows whose names hold one of these; MVAE does not stand for JMVAE."""
    columns: tuple[str, ...] = ()
    """Only these columns."""
    parallel: int = 1
    """Trainings at once, each on its share of the cores."""
    precision: Precision = "fp32"
    """Of the networks that are trained. bf16 is faster where the processor or GPU computes in it."""
    out: Path = RUNS / "reproduce"
    """Where TABLE.csv and TABLE.png go; a table that is there already gets what is new."""
    dry_run: bool = False
    """List the work and how much of it is done; do none."""
    work: str = ""
    """Do one piece of work only, named as --dry-run names it, and write no table."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        parse("reproduce TABLE", Options, arguments, about=__doc__)
    from pipeline.reproduce import TABLES, table
    from pipeline.reproduce.table import Extent, in_precision

    if arguments in ([], ["--json"]):
        for one in TABLES.values():
            print(f"{one.name:<20} {one.title} ({one.source})")
        print("pairstream reproduce TABLE --dry-run lists what a table takes")
        if arguments:
            told = [{"name": one.name, "title": one.title, "source": one.source} for one in TABLES.values()]
            closing_json({"tables": told})
        return 0
    name, rest = split_name("reproduce", "table", arguments, list(TABLES))
    chosen = table(name)
    options = parse("reproduce TABLE", Options, rest, about=__doc__)
    check(0 < options.budget <= 10, f"--budget {options.budget}: choose a share of the paper's epochs, such as 0.1")
    check(options.seeds >= 1 and options.parallel >= 1, "--seeds and --parallel take at least 1")
    extent = Extent(options.budget, options.seeds, options.rows, options.columns)
    cells = in_precision(chosen.cells(extent), options.precision)
    _check_names(cells, chosen, options)
    return _reproduce(chosen, cells, options, f"pairstream reproduce {_told(arguments)}")


def _check_names(cells: Sequence[Cell], table: Table, options: Options) -> None:
    """Raises UserError where some of the rows and columns asked for have no cell."""
    from pipeline.reproduce.table import Extent, meant

    def idle(cells: Sequence[Cell]) -> list[str]:
        return [
            *(f"--rows '{part}'" for part in options.rows if not any(meant(part, cell.row) for cell in cells)),
            *(f"--columns '{name}'" for name in options.columns if all(name != cell.column for cell in cells)),
        ]

    if idle(cells) or not cells:
        everything = table.cells(Extent())
        rows, columns = (
            list(dict.fromkeys(names)) for names in zip(*((c.row, c.column) for c in everything), strict=True)
        )
        asked = ", ".join(idle(everything)) or "these rows in these columns"
        raise UserError(f"no such cell: {asked}; rows: {'; '.join(rows)}; columns: {'; '.join(columns)}")


def _told(arguments: Sequence[str]) -> str:
    """The command that makes the numbers again, without what changes none of them."""
    kept, skip = [], False
    for one in arguments:
        if skip or one in ("--json", "--dry-run"):
            skip = False
            continue
        name, value, _ = one.partition("=")
        if name in ("--out", "--parallel"):
            skip = not value
            continue
        kept.append(one)
    return shlex.join(kept)


def _reproduce(table: Table, cells: list[Cell], options: Options, command: str) -> int:
    from pipeline.reproduce.table import makeable
    from pipeline.reproduce.writer import show, writable, write

    root = RUNS / "reproduce"
    there, absent = makeable(cells)
    if not there:
        raise UserError("; ".join(absent))
    if not options.work:  # else who began this piece of work has said it
        for sentence in absent:
            _say(f"{sentence}; its numbers are left out")
    works, names = _by_key(there), _names(there)
    if options.dry_run:
        return _list(works, names, root, options)
    if options.work:
        check(options.work in works, f"--work {options.work}: no such work in this table (--dry-run lists it)")
        with StopAtOnce():
            return _do(works[options.work], root)
    file, files = options.out / f"{table.name}.csv", []
    writable(file)
    code = _do_all(works, names, root, options)
    with StopRequest():  # what is done is put down, signal or not
        numbers, undefined = _numbers(table, there, root, command)
        if numbers:
            files = write(numbers, file, table.draw)
    if numbers:
        show(table.title, table.source, numbers, table.remark)
        for file in files:
            print(f"written: {os.path.relpath(file)}")
    left, without = len(there) - len(numbers) - undefined, len(cells) - len(there)
    if left:
        goes_on = "the same command goes on" if code != 1 else "above stands what failed"
        print(f"{left} of {len(cells)} numbers are still to be made: {goes_on}")
    if options.json:
        closing_json({"table": table.name, "numbers": numbers, "missing": left + without, "files": files})
    return code


def _numbers(table: Table, cells: Sequence[Cell], root: Path, command: str) -> tuple[list[Number], int]:
    """The numbers that there are, and how many there will never be, which is said."""
    from pipeline.reproduce.table import Undefined, number_of

    numbers, undefined = [], 0
    for cell in cells:
        try:
            number = number_of(table, cell, root, command)
        except Undefined as error:
            undefined += 1
            _say(error)
        except UserError:
            pass  # made of other data, as was said when its work was to be done
        else:
            numbers += [number] if number else []
    return numbers, undefined


def _say(what: object) -> None:
    print(f"pairstream: {what}", file=sys.stderr, flush=True)


def _by_key(cells: Sequence[Cell]) -> Works:
    works: Works = {}
    for cell in cells:
        for work in cell.works:
            same = works.setdefault(work.key, [])
            if work not in same:
                same.append(work)
    return works


def _names(cells: Sequence[Cell]) -> dict[str, str]:
    """What each piece of work is for, by its key: the first row and column that need it."""
    needed: dict[str, list[str]] = {}
    for cell in cells:
        for work in cell.works:
            places, place = needed.setdefault(work.key, []), f"{cell.row}, {cell.column}"
            places += [place] if place not in places else []
    return {
        key: places[0] + (f", and {len(places) - 1} more" if len(places) > 1 else "") for key, places in needed.items()
    }


def _done(same: Sequence[Work], root: Path) -> bool:
    return all(work.done(root) for work in same)


def _finished(same: Sequence[Work], root: Path) -> bool:
    """Whether nothing is left to do. What was made of other data is not finished: `_do` says so."""
    try:
        return _done(same, root)
    except UserError:
        return False


def _list(works: Works, names: dict[str, str], root: Path, options: Options) -> int:
    listed = []
    for key, same in works.items():
        done, refused = False, ""
        try:
            done = _done(same, root)
        except UserError as error:  # made of other data
            refused = str(error)
        share = 1.0 if done else 0.0 if refused else same[0].share(root)
        state = "refused" if refused else "done" if done else f"{share:.0%} trained" if share else "to do"
        print(f"{key:<48} {same[0].steps:>8,} steps  {state:<12} {names[key]}")
        if refused:
            _say(refused)
        listed.append({"key": key, "for": names[key], "share": share, "done": done})
    if options.json:
        closing_json({"work": listed})
    return 0


def _do(same: Sequence[Work], root: Path) -> int:
    from jobs.progress import training_progress
    from pipeline.reproduce.work import Stopped

    for work in same:
        if not work.done(root):
            try:
                work.do(root, training_progress)
            except Stopped:
                return REQUEUE
    return 0


def _do_all(works: Works, names: dict[str, str], root: Path, options: Options) -> int:
    """All work that is not done; 75 where a signal came, 1 where some of it failed (and said why), else 0."""
    left = {key: same for key, same in works.items() if not _finished(same, root)}
    if len(left) < len(works):
        print(f"{len(works) - len(left)} of {len(works)} pieces of work are done already", file=sys.stderr)
    if options.parallel > 1:
        return _in_parallel({key: names[key] for key in left}, options)
    try:
        with StopAtOnce() as stop:
            return _in_order(left, names, root, stop)
    except SystemExit:  # what there is makes a table all the same
        return REQUEUE


def _in_order(left: Works, names: dict[str, str], root: Path, stop: StopRequest) -> int:
    failed = 0
    for number, (key, same) in enumerate(left.items(), 1):
        print(f"{number} of {len(left)}: {key} ({names[key]})", file=sys.stderr, flush=True)
        try:
            if (code := _do(same, root)) or stop.asked:
                return code or REQUEUE
        except Exception as error:
            if is_worker():  # the other ranks are at this work still, and would wait for this one
                raise
            failed = 1
            _say(error if isinstance(error, UserError) else f"{key}: {traceback.format_exc()}")
            if stop.asked:
                return REQUEUE
    return failed


def _in_parallel(left: dict[str, str], options: Options) -> int:
    """Each in a process of its own; a signal goes on to them, and no more are begun."""
    arguments = [one for one in sys.argv[1:] if one not in ("--json", "--dry-run")]
    with StopRequest() as stop:
        running: list[subprocess.Popen[bytes]] = []

        def one(numbered: tuple[int, str]) -> int:
            number, key = numbered
            if stop.asked:
                return REQUEUE
            print(f"{number} of {len(left)}: {key} ({left[key]})", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "jobs.cli", *arguments, "--parallel", "1", "--work", key]
            # as many share this machine's cores as if they were ranks on it
            environment = {**os.environ, "LOCAL_WORLD_SIZE": str(options.parallel)}
            process = subprocess.Popen(command, stdout=STDERR, env=environment)
            running.append(process)
            code = process.wait()
            if code < 0 and not stop.asked:
                name = signal.Signals(-code).name
                _say(f"{key}: its process was ended by {name}; the same command goes on with it")
            return code

        with ThreadPoolExecutor(options.parallel) as pool:
            waiting = [pool.submit(one, numbered) for numbered in enumerate(left, 1)]
            while not all(future.done() for future in waiting):
                if stop.asked:
                    for process in running:
                        if process.poll() is None:
                            process.terminate()
                time.sleep(0.2)
        codes = {future.result() for future in waiting}
    return REQUEUE if stop.asked or REQUEUE in codes else int(any(codes))
