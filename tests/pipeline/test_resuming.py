"""What an error or kill -9 leaves is taken up again, and neither it nor the number of processes shows in the result."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipeline.corpora.corpus import Corpus, Entry, Values
from pipeline.manifest import open_manifest
from pipeline.writing import write
from tests.pipeline.tiny import LABEL, MODALITIES, given, make, one, samples, unhurried, values_of


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def breaks_at(number: int, count: int = 120) -> Corpus:
    """A corpus one of whose samples cannot be loaded."""

    def load(entry: Entry) -> Values:
        if entry.key == f"train/{number:04d}":
            raise UserError("raw file is broken")
        return values_of(entry)

    return replace(given("tiny", MODALITIES, samples(count)), load=load)


def test_an_error_in_the_first_shard_leaves_nothing(tmp_path: Path) -> None:
    def broken(source: Path | None) -> list[Entry]:
        raise RuntimeError("raw file is broken")

    corpus = replace(given("tiny", MODALITIES, []), entries=broken)
    with pytest.raises(RuntimeError, match="raw file is broken"):
        write(tmp_path / "d", corpus)
    assert os.listdir(tmp_path) == []
    (tmp_path / "d").mkdir()
    for failing in (breaks_at(0), breaks_at(1)):  # while the shards are planned, and while the first is written
        with pytest.raises(UserError, match=r"^raw file is broken$"):
            write(tmp_path / "d", failing)
    with pytest.raises(RuntimeError):
        write(tmp_path / "d", corpus)
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == []


def test_an_error_in_the_middle_keeps_what_is_finished(tmp_path: Path) -> None:
    out, partial = tmp_path / "d", tmp_path / "d.partial"
    with pytest.raises(UserError, match=r"raw file is broken; 8 of 15 shards are finished in .*d\.partial: the same"):
        write(out, breaks_at(66), 20_000)
    assert os.listdir(tmp_path) == ["d.partial"]
    assert not list(partial.glob("*.tmp"))
    before = {p.name: p.stat().st_mtime_ns for p in partial.glob("data/*.tar")}
    assert len(before) == 8
    for other, bytes_, words in (
        (given("tiny", MODALITIES, samples(119)), 20_000, "other keys, values; corpus 'tiny'"),
        (given("else", MODALITIES, samples(120)), 20_000, "other corpus; corpus 'tiny'"),
        (breaks_at(66), 10_000, "other shard_bytes;"),
        (replace(given("tiny", MODALITIES, samples(120)), load=lambda _: {}), 20_000, "other values;"),
    ):
        with pytest.raises(UserError, match=words):
            write(out, other, bytes_)
    written = write(out, breaks_at(-1), 20_000)
    assert written.kept == 8
    assert written.samples < 120
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert os.listdir(tmp_path) == ["d"]
    write(tmp_path / "whole", breaks_at(-1), 20_000)
    assert tree(out) == tree(tmp_path / "whole")


def test_shards_that_were_damaged_meanwhile_are_written_again(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        write(tmp_path / "d", breaks_at(66), 20_000)
    partial = tmp_path / "d.partial"
    os.truncate(partial / "data/train-000001.tar", 5000)
    (partial / "rows/train-000002.arrow").write_bytes(b"no rows")
    (partial / "rows/train-000003.arrow").unlink()
    (partial / "train-000009.tar.1.tmp").write_bytes(b"half")
    assert write(tmp_path / "d", breaks_at(-1), 20_000).kept == 5
    write(tmp_path / "whole", breaks_at(-1), 20_000)
    assert tree(tmp_path / "d") == tree(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["d", "whole"]


def test_an_error_of_another_process_is_the_same_sentence(tmp_path: Path) -> None:
    good = [one(f"a{number:03d}") for number in range(200)]
    bad = [*good[:150], Entry("late", "train", {"label": np.asarray(10)}), *good[150:]]
    with pytest.raises(UserError, match=r"corpus bad: late, modality label: .*10.* shards are finished in"):
        write(tmp_path / "d", given("bad", LABEL, bad), 10_240, workers=2)
    assert os.listdir(tmp_path) == ["d.partial"]
    assert not list((tmp_path / "d.partial").glob("*.tmp"))


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    alone = make(tmp_path / "one", 300, 20_000)
    rows = [s for split, n in (("train", 300), ("val", 5), ("test", 3)) for s in samples(n, split)]
    written = write(
        tmp_path / "two", given("tiny", MODALITIES, rows), 20_000, 2, lambda *report: reports.append(report)
    )
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert (written.fingerprint, written.samples, written.kept) == (alone.fingerprint, 308, 0)
    assert reports[0] == (0, 308)
    assert reports[-1] == (308, 308)
    assert reports == sorted(reports)
    sizes = [shard.bytes for shard in alone.shards if shard.name.startswith("train")]
    assert 10_000 < np.median(sizes) < 31_000  # tar fills up to 10,240 bytes


KILLED = """
import sys
from pathlib import Path
from pipeline.writing import write
from tests.pipeline.tiny import unhurried
if __name__ == "__main__":
    write(Path(sys.argv[1]), unhurried(250), 1, int(sys.argv[2]))
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("workers", "kills"), [(1, 2), pytest.param(2, 5, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_it_writes_the_same_bytes(tmp_path: Path, workers: int, kills: int) -> None:
    """kill -9 of the parent, again and again; its processes end with it, the next call takes up what is finished."""
    out, data, random = tmp_path / "d", tmp_path / "d.partial" / "data", np.random.default_rng(workers)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    environment, finished = os.environ | {"PYTHONPATH": "."}, 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, str(script), str(out), str(workers)], env=environment)
        until, deadline = finished + int(random.integers(1, 40)), time.monotonic() + 30
        while not data.is_dir() or len(list(data.glob("*.tar"))) < until:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.random() * 0.02)
        others = children(process.pid)
        process.kill()
        process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in others):
            assert time.monotonic() < deadline, "its processes outlive it"
            time.sleep(0.005)
        assert not out.exists()
        finished = len(list(data.glob("*.tar")))
    assert write(out, unhurried(250), 1, workers).kept == finished
    write(tmp_path / "whole", unhurried(250), 1)
    assert tree(out) == tree(tmp_path / "whole")
    assert not data.parent.exists()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    said: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if not said:
            with pytest.raises(UserError) as caught:
                make(tmp_path / "d", 5)
            said.append(str(caught.value))

    write(tmp_path / "d", given("tiny", MODALITIES, samples(40)), 5000, progress=meanwhile)
    assert "is being written by another process" in said[0]
    assert os.listdir(tmp_path) == ["d"]
    assert len(open_manifest(tmp_path / "d")) == 40
