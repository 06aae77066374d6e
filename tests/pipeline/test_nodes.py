"""Ranks on nodes that are not alike are refused before the first step, in a sentence, on every rank."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from infra.distributed import start
from infra.doctor import checks
from infra.errors import UserError
from pipeline.data import check_nodes
from tests.ranks import Ranks


@dataclass
class Data:
    directory: str
    fingerprint: str


@contextmanager
def another(target: Any, name: str, value: Any) -> Iterator[None]:
    """On rank 1, which is on node7, something is another."""
    with contextlib.ExitStack() as stack:
        if start("cpu", 1).rank == 1:
            stack.enter_context(patch.object(platform, "node", lambda: "node7"))
            stack.enter_context(patch.object(target, name, value))
        yield


def refused(what: str) -> str:
    data = Data("d", "aa")
    changes = {
        "nothing": (data, "directory", "/copy"),
        "data": (data, "fingerprint", "bb"),
        "torch": (checks, "version", lambda package: "1.0" if package == "torch" else version(package)),
    }
    with another(*changes[what]):
        try:
            check_nodes(start("cpu", 1), SimpleNamespace(manifests=[data]))  # type: ignore[arg-type]
        except UserError as error:
            return str(error)
    return ""


SENTENCES = {
    "nothing": "",
    "data": "rank 1 on node7 has other data in d (fingerprint bb, rank 0 has aa): every node has to see the same",
    "torch": f"rank 1 on node7 has torch 1.0 (rank 0: {version('torch')}): install the same versions on every node",
}


@pytest.mark.parametrize("what", SENTENCES)
def test_nodes_that_are_not_alike(what: str, ranks: Ranks) -> None:
    assert ranks.run(refused, what) == [SENTENCES[what]] * 2
