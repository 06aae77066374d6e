"""Which code ran is told where it is a checkout, and nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from infra import checkout
from infra.checkout import checkout_of

IDENTITY = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A package of one file in a checkout."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "model.py").write_text("latent = 64\n")
    git(package, "init", "-q", "..")
    git(package, "add", ".")
    git(package, "commit", "-qm", "first")
    return package


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def found(package: Path) -> checkout.Checkout | None:
    return checkout_of(package, package / "model.py")


def test_the_commit_and_what_is_changed_since(code: Path) -> None:
    head = git(code, "rev-parse", "HEAD").strip()
    assert found(code) == checkout.Checkout(head, "")
    (code / "model.py").write_text("latent = 32\n")
    (code / "new.py").write_text("secret = 1\n")
    (code.parent / "beside.py").write_text("")
    changed = found(code)
    assert changed
    assert changed.commit == head
    assert "-latent = 64\n+latent = 32" in changed.diff
    assert changed.diff.endswith("# not known to git: new.py\n")
    assert "secret" not in changed.diff  # the patch can be applied; contents of unknown files are not taken along
    assert "beside" not in changed.diff


def test_staged_changes_count_and_no_lock_is_taken(code: Path) -> None:
    (code / "model.py").write_text("latent = 8\n")
    git(code, "add", "model.py")
    (code.parent / ".git" / "index.lock").touch()  # of another process
    changed = found(code)
    assert changed
    assert "+latent = 8" in changed.diff


def test_a_long_diff_is_cut(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "model.py").write_text("x\n" * 500_000)
    monkeypatch.setattr(checkout, "MOST_BYTES", 10_000)
    changed = found(code)
    assert changed
    assert len(changed.diff) < 10_100
    assert changed.diff.endswith("# cut after 10,000 bytes\n")


def test_an_installed_package_is_no_checkout_not_even_within_one(code: Path) -> None:
    installed = code.parent / "venv" / "package"
    installed.mkdir(parents=True)
    shutil.copy(code / "model.py", installed)
    assert found(installed) is None


def test_no_git_no_commit_and_no_checkout_are_no_errors(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.py").touch()
    assert found(alone) is None
    git(alone, "init", "-q")
    git(alone, "add", ".")
    assert found(alone) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(code) is None


def test_a_hook_s_variables_lead_nowhere_else(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert found(code) is not None
