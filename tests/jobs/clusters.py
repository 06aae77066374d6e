"""A working directory with commands that stand in for a scheduler's, and what `pairstream submit` answers there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main

Capture = pytest.CaptureFixture[str]


class Place:
    """The test's working directory, and commands that stand in for a scheduler's."""

    def __init__(self, path: Path) -> None:
        self.path, self.commands = path, path / "bin"
        self.commands.mkdir()

    def command(self, name: str, script: str) -> None:
        """A command that notes how it was called and then runs `script`."""
        file = self.commands / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> "{self.path}/called"\n{script}\n')
        file.chmod(0o755)

    @property
    def called(self) -> list[str]:
        file = self.path / "called"
        return file.read_text().splitlines() if file.exists() else []


def answer(capsys: Capture, *words: str) -> dict[str, Any]:
    assert main(["submit", *words]) == 0, capsys.readouterr().err
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def refused(capsys: Capture, *words: str) -> str:
    assert main(["submit", *words]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not Path("runs").exists(), "it was refused, and has left something behind"
    return error
