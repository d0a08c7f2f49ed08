"""Run jobs on this machine, one after the other, each in one process or in several under torchrun."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from recipes.base.errors import check_minimum
from recipes.base.signals import handled, heard
from recipes.clusters.base import Cluster, Job

FORWARDED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""Signals that torchrun passes on to the processes; by default it leaves out the last two."""


@dataclass(frozen=True)
class Local(Cluster):
    """This machine; `configs/cluster/local.yaml` explains the fields."""

    processes: int = 1
    restarts: int = 0

    def __post_init__(self) -> None:
        check_minimum(self, 1, "processes")
        check_minimum(self, 0, "restarts")

    @property
    def world(self) -> int:
        """Number of processes of one job."""
        return self.processes

    def command(self, job: Job) -> list[str]:
        """Return the command of one job."""
        torchrun = [
            "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}",
            f"--max-restarts={self.restarts}", f"--signals-to-handle={FORWARDED_SIGNALS}",
        ]  # fmt: skip
        alone = self.processes == 1 and not self.restarts
        return [sys.executable, *([] if alone else torchrun), "-m", "recipes.cli", job.command, *job.words]

    def show(self, jobs: Sequence[Job]) -> str:
        """Return the commands that would be run."""
        return "\n".join(shlex.join(self.command(job)) for job in jobs)

    def launch(self, jobs: Sequence[Job]) -> int:
        """Run the jobs in turn; return the largest exit status. A signal stops the current job, and the later ones."""
        failed = []
        for number, job in enumerate(jobs, 1):
            if len(jobs) > 1:
                print(f"job {number} of {len(jobs)}: {job}", flush=True)
            status, stopped_by = run(self.command(job))
            if stopped_by is not None:
                if number < len(jobs):
                    print(f"stopped in job {number} of {len(jobs)}; the same command continues there", file=sys.stderr)
                return 128 + stopped_by
            if status:
                failed.append((number, status))
        if failed and len(jobs) > 1:
            listed = ", ".join(f"{number} (status {status})" for number, status in failed)
            print(f"error: {len(failed)} of {len(jobs)} jobs failed: {listed}", file=sys.stderr)
        return max((status for _, status in failed), default=0)


def run(command: Sequence[str]) -> tuple[int, int | None]:
    """Run a command and pass signals on to it; return its exit status, and the number of the first signal if any."""
    received: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in running:
            process.send_signal(number)

    with handled(pass_on, heard()):
        # In a session of its own: otherwise Ctrl-C would reach it twice, from the terminal and from here.
        running.append(subprocess.Popen(command, start_new_session=True))
        if received:
            running[0].send_signal(received[0])
        status = running[0].wait()
    # The status of a process that was killed by a signal is minus the signal's number.
    return (128 - status if status < 0 else status), (received[0] if received else None)
