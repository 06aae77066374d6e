"""A whole SLURM for tests: munge, controller and one node's daemon, as processes of ours on 127.0.0.1."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from infra.distributed import cores, free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
ReturnToService=2
KillWait=10
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of SLURM that are not installed here."""
    return [name for name in (*DAEMONS, *COMMANDS) if not shutil.which(name, path=SEARCHED)]


class Slurm:
    """A cluster of one node. Raises RuntimeError, with the daemons' last words, where the node does not become idle."""

    def __init__(self, place: Path) -> None:
        self.place, self.environment = place, {"SLURM_CONF": str(place / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (place / name).mkdir()
        ports = {"controller": free_port(), "node": free_port()}
        (place / "slurm.conf").write_text(
            CONFIGURATION.format(host=socket.gethostname(), user=getpass.getuser(), place=place, cores=cores(), **ports)
        )
        (place / "munge.key").write_bytes(os.urandom(1024))
        (place / "munge.key").chmod(0o400)
        files = {name: f"--{name}-file={place / 'munge'}.{name}" for name in ("key", "pid", "seed", "log")}
        self._start("munged", "--foreground", "--force", f"--socket={place / 'munge.socket'}", *files.values())
        self._await("munge has no socket", (place / "munge.socket").exists)
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-N", socket.gethostname())
        self._await("the node is not idle", lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"))

    def run(self, *command: str) -> str:
        """What a command of SLURM printed, standard error included."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def close(self) -> None:
        """End the daemons, the last one first; jobs go with them."""
        self.run("scancel", "--state=RUNNING", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, name: str, *options: str) -> None:
        program = shutil.which(name, path=SEARCHED)
        assert program
        with (self.place / f"{name}.out").open("wb") as out:
            self._daemons.append(
                subprocess.Popen([program, *options], env={**os.environ, **self.environment}, stdout=out, stderr=out)
            )

    def _await(self, trouble: str, ready: object, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if time.monotonic() > deadline:
                said = "\n".join(file.read_text()[-2000:] for file in sorted(self.place.glob("*.out")))
                self.close()
                raise RuntimeError(f"{trouble} after {seconds:g} s:\n{said}")
            time.sleep(0.2)
