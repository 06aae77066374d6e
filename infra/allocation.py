"""Which rank, and which node, a scheduler has made of this process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from infra.errors import UserError

NODES, NODE = "PAIRSTREAM_NODES", "PAIRSTREAM_NODE"
"""Environment variables of a job on several nodes, each of which starts its own ranks: how many, and which this is.
MASTER_ADDR and MASTER_PORT then say where the ranks of all nodes meet."""


def nodes() -> tuple[int, int]:
    """(how many nodes start ranks of this job, the number of this one from 0); (1, 0) without a scheduler."""
    return int(os.environ.get(NODES, "1")), int(os.environ.get(NODE, "0"))


def ranks_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and the like of a task of `srun`, under the names by which torch knows them.

    Asked for, never looked up by default: SLURM sets the same variables in a batch script and in an interactive
    allocation, where this process is no task.
    """
    tasks, hosts = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(-(-tasks // hosts)),
    }


def join_srun() -> None:
    """Take this process's place among the tasks of `srun`, where it is one of several: into its environment.

    Nothing where a launcher has said already which rank this is. Raises UserError where SLURM does not tell the hosts.
    """
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1 or "RANK" in os.environ:
        return
    hosts = os.environ["SLURM_STEP_NODELIST"]
    if set(hosts) & set("[,"):
        try:
            told = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"SLURM does not say which hosts {hosts} are ({error}): set MASTER_ADDR to one") from None
        hosts = told.stdout.split()[0]
    meeting = {"MASTER_ADDR": hosts, "MASTER_PORT": str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000)}
    os.environ |= ranks_of_srun(os.environ) | {name: value for name, value in meeting.items() if name not in os.environ}
