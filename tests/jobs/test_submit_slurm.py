"""What `pairstream submit slurm` renders, refuses and asks SLURM, whose commands are stood in for; the site's file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.allocation import ranks_of_srun
from infra.distributed import free_port
from jobs.cli import main
from jobs.submitting import slurm
from jobs.submitting.process import continued
from jobs.submitting.site import seconds
from tests.jobs.clusters import Capture, Place, answer, refused


@pytest.fixture
def train(digits_dir: Path) -> list[str]:
    return ["--", "train", "digits", "--data", str(digits_dir)]


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_sbatch_script_says_what_was_asked_for(capsys: Capture, place: Place, train: list[str]) -> None:
    shown = answer(
        capsys, "slurm", "--dry-run", "--json", "--nodes", "2", "--gpus", "2", "--cpus", "3", "--memory", "64G",
        "--time", "1d12h", "--lead", "90s", "--partition", "gpu", "--account", "us", "--options=--constraint=a100",
        "--environment", "NCCL_SOCKET_IFNAME", "ib 0", *train, "--optim.lr", "1e-4",
    )  # fmt: skip
    script, directory = shown["submits"], place.path / "runs" / "jobs" / shown["job"]
    assert directives(script) == {
        "requeue": "", "job-name": shown["job"], "output": f"{directory}/log.txt", "open-mode": "append",
        "chdir": str(place.path), "nodes": "2", "ntasks-per-node": "2", "cpus-per-task": "3", "gpus-per-node": "2",
        "mem": "64G", "time": "1-12:00:00", "signal": "B:USR1@90", "partition": "gpu", "account": "us",
        "constraint": "a100",
    }  # fmt: skip
    assert "export NCCL_SOCKET_IFNAME='ib 0'\n" in script
    assert "export OMP_NUM_THREADS=3\n" in script
    assert f"record={directory} restarts=3\n" in script
    task = f'task=({sys.executable} -m jobs.submitting.process slurm "$record" train digits --data '
    assert f"{task}{train[-1]} --optim.lr 1e-4 --out runs/{shown['job']})\n" in script
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert not directory.exists()
    assert place.called == []
    warned = "" if not str(place.path).startswith("/tmp/") else "each machine's own"
    assert warned in "".join(shown["warnings"])


def test_job_without_ranks_is_one_task_with_all_cores(capsys: Capture, place: Place, digits_dir: Path) -> None:
    words = ["slurm", "--dry-run", "--json", "--nodes", "4", "--ranks", "8", "--cpus", "2", "--"]
    shown = answer(capsys, *words, "sweep", "digits", "--data", str(digits_dir))
    asked = directives(shown["submits"])
    assert (asked["nodes"], asked["ntasks-per-node"], asked["cpus-per-task"]) == ("1", "1", "16")
    assert "OMP_NUM_THREADS" not in shown["submits"]


def test_image_is_srun_s_container(capsys: Capture, place: Place, train: list[str]) -> None:
    words = ["slurm", "--dry-run", "--json", "--image", "pairstream:1", "--mounts", "/data:/data", "/home:/home"]
    script = answer(capsys, *words, "--", "train", "digits", "--data", "/data/anything")["submits"]
    container = (
        f"--container-image=pairstream:1 --container-mounts=/data:/data,/home:/home --container-workdir={place.path}"
    )
    assert f"task=({container} python -m jobs.submitting.process" in script


def test_site_s_defaults_and_who_overrides_them(
    capsys: Capture, place: Place, train: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pairstream.toml").write_text(
        'nodes = 2\npartition = "gpu"\nmounts = ["claim:/work"]\n[environment]\nA = "1"\n[slurm]\nmounts = []\n'
        '[kubernetes]\nnodes = 5\nimage = "pairstream:1"\n'
    )
    base = ["slurm", "--dry-run", "--json"]
    script = answer(capsys, *base, *train)["submits"]
    assert (directives(script)["nodes"], directives(script)["partition"]) == ("2", "gpu")
    assert "export A=1\n" in script
    assert directives(answer(capsys, *base, "--nodes", "4", *train)["submits"])["nodes"] == "4"
    shown = answer(capsys, "kubernetes", "--dry-run", "--json", "--", "train", "digits", "--data", "d")["submits"]
    assert list(yaml.safe_load_all(shown))[1]["spec"]["completions"] == 5
    other = place.path / "other.toml"
    other.write_text('[slurm]\npartition = "named"\n')
    monkeypatch.setenv("PAIRSTREAM_SITE", str(other))
    asked = directives(answer(capsys, *base, *train)["submits"])
    assert (asked["nodes"], asked["partition"]) == ("1", "named")
    asked = directives(answer(capsys, *base, "--site", "pairstream.toml", *train)["submits"])
    assert asked["partition"] == "gpu"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('partitoin = "gpu"', "site.toml: no key 'partitoin'; did you mean 'partition'"),
        ('[slurm]\nacount = "gpu"', "site.toml: no key 'acount' in [slurm]; did you mean 'account'"),
        ('[slrum]\naccount = "gpu"', "site.toml: no key 'slrum'; did you mean 'slurm'?"),
        ("dry_run = true", "no key 'dry_run'"),
        ("slurm = 3", "slurm must be a table: [slurm]"),
        ('nodes = "many"', "site.toml: nodes: "),
        ("nodes = 0", "--nodes and --cpus take at least 1"),
        ("nodes = ", "is no TOML"),
        ('time = "1h"\nlead = "60m"', "--time 1h is not longer than --lead 60m"),
        ('time = "12:00:00"', "write a duration such as 45m, 12h or 1d12h"),
        ('memory = "64"', "write a number with its unit, as in 64G"),
        ('mounts = ["/data"]', "write SOURCE:/TARGET"),
        ("gpus = 2\nranks = 4", "each rank needs a GPU of its own"),
        ("restarts = -1", "--restarts must not be negative"),
    ],
)
def test_wrong_site_is_a_sentence(capsys: Capture, place: Place, train: list[str], text: str, sentence: str) -> None:
    Path("site.toml").write_text(text)
    assert sentence in refused(capsys, "slurm", "--site", "site.toml", *train)


def test_refused_before_anything_is_sent(capsys: Capture, place: Place, train: list[str]) -> None:
    place.command("sbatch", "echo 1")
    place.command("sinfo", "printf 'main*\\ngpu\\n'")
    for words, sentence in (
        (["--ranks", "3", *train], "train.batch = 100 cannot be divided among 3 ranks"),
        (["--nodes", "3", "--ranks", "2", *train], "cannot be divided among 6 ranks"),
        (["--", "train", "digits", "--data", "nowhere"], "nowhere does not exist"),
        (["--", "train", "digit"], "did you mean 'digits'"),
        ([*train, "--ranks", "2"], "ranks are the cluster's: pairstream submit slurm --ranks 2"),
        ([*train, "--seeds", "3"], "each seed is a job of its own"),
        ([*train, "--resume"], "name the run that is to go on with --out DIR"),
        (["--partition", "gpus", *train], "SLURM has no partition 'gpus'; did you mean 'gpu'?"),
        (["--site", "nowhere.toml", *train], "nowhere.toml cannot be read"),
        (["train", "digits"], "the job comes after: submit slurm [OPTIONS] -- JOB"),
    ):
        assert sentence in refused(capsys, "slurm", *words)
    with pytest.raises(SystemExit) as end:
        main(["submit", "slurm", *train, "--optim.lrr", "1"])
    assert end.value.code == 2
    assert not any(line.startswith("sbatch") for line in place.called)


def test_missing_schedulers_are_sentences(capsys: Capture, place: Place) -> None:
    assert "there is no sbatch; submit from a login node" in refused(capsys, "slurm", "--", "recipes")


def test_a_sweep_that_cannot_work_is_refused_before_anything_is_sent(
    capsys: Capture, place: Place, digits_dir: Path
) -> None:
    place.command("sbatch", "echo 17")
    sweep = ["--", "sweep", "digits", "--data"]
    assert "nowhere does not exist" in refused(capsys, "slurm", *sweep, "nowhere")
    with pytest.raises(SystemExit) as wrong:
        main(["submit", "slurm", *sweep, str(digits_dir), "--nonsense", "1"])
    assert wrong.value.code == 2
    assert "--nonsense" in capsys.readouterr().err
    assert place.called == []


def test_a_controller_that_is_busy_is_asked_again(
    capsys: Capture, place: Place, train: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer that fails is not the end of a job."""
    place.command("sbatch", "echo 17")
    busy = place.path / "busy"
    once = f'if /bin/rm "{busy}" 2> /dev/null; then echo "Socket timed out" >&2; exit 1; fi'
    place.command("squeue", f"{once}; echo N/A RUNNING")
    job = answer(capsys, "slurm", "--json", *train)["job"]
    waited: list[float] = []
    monkeypatch.setattr(slurm.time, "sleep", waited.append)
    busy.touch()
    assert answer(capsys, "status", job, "--json")["state"] == "running"
    assert [wait for wait in waited if wait >= 1] == [1.0]
    (place.path / "bin" / "squeue").unlink()
    assert answer(capsys, "status", job, "--json")["state"] == "unknown"
    assert [wait for wait in waited if wait >= 1] == [1.0], "what is not installed will not be there in a second"


