"""Which code ran: the commit of the checkout that the package runs from, and what was changed since."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 1_000_000
"""Of a diff that is kept."""


@dataclass(frozen=True)
class Checkout:
    """The state of a git checkout."""

    commit: str
    diff: str
    """What is changed since, as a patch of at most MOST_BYTES, and the names of files that git does not know."""


def checkout_of(root: Path, file: Path) -> Checkout | None:
    """The checkout at or above `root` where git is installed and it tracks `file`; None for an installed package,
    also within another project's checkout."""
    if shutil.which("git") is None or _git(root, "ls-files", "--error-unmatch", str(file)) is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--", ".") or ""
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", ".") or ""
    names = "".join(f"# not known to git: {name}\n" for name in unknown.splitlines())
    return Checkout(commit.strip(), diff + names)


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers, the beginning of it where that is too long; None where it refuses.

    It takes no lock: many trials look at one checkout. Variables of a hook, in which we may run, are another's.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as git:
        assert git.stdout is not None
        answer = git.stdout.read(MOST_BYTES)
        if cut := bool(git.stdout.read(1)):
            git.kill()
    if git.returncode and not cut:
        return None
    return answer.decode(errors="replace") + (f"\n# cut after {MOST_BYTES:,} bytes\n" if cut else "")
