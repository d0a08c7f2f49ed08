"""A real Slurm on this one machine: munged, slurmctld and two slurmd of Debian's packages, in a folder of their own.

    apt-get install -y --no-install-recommends slurm-wlm munge        # as root
    python -m tests.helpers.slurm_cluster                             # runs until Ctrl-C, and prints how to reach it

Three partitions share two nodes of one core each. Jobs of `urgent` pre-empt those of `main`, which Slurm puts back into
the queue, and those of `graceful`, which are warned before. The first node has the name of this machine, because the
first process of a job is looked up by the name of its node.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = (socket.gethostname(), f"{socket.gethostname()}2")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONF = """\
ClusterName=multisagd
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=10
ReturnToService=2
NodeName={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName={nodes[1]} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=60
PartitionName=graceful Nodes=ALL PriorityTier=1 MaxTime=60 GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=60 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A Slurm that runs: where its files are, and the environment in which its commands find it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *words: str, check: bool = True) -> str:
        """Run one command and return what it printed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def logs(self) -> str:
        """Return the last of what the daemons wrote."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def missing() -> str | None:
    """Return the first program that is not installed."""
    return next((name for name in PROGRAMS if shutil.which(name, path=PATH) is None), None)


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """Start a cluster with its files in `folder` (a short path, as sockets need), and stop it at the end."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(user=getpass.getuser(), folder=folder, ports=free_ports(3), nodes=NODES))
    cluster = Cluster(folder, {**os.environ, "PATH": PATH, "SLURM_CONF": str(conf)})
    munged = [
        "munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    with ExitStack() as at_last:
        at_last.callback(stop, folder)
        cluster.run(*munged)
        cluster.run("slurmctld", "-c")
        for node in NODES:
            cluster.run("slurmd", "-N", node)
        states = ("sinfo", "-h", "-N", "-p", "main", "-o", "%T")
        wait_for("two idle nodes", lambda: cluster.run(*states, check=False).split() == ["idle"] * 2, 60, cluster.logs)
        yield cluster
        # Steps are processes of their own, which outlive slurmd.
        cluster.run("scancel", f"--user={getpass.getuser()}", check=False)
        wait_for("an empty queue", lambda: not cluster.run("squeue", "-h", check=False).strip(), 60, cluster.logs)


def stop(folder: Path) -> None:
    """End the daemons that have written their process id into `folder`, the controller first."""
    for name in ("slurmctld.pid", *(f"slurmd.{node}.pid" for node in NODES), "munged.pid"):
        path = folder / name
        number = int(path.read_text()) if path.exists() and path.read_text().strip() else None
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            if number is not None and alive(number):
                os.kill(number, wanted)
                deadline = time.monotonic() + 20
                while alive(number) and time.monotonic() < deadline:
                    time.sleep(0.1)


def alive(number: int) -> bool:
    """Whether a process still runs."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return unused ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, reached: Callable[[], bool], seconds: float, report: Callable[[], str]) -> None:
    """Return once `reached`; raise a TimeoutError with a report after some seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}\n{report()}")
        time.sleep(0.2)


if __name__ == "__main__":
    if (name := missing()) is not None:
        sys.exit(f"{name} is not installed: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory(prefix="slurm") as made, slurm(Path(made)) as running:
        print(f"export SLURM_CONF={running.environment['SLURM_CONF']}", flush=True)
        # Only now: daemons would inherit it.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        signal.sigwait((signal.SIGINT, signal.SIGTERM))