def test_slurm_is_asked_and_believed(capsys: Capture, place: Place, train: list[str]) -> None:
    place.command("sbatch", "echo '17;cluster'")
    place.command("scancel", "")
    place.command("squeue", f'/bin/cat "{place.path}/queue"')
    queue = place.path / "queue"
    job = answer(capsys, "slurm", "--json", *train)
    directory = Path("runs/jobs") / job["job"]
    assert (job["backend"], job["id"]) == ("slurm", "17")
    assert place.called == [f"sbatch --parsable {place.path / directory}/job.sh"]
    assert (directory / "job.sh").read_text() == job["submits"]
    for said, state in (("PENDING", "queued"), ("RUNNING", "running"), ("COMPLETING", "running"), ("", "killed")):
        queue.write_text(said and f"N/A {said}\n")
        assert answer(capsys, "status", job["job"], "--json")["state"] == state
    (directory / "exit").write_text("75\n")
    for said, state in (("", "preempted"), ("N/A PENDING\n", "queued")):
        queue.write_text(said)
        assert answer(capsys, "status", job["job"], "--json")["state"] == state, "75 may have been queued again"
    place.command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert answer(capsys, "status", job["job"], "--json")["state"] == "unknown"
    place.command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert answer(capsys, "status", job["job"], "--json")["state"] == "preempted"
    for code, state in ((0, "finished"), (1, "failed"), (137, "killed")):
        (directory / "exit").write_text(f"{code}\n")
        assert answer(capsys, "status", job["job"], "--json")["state"] == state
        place.command("squeue", "echo N/A PENDING")
        assert answer(capsys, "status", job["job"], "--json")["state"] == "queued", "what failed may be queued again"
        place.command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    (directory / "exit").unlink()
    for said, told in (("N/A RUNNING\n", "scancel --batch --signal=TERM 17"), ("N/A PENDING\n", "scancel 17")):
        queue.write_text(said)
        place.command("squeue", f'/bin/cat "{queue}"')
        place.command("scancel", f': > "{queue}"')
        assert answer(capsys, "cancel", job["job"], "--json")["state"] == "killed"
        assert told in place.called


