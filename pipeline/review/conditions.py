"""Which runs are meant: text as it occurs in them, and conditions such as pairing.fraction<0.1 or status=FINISHED."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra.errors import UserError
from pipeline.review.rows import Row, hint, keys_of, number

SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
FORM = "write KEY<NUMBER, <=, >, >=, KEY=VALUE or KEY!=VALUE, as in 'val/elbo>-120' or status=FINISHED"


@dataclass(frozen=True)
class Condition:
    """KEY SIGN VALUE of one field."""

    key: str
    sign: str
    value: str
    limit: float = math.nan
    """The value as a number, where the sign needs one."""

    def holds(self, row: Row) -> bool:
        """False of a run that has no such field."""
        found = row.fields.get(self.key)
        if found is None:
            return False
        if self.sign in SIGNS:
            told = number(found)
            return told is not None and SIGNS[self.sign](told, self.limit)
        return self._equal(found) == (self.sign == "=")

    def _equal(self, found: object) -> bool:
        if self.key == "start":
            return _moment(str(found)).startswith(self.value.replace(" ", "T"))
        one, other = number(found), number(self.value)
        if one is not None and other is not None:
            return math.isclose(one, other, rel_tol=1e-9)
        return str(found).lower() == self.value.lower()


def _moment(start: str) -> str:
    return datetime.fromtimestamp(int(start) / 1000).isoformat()


def parse(item: str, rows: Sequence[Row]) -> Condition | str:
    """A condition, or a text to look for. Raises UserError for a condition that does not parse, or an unknown key.

    KEY=VALUE with a key that no run has is a text, as long as it occurs in some run.
    """
    match = re.fullmatch(r"\s*([^<>=!]*?)\s*(<=|>=|!=|==|<|>|=)\s*(.*?)\s*", item)
    if not match:
        return item
    key, sign, value = match[1], match[2].replace("==", "="), match[3]
    if not key or not value or value[0] in "<>=!":
        raise UserError(f"--filter: {item!r} is no condition: {FORM}")
    if not any(key in row.fields for row in rows):
        if sign == "=" and any(mentions(row, item) for row in rows):
            return item
        raise UserError(f"--filter: no run has {key!r}" + hint(key, keys_of(rows)))
    if sign not in SIGNS:
        return Condition(key, sign, value)
    if key == "start":
        try:
            return Condition(key, sign, value, datetime.fromisoformat(value).timestamp() * 1000)
        except ValueError:
            raise UserError(f"--filter: {value!r} in {item!r} is no date such as 2026-01-31") from None
    limit = number(value)
    if limit is None:
        raise UserError(f"--filter: {value!r} in {item!r} is no number, and {sign} compares numbers: {FORM}")
    return Condition(key, sign, value, limit)


def mentions(row: Row, text: str) -> bool:
    """Whether a text occurs in a run's name, its status or a KEY=VALUE of its parameters."""
    items = (row.name, row.status, *(f"{key}={value}" for key, value in row.params.items()))
    return any(text.lower() in item.lower() for item in items)


def matching(rows: Sequence[Row], items: Sequence[str]) -> list[Row]:
    """The runs of which all items are true; a text in a sweep's name is true of its trials. Raises UserError."""
    sweeps = {row.identity: row for row in rows if row.identity}
    wanted = [parse(item, rows) for item in items if item]

    def fits(row: Row, want: Condition | str) -> bool:
        if isinstance(want, Condition):
            return want.holds(row)
        above = sweeps.get(row.parent or "")
        return mentions(row, want) or (above is not None and want.lower() in above.name.lower())

    return [row for row in rows if all(fits(row, want) for want in wanted)]
