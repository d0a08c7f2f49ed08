"""A real Slurm: jobs are submitted, pre-empted, stopped and cancelled, and continue where they should."""

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
from tests.helpers.tiny import TINY, last_state

ENDLESS = "training.samples=100000000"
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
    """A training whose only checkpoints are its last, and those that signals ask for."""
    return [*TINY, "every.log=16", "every.checkpoint=0", f"run_dir={run_dir}", *more]


def submit(cluster: Cluster, logs: Path, *settings: str) -> str:
    """Launch and return the job's id."""
    command = [sys.executable, "-m", "recipes.cli", "launch", "cluster=slurm", "cluster.cpus=1"]
    command += ["cluster.hours=0.5", f"cluster.logs={logs}"]
    done = subprocess.run(
        [*command, *settings],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("job ")[1].split(":")[0].split("_")[0]


def wait(cluster: Cluster, logs: Path, what: str, found: Callable[[], bool], seconds: float = 90) -> None:
    def told() -> str:
        outputs = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(logs.glob("*.out"))]
        return "\n".join([cluster.run("squeue", check=False), *outputs, cluster.logs()])

    wait_for(what, found, seconds, told)


def starts(run_dir: Path) -> list[int]:
    """Samples seen before each start of the training."""
    path = run_dir / "run.json"
    return [start["samples"] for start in json.loads(path.read_text())["starts"]] if path.exists() else []


def learning(run_dir: Path, times: int) -> bool:
    """Tell whether the training was started that often and has learned something since."""
    path, begun = run_dir / "metrics.jsonl", starts(run_dir)
    if len(begun) != times or not path.exists():
        return False
    lines = path.read_text().splitlines()
    return bool(lines) and json.loads(lines[-1])["samples"] > begun[-1]


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("scontrol", "show", "job", "--oneliner", job).split("JobState=")[1].split()[0]


def preempt(cluster: Cluster) -> None:
    """Run something more urgent on both nodes."""
    cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=srun sleep 1")


def test_a_preempted_training_on_two_nodes_ends_as_an_uninterrupted_one(cluster: Cluster, tmp_path: Path) -> None:
    """Stopped twice: by the signal before a time limit, where it requeues itself, and by a job of higher priority."""
    run_dir, logs, much = tmp_path / "run", tmp_path / "logs", "training.samples=8000"
    job = submit(cluster, logs, "cluster.nodes=2", *words(run_dir, much))
    wait(cluster, logs, "a training", lambda: learning(run_dir, 1))
    cluster.run("scancel", "--signal=USR2", job)
    wait(cluster, logs, "the training to continue", lambda: learning(run_dir, 2))
    preempt(cluster)
    wait(cluster, logs, "the training to continue again", lambda: learning(run_dir, 3))
    wait(cluster, logs, "the end", lambda: state(cluster, job) == "COMPLETED")
    assert 0 < starts(run_dir)[1] < starts(run_dir)[2] < 8000
    log = (logs / f"{job}_0_log.out").read_text()
    assert f"job {job} is requeued (1 of at most 100 times)" in log
    assert "DUE TO PREEMPTION" in log
    assert "continuing after" in log

    whole = tmp_path / "whole"
    done = ranks(2, "recipes.train", *words(whole, much))
    assert done.returncode == 0, done.stderr
    expected, found = last_state(whole), last_state(run_dir)
    assert found.samples == expected.samples == 8000
    for part, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(found.tensors[part][name], tensor, rtol=0, atol=1e-6)


def test_jobs_of_a_sweep_are_warned_and_requeue_themselves(cluster: Cluster, tmp_path: Path) -> None:
    """In a partition with GraceTime, a node each; `scontrol requeue` of one must leave the other alone."""
    logs = tmp_path / "logs"
    job = submit(cluster, logs, "cluster.partition=graceful", *words(tmp_path / "${seed}", ENDLESS), "seed=0,1")
    both = [tmp_path / seed for seed in "01"]
    wait(cluster, logs, "both trainings", lambda: all(learning(each, 1) for each in both))
    preempt(cluster)
    wait(cluster, logs, "both to continue", lambda: all(learning(each, 2) for each in both))
    for number, each in enumerate(both):
        assert starts(each)[1] > 0
        assert (
            f"job {job}_{number} is requeued (1 of at most 100 times)"
            in (logs / f"{job}_{number}_0_log.out").read_text()
        )
    cluster.run("scancel", "--signal=INT", job)
    wait(cluster, logs, "the end of both", lambda: not cluster.run("squeue", "-h").strip())
    assert all(last_state(each).samples > starts(each)[1] for each in both)


def test_a_signal_before_training_requeues_and_scancel_does_not(cluster: Cluster, tmp_path: Path) -> None:
    run_dir, logs = tmp_path / "run", tmp_path / "logs"
    job = submit(cluster, logs, "cluster.nodes=2", *words(run_dir, ENDLESS))
    log = logs / f"{job}_0_log.out"
    wait(cluster, logs, "a start", lambda: log.exists() and "Loading pickle" in log.read_text())
    cluster.run("scancel", "--signal=USR2", job)
    wait(cluster, logs, "a requeue", lambda: "is requeued (1 of at most 100 times)" in log.read_text())
    wait(cluster, logs, "a training", lambda: learning(run_dir, 1))
    cluster.run("scancel", job)
    wait(cluster, logs, "the end", lambda: state(cluster, job) == "CANCELLED")
    # Slurm calls a job cancelled while its processes are still saving.
    wait(cluster, logs, "a last word", lambda: "Slurm decides whether it runs again" in log.read_text())
    assert last_state(run_dir).samples > 0
