"""A Slurm of one node for tests: munged, slurmctld and slurmd in a folder of their own, on ports of their own."""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# No accounting, no cgroups, no systemd: what a bare container has. The node says it has what two chapters ask for,
# whatever this machine has, and two GPUs, which are only counted, so that a request for them can be seen.
CONFIGURATION = """
ClusterName=miniature
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
KillWait=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""


def wait_for(condition: Callable[[], object], seconds: float, why: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain\n{why()}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """The folder of a running Slurm, and questions to it."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs to talk to this Slurm."""
        return {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": f"{self.folder}/bin:{SEARCHED}"}

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Every job that the controller remembers, in the order of submission, with the chapter that it runs."""
        lines = [line for line in self.ask("scontrol", "show", "job", "--oneliner").splitlines() if "JobId=" in line]
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
        for job in jobs:
            job["Chapter"] = job.get("Comment", "").removeprefix("rule_run_wildcards_")
        return sorted(jobs, key=lambda job: int(job["JobId"]))

    def node(self) -> str:
        """The node's state."""
        return self.ask("sinfo", "--noheader", "--partition", "main", "--format", "%T").strip()

    def logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))


def host() -> str:
    """The name of this machine, and of the node."""
    return socket.gethostname().partition(".")[0]


def missing() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=SEARCHED)]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Start the three daemons, and at the end cancel the jobs and stop exactly these daemons."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # not pytest's: munge's socket has to be open to other users
    folder.chmod(0o755)
    cluster = Cluster(folder)
    started: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder)
        slurm = ["-D", "-f", f"{folder}/slurm.conf"]
        for command in (_munged(folder), ["slurmctld", *slurm], ["slurmd", *slurm]):
            with (folder / f"{command[0]}.out.log").open("wb") as out:
                command[0] = shutil.which(command[0], path=SEARCHED) or command[0]
                environment = {**os.environ, **cluster.variables}
                started.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
            if len(started) == 1:
                wait_for((folder / "munge.socket").exists, 20, cluster.logs)
        wait_for(lambda: cluster.node() == "idle", 30, cluster.logs)
        yield cluster
        cluster.ask("scancel", "--user", getpass.getuser())
        wait_for(lambda: not cluster.ask("squeue", "--noheader"), 30, cluster.logs)  # no step outlives the cluster
    finally:
        for daemon in reversed(started):
            daemon.terminate()
        for daemon in reversed(started):
            daemon.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as two:
        for port in (one, two):
            port.bind(("127.0.0.1", 0))
        ports = [port.getsockname()[1] for port in (one, two)]
    text = CONFIGURATION.format(host=host(), ports=ports, user=getpass.getuser(), folder=folder)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    # The plugin starts srun without SLURM_CONF: on a cluster there is a configuration in /etc, here there is none.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=SEARCHED)} "$@"\n')
    srun.chmod(0o755)


def _munged(folder: Path) -> list[str]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    return ["munged", "--foreground", *(f"--{option}={folder}/munge.{end}" for option, end in files.items())]
