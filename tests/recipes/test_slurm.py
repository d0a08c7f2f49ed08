"""On a real Slurm, jobs that are pre-empted, signalled or cancelled save and continue where they should."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import ROOT, ranks
from tests.helpers.slurm_cluster import Cluster, missing, slurm, wait_for
from tests.helpers.tiny import TINY, last_state, read_metrics

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
    expected, state = last_state(whole), last_state(run_dir)
    assert state.samples == expected.samples == 8000
    for part, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(state.tensors[part][name], tensor, rtol=0, atol=1e-6)


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
