"""Numbers as a small CSV file that grows, and as a table for people."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from filelock import FileLock, Timeout

from infra.disk import write_whole
from infra.errors import UserError
from pipeline.reproduce.table import Number

COLUMNS = [field.name for field in fields(Number)]
KIND = {"ours": float, "spread": float, "epochs": float, "paper_epochs": float, "runs": int, "rows": int}


def read(file: Path) -> list[Number]:
    """The numbers of a file that `write` made; none where there is no file. Raises UserError for another file, and for
    one that is not whole."""
    if not file.exists():
        return []
    rest = "remove it, or choose another --out: what is done makes its numbers again"
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): {rest}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames != COLUMNS:
        raise UserError(f"{file} is no table of this version: {rest}")
    try:
        return [_number(line, text.endswith("\n")) for line in reader]
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged in line {reader.line_num}: {rest}") from None


def _number(line: dict[str, str], ended: bool) -> Number:
    """Raises ValueError or TypeError where cells are missing, too many, or no numbers."""
    needed = (*(name for name, kind in KIND.items() if kind is int), "ours", "data", "command")
    if not ended or not all(line[name] for name in needed):
        raise ValueError
    values = {
        name: KIND.get(name, str)(value) if value or name not in KIND else math.nan for name, value in line.items()
    }
    return Number(**values | {"paper": float(line["paper"]) if line["paper"] else None})  # type: ignore[arg-type]


def writable(file: Path) -> None:
    """Raises UserError where `write` would, before anything is trained for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            read(file)
    except OSError as error:
        raise UserError(f"--out {file.parent}: nothing can be written there ({error}); choose another") from None


def write(
    numbers: Sequence[Number], file: Path, draw: Callable[[list[Number], Path], Path] | None = None
) -> list[Path]:
    """Put numbers into a file; those of the same row, column, metric and length take the place of older ones. All that
    it holds then is drawn. Returns the files.

    Of two processes at the same table one waits for the other. Raises UserError as `read` does, and where the picture
    cannot be drawn: the numbers are kept then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        kept = {_place(number): number for number in read(file)}
        kept |= {_place(number): number for number in numbers}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number in kept.values():
            writer.writerow({name: _written(value) for name, value in asdict(number).items()})
        write_whole(file, text.getvalue())
        picture = file.with_suffix(".png")
        try:
            return [file, *([draw(list(kept.values()), picture)] if draw else [])]
        except (OSError, ValueError) as error:
            raise UserError(f"{picture} cannot be drawn ({error}); the numbers are in {file}") from None


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(timeout=5)
    except Timeout:
        print(f"{file}: another process writes there; waiting until it ends", file=sys.stderr, flush=True)
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _place(number: Number) -> tuple[str, str, str, float, int]:
    return number.row, number.column, number.metric, round(number.epochs, 2), number.runs


def _written(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


def text_of(number: Number) -> str:
    """0.8712 ± 0.0033 (paper 0.8593), with as many digits as the paper has."""
    digits = _digits(number)
    spread = "" if math.isnan(number.spread) else f" ± {number.spread:.{digits}f}"
    paper = "" if number.paper is None else f" (paper {number.paper:g})"
    return f"{number.ours:.{digits}f}{spread}{paper}"


def _digits(number: Number) -> int:
    size = abs(number.ours) if number.paper is None else abs(number.paper)
    return 4 if size < 2 else 2 if size < 200 else 1


def show(title: str, source: str, numbers: Sequence[Number], remark: str = "") -> None:
    """The table on the terminal: rows and columns as the paper's, ours with the paper's value beside."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(number.column for number in numbers))
    several = len({(number.row, number.column, length(number)) for number in numbers}) < len(numbers)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for number in numbers:
        name = f"{number.row}: {number.quantity}" if several else number.row
        lines.setdefault((name, length(number)), {})[number.column] = text_of(number)
    table = Table("", "epochs", *columns, title=f"{title} ({source})")
    for (name, epochs), texts in lines.items():
        table.add_row(name, epochs, *(texts.get(column, "") for column in columns))
    Console(width=max(160, Console().width)).print(table)
    print("±: standard deviation over runs, or of a single run the standard error over test rows")
    if remark:
        print(remark)


def length(number: Number) -> str:
    """20 of 500: how much of the paper's training was done."""
    if math.isnan(number.paper_epochs) or number.paper_epochs == number.epochs:
        return f"{number.epochs:.3g}"
    return f"{number.epochs:.3g} of {number.paper_epochs:.3g}"
