"""Submit jobs to Slurm with submitit: one task for each process, one job (a job array for a sweep) for each command.

submitit writes the sbatch script, and next to the logs a pickle of what the job calls: a `SlurmJob`, which holds the
words of the command and nothing else. A job unpickles what lies there, so nobody else may write into that folder.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multisagd.libraries import importing
from recipes.base.errors import RecipeError
from recipes.clusters.base import Cluster, Job, check_minimum
from recipes.clusters.slurm_job import SlurmJob


@dataclass(frozen=True)
class Slurm(Cluster):
    """A Slurm cluster that this machine submits to; `configs/cluster/slurm.yaml` explains the fields."""

    nodes: int = 1
    gpus: int = 0
    processes: int | None = None
    cpus: int = 8
    memory: str | None = None
    hours: float = 24.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: Mapping[str, Any] | None = None
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    signal_delay: int = 120
    max_requeues: int = 100
    parallel: int = 16
    name: str = "multisagd"
    logs: Path = Path("runs/slurm")

    def __post_init__(self) -> None:
        check_minimum(self, 1, "nodes", "processes", "cpus", "signal_delay", "parallel")
        check_minimum(self, 0, "gpus", "max_requeues")
        if not self.hours > 0:
            raise ValueError(f"hours must be above 0, got {self.hours}")
        for option in self.extra or {}:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", option):
                raise ValueError(f"extra: {option!r:.80} is not an option of sbatch, such as mail-type")
        if self.processes is not None and self.gpus and self.processes > self.gpus:
            raise ValueError(f"processes={self.processes} of a node cannot share its gpus={self.gpus}: one GPU each")

    @property
    def tasks(self) -> int:
        """Number of processes of one node: one for each GPU unless `processes` says otherwise."""
        return self.processes or max(1, self.gpus)

    @property
    def world(self) -> int:
        """Number of processes of one job."""
        return self.nodes * self.tasks

    def show(self, jobs: Sequence[Job]) -> str:
        """Return the script for sbatch, and the commands of its jobs as comments."""
        slurm = _submitit()
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(self.logs.absolute()))}"
        script = slurm._make_sbatch_string(
            command, self.logs, map_count=len(jobs) if len(jobs) > 1 else None, **self._parameters()
        )
        return "\n".join([script, *(f"# job {number}: {job}" for number, job in enumerate(jobs))])

    def launch(self, jobs: Sequence[Job]) -> int:
        """Submit the jobs and print how to follow and stop them; the exit status is 0.

        Raises:
            RecipeError: without `sbatch`, or if Slurm refuses the jobs.
        """
        slurm = _submitit()
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise RecipeError("there is no sbatch here: run this on a machine from which jobs are submitted to Slurm")
        executor = slurm.SlurmExecutor(self.logs)
        executor.update_parameters(**self._parameters())
        try:
            with executor.batch():
                calls = [SlurmJob(job.command, job.words, self.max_requeues) for job in jobs]
                submitted = [executor.submit(call) for call in calls]
        except slurm.utils.UncompletedJobError as error:
            raise RecipeError(f"Slurm refused the job: {' '.join(str(error).split())}") from error
        for job, handle in zip(jobs, submitted, strict=True):
            print(f"job {handle.job_id}: {job}\n  log: {handle.paths.stdout}")
        first = submitted[0].job_id.split("_")[0]
        print(
            f"state: squeue --job={first}\n"
            f"stop:  scancel --signal=INT {first} (saves a checkpoint first; the same command continues)",
            flush=True,
        )
        return 0

    def _parameters(self) -> dict[str, Any]:
        """Return the settings under submitit's names; None leaves the choice to Slurm."""
        return {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            # Every process sees all GPUs of its node and uses the one of its local rank, as under torchrun.
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "time": math.ceil(self.hours * 60),
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "signal_delay_s": self.signal_delay,
            "array_parallelism": self.parallel,
            "setup": list(self.setup) or None,
            # Since Slurm 22.05 a step does not inherit --cpus-per-task; and when a process fails, the others must not
            # wait for it.
            "srun_args": [f"--cpus-per-task={self.cpus}", "--kill-on-bad-exit=1", *self.srun],
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"requeue": True, **(self.extra or {})},
        }


def _submitit() -> Any:
    """Return submitit's module for Slurm.

    Raises:
        BrokenLibraryError: if submitit cannot be imported.
    """
    with importing("submitit", "cluster=slurm"):
        from submitit.slurm import slurm
    return slurm
