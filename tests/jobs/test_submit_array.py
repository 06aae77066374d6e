"""A sweep over the tasks of a job array: what `submit slurm --array` renders, refuses and asks SLURM, stood in for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobs.cli import main
from tests.jobs.clusters import Capture, Place, answer, refused
from tests.jobs.test_submit_slurm import directives

GRID = ["--grid", "objective.k=0,1,2"]


@pytest.fixture
def sweep(digits_dir: Path) -> list[str]:
    return ["--", "sweep", "digits", "--data", str(digits_dir), *GRID]


def test_each_task_is_one_process_that_joins(capsys: Capture, place: Place, sweep: list[str]) -> None:
    """On sites where a node has many GPUs, too."""
    words = ["slurm", "--array", "3", "--dry-run", "--json", "--gpus", "8", "--cpus", "4"]
    shown = answer(capsys, *words, *sweep)
    script, directory = shown["submits"], place.path / "runs" / "jobs" / shown["job"]
    asked = directives(script)
    assert (asked["array"], asked["output"]) == ("0-2", f"{directory}/%a/log.txt")
    assert [asked[name] for name in ("nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node")] == [
        "1",
        "1",
        "4",
        "1",
    ]
    assert f"record={directory}/$SLURM_ARRAY_TASK_ID restarts=3\n" in script
    assert "export OMP_NUM_THREADS=4\n" in script
    assert f"objective.k=0,1,2 --join --cpus 4 --out runs/{shown['job']})\n" in script
    assert shown["log"] == f"runs/jobs/{shown['job']}/*/log.txt"
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False).returncode == 0
    script = answer(capsys, *words, *sweep, "--join", "--cpus=2")["submits"]
    assert "objective.k=0,1,2 --join --cpus=2 --out" in script


def test_more_tasks_than_trials_are_warned_of(capsys: Capture, place: Place, sweep: list[str]) -> None:
    shown = answer(capsys, "slurm", "--array", "4", "--dry-run", "--json", *sweep)
    assert "the sweep has 3 trials, the other tasks find nothing to do" in "".join(shown["warnings"])
    shown = answer(capsys, "slurm", "--array", "3", "--dry-run", "--json", *sweep)
    assert "nothing to do" not in "".join(shown["warnings"])


def test_what_is_no_array_is_refused(capsys: Capture, place: Place, sweep: list[str]) -> None:
    place.command("sbatch", "echo 17")
    for words, sentence in (
        (["--array", "2", "--", "train", "digits"], "'train' is no sweep: leave --array away"),
        (["--array", "2", "--"], "submit needs the job after --"),
        (["--array", "-1", *sweep], "--array must not be negative"),
        (["--array", "2", *sweep, "--scheduler", "asha"], "needs trials that are known beforehand"),
        (["--array", "2", *sweep, "--ranks", "2"], "leave --pack, --ranks, --ray, --hours and --gpus away"),
        (["--array", "2", "--", "sweep", "digits", "--data", "nowhere", *GRID], "nowhere does not exist"),
    ):
        assert sentence in refused(capsys, "slurm", *words)
    Path("site.toml").write_text("array = 3")
    assert "no key 'array'" in refused(capsys, "slurm", "--site", "site.toml", *sweep)
    assert place.called == []


@pytest.mark.parametrize(
    ("code", "said", "signal", "requeued"),
    [(0, 0, "", False), (0, 75, "USR1", True), (0, 75, "TERM", False), (137, None, "", True), (1, 1, "", False)],
)
def test_a_task_comes_back_alone(
    capsys: Capture, place: Place, sweep: list[str], code: int, said: int | None, signal: str, requeued: bool
) -> None:
    """SLURM_JOB_ID, which one task shares with the array, would bring all of them back."""
    shown = answer(capsys, "slurm", "--array", "4", "--dry-run", "--json", *sweep)
    task = place.path / "runs" / "jobs" / shown["job"] / "3"
    task.mkdir(parents=True)
    place.command("scontrol", "[ $1 != show ] || echo node1")
    wait = 'for i in $(/usr/bin/seq 100); do [ -n "$told" ] || /bin/sleep 0.05; done'
    tell = f"trap 'told=yes' USR1\nkill -{signal} $PPID; {wait}" if signal else ""
    write = f'echo {said} > "{task}/exit"' if said is not None else ""
    place.command("srun", f'{tell}\n[[ "$*" == *" slurm {task} sweep digits "* ]] || exit 9\n{write}\nexit {code}')
    environment = {
        "PATH": f"{place.commands}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "12",
        "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3",
    }  # fmt: skip
    done = subprocess.run(["/bin/bash"], input=shown["submits"], text=True, env=environment, check=False, timeout=60)
    ends = code if said is None else said
    assert done.returncode == ends
    assert (task / "exit").read_text() == f"{ends}\n"
    assert [line for line in place.called if "requeue" in line] == (["scontrol requeue 12_3"] if requeued else [])
    assert (task / "failures").exists() == (ends in (1, 137))


def test_its_tasks_are_counted_their_logs_shown_and_all_cancelled(
    capsys: Capture, place: Place, sweep: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    place.command("sbatch", "echo 17")
    queue = place.path / "queue"
    place.command("squeue", f'/bin/cat "{queue}"')
    place.command("scancel", "")
    job = answer(capsys, "slurm", "--array", "3", "--json", *sweep)
    directory = Path("runs/jobs") / job["job"]
    assert (job["id"], job["array"]) == ("17", 3)

    def state(said: str) -> tuple[str, int | None, dict[str, int]]:
        queue.write_text(said)
        found = answer(capsys, "status", job["job"], "--json")
        return found["state"], found["code"], found["tasks"]

    assert state("0 RUNNING\n1 PENDING\n2 PENDING\n") == ("running", None, {"running": 1, "queued": 2})
    (directory / "0" / "exit").write_text("75\n")
    assert state("0 PENDING\n1 PENDING\n2 RUNNING\n") == ("running", None, {"running": 1, "queued": 2})
    (directory / "0" / "exit").write_text("0\n")
    assert state("1 PENDING\n2 PENDING\n") == ("queued", None, {"queued": 2, "finished": 1})
    (directory / "1" / "exit").write_text("0\n")
    (directory / "2" / "exit").write_text("1\n")
    assert state("2 RUNNING\n") == ("running", None, {"running": 1, "finished": 2})
    assert state("") == ("failed", 1, {"failed": 1, "finished": 2})
    (directory / "2" / "exit").write_text("0\n")
    assert state("") == ("finished", 0, {"finished": 3})
    main(["submit", "status", job["job"]])
    assert "finished (3 finished)" in capsys.readouterr().out

    (directory / "0" / "log.txt").write_text("trial 000-k0 done\n")
    (directory / "2" / "log.txt").write_text("trial 002-k2 done\n")
    main(["submit", "logs", job["job"]])
    assert capsys.readouterr().out == "==> 0 <==\ntrial 000-k0 done\n==> 2 <==\ntrial 002-k2 done\n"

    place.command("scancel", f': > "{queue}"')
    queue.write_text("0 RUNNING\n1 PENDING\n")
    assert answer(capsys, "cancel", job["job"], "--json")["state"] == "finished"
    called = [line for line in place.called if line.startswith("scancel")]
    assert called == ["scancel --state=PENDING 17", "scancel --batch --signal=TERM 17"]
