"""Run jobs on this machine, one after the other, each in one process or in several under torchrun."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from recipes.clusters.base import STOPPING, Cluster, Job, at_least, this_python
from recipes.engine.interrupt import heard


@dataclass(frozen=True)
class Local(Cluster):
    """This machine. `restarts` is how often torchrun starts the processes anew after one of them has failed."""

    processes: int = 1
    restarts: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "processes")
        at_least(self, 0, "restarts")

    @property
    def world(self) -> int:
        """How many processes one job has."""
        return self.processes

    def command(self, job: Job) -> list[str]:
        """Return the command of one job."""
        if self.processes == 1 and not self.restarts:
            return [this_python(), *job.module()]
        return [
            this_python(), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}",
            f"--max-restarts={self.restarts}", f"--signals-to-handle={STOPPING}", *job.module(),
        ]  # fmt: skip

    def show(self, jobs: Sequence[Job]) -> str:
        """Return the commands that would be run."""
        return "\n".join(shlex.join(self.command(job)) for job in jobs)

    def launch(self, jobs: Sequence[Job]) -> int:
        """Run the jobs in turn; return the largest exit status. A signal stops the current one, and the rest."""
        failed = []
        for number, job in enumerate(jobs, 1):
            if len(jobs) > 1:
                print(f"job {number} of {len(jobs)}: {job}", flush=True)
            status, told = run(self.command(job))
            if told is not None:
                if number < len(jobs):
                    print(f"stopped in job {number} of {len(jobs)}; the same command goes on there", file=sys.stderr)
                return 128 + told
            if status:
                failed.append((number, status))
        if failed and len(jobs) > 1:
            listed = ", ".join(f"{number} (status {status})" for number, status in failed)
            print(f"error: {len(failed)} of {len(jobs)} jobs failed: {listed}", file=sys.stderr)
        return max((status for _, status in failed), default=0)


def run(command: Sequence[str]) -> tuple[int, int | None]:
    """Run a command, pass signals on to it, and return its exit status and the first of them."""
    told: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int) -> None:
        told.append(number)
        for process in running:
            process.send_signal(number)

    with handled(pass_on):
        # In a session of its own, else Ctrl-C would reach it twice: from the terminal, and from here.
        running.append(subprocess.Popen(command, start_new_session=True))
        if told:
            running[0].send_signal(told[0])
        status = running[0].wait()
    # A process that died of a signal has minus its number.
    return (128 - status if status < 0 else status), (told[0] if told else None)


@contextmanager
def handled(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with each signal that asks to stop, instead of dying of it."""

    def note(number: int, frame: FrameType | None) -> None:
        act(number)

    before = {number: signal.signal(number, note) for number in heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
