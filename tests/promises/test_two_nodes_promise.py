"""Promise 2 on two nodes: network namespaces joined by a link, a rank of torchrun's on each, and the link is cut."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.checkpoint import Checkpoints
from infra.preemption import LOST
from tests.promises.trained import COMMAND, curve, steps_journaled

pytestmark = pytest.mark.cluster
NODES = ("10.77.0.1", "10.77.0.2")
STEPS = 300


def shell(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Link:
    """Two namespaces `pairstream0` and `pairstream1`, each with one end of a pair of virtual network cards."""

    def __init__(self) -> None:
        self.names = [f"pairstream{number}" for number in range(len(NODES))]
        self.remove()
        for name in self.names:
            shell("ip", "netns", "add", name)
        first, second = self.names
        shell("ip", "link", "add", "link0", "netns", first, "type", "veth", "peer", "link1", "netns", second)
        for number, (name, address) in enumerate(zip(self.names, NODES, strict=True)):
            shell("ip", "-n", name, "address", "add", f"{address}/24", "dev", f"link{number}")
            shell("ip", "-n", name, "link", "set", "lo", "up")
        self.set("up")

    def set(self, state: str) -> None:
        """Up, or down: packets are lost, no connection is reset."""
        for number, name in enumerate(self.names):
            shell("ip", "-n", name, "link", "set", f"link{number}", state)

    def remove(self) -> None:
        for name in self.names:
            within = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
            for process in within.stdout.split():  # ranks whose launcher was killed
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def link() -> Iterator[Link]:
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("needs iproute2, and root to make network namespaces")
    try:
        made = Link()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    yield made
    made.remove()


def nodes(link: Link, *arguments: str) -> list[subprocess.Popen[str]]:
    """`pairstream train` under torchrun, a process of its own for each node."""
    started = []
    for number, name in enumerate(link.names):
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--node-rank", str(number), "--master-addr", NODES[0], "--master-port", "29577",
        ]  # fmt: skip
        command = ["ip", "netns", "exec", name, *torchrun, *COMMAND[1:], *arguments]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"link{number}"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe))
    return started


def ended(jobs: list[subprocess.Popen[str]], seconds: float) -> list[tuple[str, str]]:
    """What each printed; fails where one does not end in time."""
    until = time.monotonic() + seconds
    try:
        return [job.communicate(timeout=max(1.0, until - time.monotonic())) for job in jobs]
    finally:
        for job in jobs:
            job.kill()


def test_a_link_that_is_cut_ends_both_nodes_and_restored_they_go_on(
    link: Link, tmp_path: Path, digits_dir: Path
) -> None:
    options = ["--data", str(digits_dir), "--steps", str(STEPS), "--engine.patience", "12", "--engine.zero-stage", "2"]
    whole, out = tmp_path / "whole", tmp_path / "cut"
    undisturbed = ended(nodes(link, *options, "--out", str(whole)), 300)
    assert json.loads(undisturbed[0][0].splitlines()[-1])["status"] == "finished", undisturbed[0][1]

    jobs = nodes(link, *options, "--out", str(out))
    while not Checkpoints(out / "checkpoints").all() and jobs[0].poll() is None:
        time.sleep(0.05)
    assert steps_journaled(out) < STEPS
    link.set("down")
    cut = time.monotonic()
    said = ended(jobs, 60)
    assert time.monotonic() - cut < 60
    assert all(job.returncode for job in jobs)
    for rank, (_, errors) in enumerate(said):  # neither hears the other, and each names it
        assert f"rank {1 - rank} on" in errors, errors
        assert f"exitcode  : {LOST}" in errors, errors

    link.set("up")
    resumed = ended(nodes(link, *options, "--out", str(out), "--resume"), 300)
    assert json.loads(resumed[0][0].splitlines()[-1])["status"] == "finished", resumed[0][1]
    assert curve(out) == curve(whole)
