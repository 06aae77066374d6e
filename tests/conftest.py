"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.ranks import Ranks

settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
"""A change is judged by the same examples every time; HYPOTHESIS_PROFILE=default looks for new ones."""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of the session's own: tests neither use nor fill the user's."""
    os.environ["PAIRSTREAM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits corpus as shards and a manifest; read only."""
    from pipeline.corpora import prepare

    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out)
    return out


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two processes in one gloo group, started once."""
    pair = Ranks(2)
    yield pair
    pair.close()


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """`__main__` as it is. Streamlit puts its page there, with which processes that are started later would begin."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
