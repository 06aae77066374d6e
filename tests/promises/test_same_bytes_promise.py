"""Same input, same shards: neither the clock, the time zone nor the locale of a machine shows in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = """
import sys, time
now = time.time
time.time = lambda: now() - 10**9
from jobs.cli import main
sys.exit(main(["prepare", "digits", "--workers", "1", "--out", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    "machine", [{"LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Kiritimati"}, {"LC_ALL": "tr_TR.UTF-8", "TZ": "UTC"}]
)
def test_clock_and_locale_do_not_show_in_the_shards(digits_dir: Path, tmp_path: Path, machine: dict[str, str]) -> None:
    out = tmp_path / "digits"
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(out)], env={**os.environ, **machine}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in digits_dir.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (digits_dir / name).read_bytes()