@pytest.mark.parametrize(
    ("code", "said", "signal", "restarts", "ends", "requeued"),
    [
        (0, 0, "", 3, 0, False),
        (0, 75, "USR1", 3, 75, True),
        (0, 75, "", 3, 75, True),
        (0, 75, "TERM", 3, 75, False),
        (138, None, "USR1", 3, 75, True),
        (137, None, "", 3, 137, True),
        (137, None, "", 0, 137, False),
        (137, 1, "", 1, 1, True),
        (137, 75, "", 3, 137, True),
        (2, 2, "", 3, 2, False),
        (1, 1, "TERM", 3, 1, False),
    ],
)
def test_how_the_job_s_shell_ends(
    capsys: Capture, place: Place, code: int, said: int | None, signal: str, restarts: int, ends: int, requeued: bool
) -> None:
    """srun is stood in for by what ends with `code` after rank 0 wrote `said`; a signal comes to the shell first."""
    words = ["slurm", "--dry-run", "--json", "--restarts", str(restarts), "--", "recipes"]
    shown = answer(capsys, *words)
    directory = place.path / "runs" / "jobs" / shown["job"]
    directory.mkdir(parents=True)
    (directory / "exit").write_text("75\n")  # of an earlier start; who finds one writes none
    place.command("scontrol", "[ $1 != show ] || echo node1")
    wait = 'for i in $(/usr/bin/seq 100); do [ -n "$told" ] || /bin/sleep 0.05; done'
    tell = f"trap 'told=yes' USR1\nkill -{signal} $PPID; {wait}" if signal else ""
    write = f'[ -e "{directory}/exit" ] || echo {said} > "{directory}/exit"' if said is not None else ""
    place.command("srun", f"{tell}\n{write}\nexit {code}")
    environment = {"PATH": f"{place.commands}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = subprocess.run(["/bin/bash"], input=shown["submits"], text=True, env=environment, check=False, timeout=60)
    assert done.returncode == ends
    assert (directory / "exit").read_text() == f"{ends}\n"
    assert ("scontrol requeue 7" in place.called) == requeued
    assert "scontrol show hostnames node[1-2]" in place.called


def test_run_that_has_begun_goes_on(tmp_path: Path) -> None:
    train = ["train", "digits", "--out", str(tmp_path)]
    sweep = ["sweep", "digits", "--over", "lambda", "--out", str(tmp_path), "--cpus", "2"]
    assert (continued(train), continued(sweep)) == (train, sweep)
    (tmp_path / "run.json").touch()
    (tmp_path / "sweep.json").touch()
    assert continued(train) == [*train, "--resume"]
    assert continued([*train, "--resume"]) == [*train, "--resume"]
    assert continued(sweep) == [*sweep, "--resume"]
    assert continued(["evaluate", "x", "--out", str(tmp_path)]) == ["evaluate", "x", "--out", str(tmp_path)]


def test_ranks_of_srun() -> None:
    said = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
    assert ranks_of_srun(said) == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_two_nodes_start_their_own_ranks_and_meet() -> None:
    """Two launchers, as two pods would run them; each rank says who it is and sums over all."""
    rank = (
        "import os; from infra.distributed import start; w = start('cpu', 1); e = os.environ; "
        "print(w.rank, w.size, w.local_rank, e['LOCAL_WORLD_SIZE'], w.sum([w.rank + 1.0])[0], flush=True)"
    )
    node = f"import sys; from infra.distributed import launch; sys.exit(launch([sys.executable, '-c', {rank!r}], 1))"
    common = {"PAIRSTREAM_NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", node], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **common, "PAIRSTREAM_NODE": str(number)},
        )
        for number in range(2)
    ]  # fmt: skip
    assert [one.communicate(timeout=60)[0].split() for one in nodes] == [
        ["0", "2", "0", "1", "3.0"],
        ["1", "2", "0", "1", "3.0"],
    ]


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("45m", 2700), ("1d12h", 129600), ("1h30m", 5400)])
def test_durations(text: str, value: int) -> None:
    assert seconds(text) == value
