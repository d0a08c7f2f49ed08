"""On a real Slurm, jobs that are pre-empted, signalled or cancelled save and continue where they should.

Slurm runs on this one machine: munged, slurmctld and two slurmd of Debian's packages slurm-wlm and munge. Three
partitions share two nodes of one core each. Jobs of `urgent` pre-empt those of `main`, which Slurm puts back into the
queue, and those of `graceful`, which are warned before. The first node has the name of this machine, because the first
process of a job is looked up by the name of its node.
"""

import getpass
import json
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

import pytest

from tests.helpers.launching import ROOT, ranks
from tests.helpers.tiny import TINY, assert_close, last_state, read_metrics

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
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
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
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    conf.write_text(CONF.format(user=getpass.getuser(), folder=folder, ports=free_ports(3), nodes=NODES))
    cluster = Cluster(folder, {**os.environ, "PATH": PATH, "SLURM_CONF": str(conf)})
    munged = [
        "munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
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


ENDLESS = "training.samples=100000000"
REQUEUED = "is requeued (1 of at most 100 times)"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        missing() is not None, reason=f"no Slurm here ({missing()} is missing): apt-get install slurm-wlm munge"
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm(Path(folder)) as running:
        yield running


def words(run_dir: Path, *more: str) -> list[str]:
    """A training whose only checkpoints are its last, and those that signals request."""
    return [*TINY, "every.log=16", "every.checkpoint=0", f"run_dir={run_dir}", *more]


def starts(run_dir: Path) -> list[int]:
    """Samples seen before each start of the training."""
    path = run_dir / "run.json"
    return [start["samples"] for start in json.loads(path.read_text())["starts"]] if path.exists() else []


def learning(run_dir: Path, times: int) -> bool:
    """Whether the training was started that often and has learned something since."""
    begun = starts(run_dir)
    if len(begun) != times or not (run_dir / "metrics.jsonl").exists():
        return False
    entries = read_metrics(run_dir)
    return bool(entries) and entries[-1]["samples"] > begun[-1]


class Job:
    """A launched training: its id, its logs, and what is done to it."""

    def __init__(self, cluster: Cluster, logs: Path, *settings: str) -> None:
        command = [sys.executable, "-m", "recipes.cli", "launch", "cluster=slurm", "cluster.cpus=1"]
        command += ["cluster.hours=0.5", f"cluster.logs={logs}", *settings]
        done = subprocess.run(
            command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        self.cluster, self.logs = cluster, logs
        self.id = done.stdout.split("job ")[1].split(":")[0].split("_")[0]

    def log(self, number: str = "0") -> str:
        path = self.logs / f"{self.id}_{number}_log.out"
        return path.read_text() if path.exists() else ""

    def wait(self, what: str, reached: Callable[[], bool]) -> None:
        def report() -> str:
            outputs = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.logs.glob("*.out"))]
            return "\n".join([self.cluster.run("squeue", check=False), *outputs, self.cluster.logs()])

        wait_for(what, reached, 90, report)

    def wait_for_state(self, state: str) -> None:
        show = ("scontrol", "show", "job", "--oneliner", self.id)
        self.wait(state, lambda: self.cluster.run(*show).split("JobState=")[1].split()[0] == state)

    def cancel(self, *options: str) -> None:
        self.cluster.run("scancel", *options, self.id)

    def preempt(self) -> None:
        """Run something more urgent on both nodes."""
        self.cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=srun sleep 1")


def test_launch_on_two_nodes_survives_preemption_exactly(cluster: Cluster, tmp_path: Path) -> None:
    """Stopped twice: by the signal before a time limit, where it requeues itself, and by a job of higher priority."""
    run_dir, whole, much = tmp_path / "run", tmp_path / "whole", "training.samples=8000"
    job = Job(cluster, tmp_path / "logs", "cluster.nodes=2", *words(run_dir, much))
    job.wait("a training", lambda: learning(run_dir, 1))
    job.cancel("--signal=USR2")
    job.wait("the training to continue", lambda: learning(run_dir, 2))
    job.preempt()
    job.wait("the training to continue again", lambda: learning(run_dir, 3))
    job.wait_for_state("COMPLETED")
    assert 0 < starts(run_dir)[1] < starts(run_dir)[2] < 8000
    for message in (f"job {job.id} {REQUEUED}", "DUE TO PREEMPTION", "continuing after"):
        assert message in job.log()

    done = ranks(2, "recipes.train", *words(whole, much))
    assert done.returncode == 0, done.stderr
    assert last_state(whole).samples == 8000
    assert_close(last_state(run_dir), last_state(whole), rtol=0, atol=1e-6)


def test_launch_of_a_sweep_requeues_each_job_alone(cluster: Cluster, tmp_path: Path) -> None:
    """In a partition with GraceTime, a node each; `scontrol requeue` of one must leave the other alone."""
    settings = ["cluster.partition=graceful", *words(tmp_path / "${seed}", ENDLESS), "seed=0,1"]
    job = Job(cluster, tmp_path / "logs", *settings)
    both = [tmp_path / seed for seed in "01"]
    job.wait("both trainings", lambda: all(learning(each, 1) for each in both))
    job.preempt()
    job.wait("both to continue", lambda: all(learning(each, 2) for each in both))
    for number, each in enumerate(both):
        assert starts(each)[1] > 0
        assert f"job {job.id}_{number} {REQUEUED}" in job.log(f"{number}_0")
    job.cancel("--signal=INT")
    job.wait("the end of both", lambda: not cluster.run("squeue", "-h").strip())
    assert all(last_state(each).samples > starts(each)[1] for each in both)


def test_launch_requeues_on_a_signal_before_training_but_not_on_scancel(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = Job(cluster, tmp_path / "logs", "cluster.nodes=2", *words(run_dir, ENDLESS))
    job.wait("a start", lambda: "Loading pickle" in job.log())
    job.cancel("--signal=USR2")
    job.wait("a requeue", lambda: REQUEUED in job.log())
    job.wait("a training", lambda: learning(run_dir, 1))
    job.cancel()
    job.wait_for_state("CANCELLED")
    # Slurm calls a job cancelled while its processes are still saving.
    job.wait("the last message", lambda: "Slurm decides whether it runs again" in job.log())
    assert last_state(run_dir).samples > 0
