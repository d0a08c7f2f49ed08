"""Submit jobs to Slurm with submitit, and requeue them when they are stopped.

Each process is a task, and each command a job, or an element of the job array of a sweep. submitit writes the sbatch
script and, next to the logs, a pickle of the `SlurmJob` that the processes call. The pickle holds only the words of the
command. A job unpickles this file, so nobody else may have write access to its folder. This module imports no large
library, because a job imports it before it can handle signals.

After a signal during the training loop, training saves a checkpoint and stops; at any other time the command ends at
once. In both cases the first process asks Slurm to run the same job again, which continues from the checkpoint.

The job is requeued only if Slurm reports it as running: then the signal was the warning before a time limit (USR2, by
`--signal`) or before a pre-emption with GraceTime (TERM), or came from a person (`scancel --signal=USR2`). In other
states Slurm is ending the job itself: pre-emption with PreemptMode=REQUEUE and `scontrol requeue` requeue it, and after
`scancel` it should not run again. After SIGINT, training saves a checkpoint and the job ends for good.

Outside the training loop a signal can get lost: the exception raised by its handler may be swallowed, and no handler
runs while a process waits for the others inside a C++ call. Therefore a thread also reads the signal numbers from the
file descriptor to which Python writes them on arrival, and ends the process if nothing else has done so after a while.
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from recipes.base.console import tell
from recipes.base.errors import Interrupted, RecipeError, check_minimum
from recipes.base.signals import postponed
from recipes.clusters.cluster import Cluster, Job

GRACE = 5.0
"""Number of seconds within which the main thread must handle a signal itself."""
REQUEUING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a job is requeued."""


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
            raise ValueError(
                f"processes={self.processes} per node cannot share gpus={self.gpus} per node: each process requires "
                "its own GPU"
            )

    @property
    def tasks(self) -> int:
        """Number of processes on one node: one for each GPU, unless `processes` is set."""
        return self.processes or max(1, self.gpus)

    @property
    def world(self) -> int:
        """Number of processes of one job."""
        return self.nodes * self.tasks

    def show(self, jobs: Sequence[Job]) -> str:
        """Return the script for sbatch, followed by the commands of its jobs as comments."""
        slurm = _submitit()
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(self.logs.absolute()))}"
        count = len(jobs) if len(jobs) > 1 else None
        script = slurm._make_sbatch_string(command, self.logs, map_count=count, **self._parameters())
        return "\n".join([script, *(f"# job {number}: {job}" for number, job in enumerate(jobs))])

    def launch(self, jobs: Sequence[Job]) -> int:
        """Submit the jobs and print how to monitor and stop them.

        Raises RecipeError if there is no `sbatch`, or Slurm refuses.
        """
        slurm = _submitit()
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise RecipeError(
                "there is no sbatch on this machine: run this command on a machine that can submit jobs to Slurm"
            )
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
        print(f"state: squeue --job={first}")
        print(f"stop:  scancel --signal=INT {first} (saves a checkpoint first; the same command continues)", flush=True)
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
            # Since Slurm 22.05, a step does not inherit --cpus-per-task. When a process fails, the others must not wait
            # for it.
            "srun_args": [f"--cpus-per-task={self.cpus}", "--kill-on-bad-exit=1", *self.srun],
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"requeue": True, **(self.extra or {})},
        }


def _submitit() -> Any:
    """Return submitit's module for Slurm."""
    from multisagd.libraries import importing

    with importing("submitit", "cluster=slurm"):
        from submitit.slurm import slurm
    return slurm


