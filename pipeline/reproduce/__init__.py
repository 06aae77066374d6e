"""Tables of the papers, made again: which there are."""

from __future__ import annotations

from infra.errors import UserError, nearest
from pipeline.reproduce import domains, faces, likelihoods, sentences, weak, worth
from pipeline.reproduce.table import Table

TABLES: dict[str, Table] = {
    table.name: table for module in (weak, likelihoods, domains, faces, sentences, worth) for table in module.TABLES
}


def table(name: str) -> Table:
    """A table by name. Raises UserError with the nearest names."""
    if name not in TABLES:
        raise UserError(f"no table {name!r}" + nearest(name, list(TABLES)))
    return TABLES[name]
