"""A disk that is full, or may not be written, ends all ranks with a sentence; nothing is lost, and the run goes on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from infra.checkpoint import Checkpoints
from tests.infra.servers import small_disk
from tests.promises.trained import COMMAND, curve, run

pytestmark = pytest.mark.slow
OPTIONS = ["--steps", "60", "--train.checkpoint-every", "5", "--train.keep", "20", "--ranks", "2"]


def refused(data: Path, out: Path, *options: str) -> str:
    """What the job says, which must not be a traceback; every rank has ended."""
    command = [*COMMAND, "--data", str(data), "--out", str(out), *OPTIONS, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said: str = json.loads(done.stdout.splitlines()[-1])["error"]
    assert said in done.stderr
    return said


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_and_then_a_larger_one(tmp_path: Path, digits_dir: Path, ranks: int) -> None:
    undisturbed = run(*OPTIONS, "--ranks", str(ranks), data=digits_dir, out=tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole" / "checkpoints" / "step_5").iterdir())
    with small_disk(int(3.5 * size), tmp_path / "disk") as disk:
        out = disk / "run"
        said = refused(digits_dir, out, "--ranks", str(ranks))
        assert f"could not be written to {out / 'checkpoints'}: " in said
        assert "No space left on device" in said
        kept = Checkpoints(out / "checkpoints").all()
        assert kept == [5, 10, 15][: len(kept)] != []
        subprocess.run(["mount", "-o", f"remount,size={40 * size}", str(disk)], check=True)
        result = run(*OPTIONS, "--ranks", str(ranks), "--resume", data=digits_dir, out=out)
        assert result["loss"] == undisturbed["loss"]
        assert curve(out) == curve(tmp_path / "whole")


def test_a_directory_that_may_not_be_written_any_more(tmp_path: Path, digits_dir: Path) -> None:
    """Read-only between two calls, as a file system is that has met an error."""
    with small_disk(1 << 26, tmp_path / "disk") as disk:
        out = disk / "run"
        run(*OPTIONS, data=digits_dir, out=out)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        said = refused(digits_dir, out, "--resume")
        assert str(out) in said
        assert "ead-only file system" in said