@dataclass(frozen=True)
class SlurmJob(Job):
    """A Slurm job; each of its processes calls this object."""

    max_requeues: int

    def __call__(self) -> None:
        """Run the command, requeue the job if it was stopped, and exit with the command's status."""
        received: list[int] = []

        def interrupt(number: int, frame: FrameType | None) -> None:
            if not received and not postponed(number, frame):
                received.append(number)
                raise Interrupted(f"stopped by {signal.Signals(number).name} outside of training", number)

        status = 1
        with SignalWatchdog(interrupt, self._stopped) as watchdog:
            # Before importing torch, which takes seconds. The training loop installs handlers of its own.
            for each in REQUEUING_SIGNALS:
                signal.signal(each, interrupt)
            try:
                from submitit.helpers import TorchDistributedEnvironment

                TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
                sys.argv = ["multisagd", self.command, *self.words]
                from recipes.cli.main import main

                status = main([self.command, *self.words])
            except Interrupted as stop:
                tell(str(stop))
            finally:
                # Even if something else has failed since, for example because another process has already ended.
                number = received[0] if received else status - 128
                if number in REQUEUING_SIGNALS or number == signal.SIGINT:
                    for each in REQUEUING_SIGNALS:
                        signal.signal(each, signal.SIG_IGN)
                    watchdog.cancel()
                    status = self._stopped(number)
        sys.exit(status)

    def _stopped(self, number: int) -> int:
        """Requeue the job if this is the first process, and return the exit status of this process."""
        if int(os.environ.get("SLURM_PROCID", "0")):
            return 0  # a failure would make srun kill the first process, which may still be requeueing
        if number in REQUEUING_SIGNALS:
            print(requeue(int(os.environ.get("SLURM_RESTART_COUNT", "0")), self.max_requeues), flush=True)
        return 128 + number


class SignalWatchdog:
    """While active, ends the process if one of the `REQUEUING_SIGNALS` has had no effect after `GRACE` seconds.

    `handler` handles these signals until the training loop installs its own handler. If it has done so in the meantime,
    the signal is sent again, so that training saves a checkpoint. Otherwise `stopped` is called with the signal, and
    the process ends with the status that it returns.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], None], stopped: Callable[[int], int]) -> None:
        self._handler, self._stopped = handler, stopped
        self._cancelled = threading.Event()
        self._acting = threading.Lock()

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._cancelled.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)  # which ends the thread

    def cancel(self) -> None:
        """Leave the signal to the main thread; do not return if the other thread is already acting on it."""
        self._acting.acquire()
        self._cancelled.set()

    def _watch(self) -> None:
        sent = set()
        while number := os.read(self._reading, 1):
            if number[0] not in REQUEUING_SIGNALS or number in sent or self._cancelled.wait(GRACE):
                continue
            if signal.getsignal(number[0]) is not self._handler:
                # The training loop has begun. It may have received the signal; a second one does no harm.
                sent.add(number)
                os.kill(os.getpid(), number[0])
            elif self._acting.acquire(blocking=False):
                status = 1
                try:
                    tell(f"stopped by {signal.Signals(number[0]).name}, which could not be handled")
                    status = self._stopped(number[0])
                finally:  # in any case, because the main thread may be waiting for this one
                    os._exit(status)
        os.close(self._reading)


def requeue(restarts: int, maximum: int) -> str:
    """Ask Slurm to run this job again, unless it is ending or was requeued `maximum` times; return a message."""
    job = job_id()
    if restarts >= maximum:
        return f"job {job} has been requeued {restarts} times and is not requeued again: cluster.max_requeues={maximum}"
    description = scontrol("show", "job", "--oneliner", job)
    match = re.search(r"\bJobState=(\w+)", description.stdout)
    state = match[1] if match else f"unknown to scontrol ({description.stderr.strip()})"
    if state != "RUNNING":
        return f"job {job} is {state}: Slurm decides whether it runs again"
    requeued = scontrol("requeue", job)
    if requeued.returncode:
        return f"job {job} could not be requeued: {requeued.stderr.strip()}"
    return f"job {job} is requeued ({restarts + 1} of at most {maximum} times)"


def job_id() -> str:
    """Return the id of this job; in an array, it includes the index, because the array's id refers to all jobs."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `scontrol`; if it is missing or does not answer, return status 1 with the error as its stderr."""
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
