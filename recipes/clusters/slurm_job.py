"""What runs in each process of a Slurm job: the command, and where that was stopped, the way back into the queue.

A signal finds the training in its loop, which saves a checkpoint and stops, or outside of it, where the command ends at
once. In both cases the first process asks Slurm to run the same job again, and that continues from the checkpoint.

Slurm is asked only if it says that the job is still running: the signal then came before a time limit (USR2, because
of `--signal`), as the warning before a pre-emption with GraceTime (TERM), or from a person (`scancel --signal=USR2`).
Otherwise Slurm is ending the job itself and is left to it: pre-emption with PreemptMode=REQUEUE and `scontrol requeue`
put it back into the queue, and `scancel` means that it should be gone. SIGINT saves and ends the job for good.

Outside of the loop a signal may get lost: what its handler raises is swallowed within some imports, and no handler runs
while a process waits for the others in a call of C++. So a thread is told of signals too, by the file descriptor that
Python writes their numbers to from where they arrive, and ends the process if nothing else has within a while.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

from recipes.engine.errors import Interrupted
from recipes.engine.printing import tell

GRACE = 5.0
"""Seconds that the main thread has to act on a signal by itself."""
AGAIN = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a job is to run again."""


@dataclass(frozen=True)
class SlurmJob:
    """A command and its words, to be called in each process of a job."""

    command: str
    words: tuple[str, ...]
    max_requeues: int

    def __call__(self) -> None:
        """Run the command, requeue the job if it was stopped, and exit with the command's status."""
        told: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            if not told:
                told.append(number)
                raise Interrupted(f"stopped by {signal.Signals(number).name} outside of training", number)

        # First of all, because importing torch takes seconds.
        status = 1
        with Backstop(note, self._stopped) as backstop:
            # While training, its own handlers are in their place.
            for each in AGAIN:
                signal.signal(each, note)
            try:
                from submitit.helpers import TorchDistributedEnvironment

                TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
                sys.argv = ["multisagd", self.command, *self.words]
                from recipes.cli import main

                status = main([self.command, *self.words])
            except Interrupted as stop:
                tell(str(stop))
            finally:
                # Whatever else has failed since: a process whose neighbour has left cannot go on.
                number = told[0] if told else status - 128
                if number in AGAIN or number == signal.SIGINT:
                    for each in AGAIN:
                        signal.signal(each, signal.SIG_IGN)
                    backstop.settle()
                    status = self._stopped(number)
        sys.exit(status)

    def _stopped(self, number: int) -> int:
        """Requeue the job if that is wanted, and return the exit status of this process."""
        if int(os.environ.get("SLURM_PROCID", "0")):
            return 0  # a failure here would make srun kill the first process, which may still be at work
        if number in AGAIN:
            print(requeue(int(os.environ.get("SLURM_RESTART_COUNT", "0")), self.max_requeues), flush=True)
        return 128 + number


class Backstop:
    """While active, ends the process some time after a signal of `AGAIN` that its handler `note` was to act on.

    `stopped(number)` does what is to be done before, and returns the exit status. If training has begun meanwhile, the
    signal is sent again, and training saves.
    """

    def __init__(self, note: Callable[[int, FrameType | None], None], stopped: Callable[[int], int]) -> None:
        self._note, self._stopped = note, stopped
        self._settled = threading.Event()
        self._acting = threading.Lock()

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settled.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)  # which ends the thread

    def settle(self) -> None:
        """Say that the main thread acts on a signal; does not return if the other one does already."""
        self._acting.acquire()
        self._settled.set()

    def _watch(self) -> None:
        sent = set()
        while number := os.read(self._reading, 1):
            if number[0] not in AGAIN or number in sent or self._settled.wait(GRACE):
                continue
            if signal.getsignal(number[0]) is not self._note:
                # Training has begun. It may have heard the signal, and then does not mind to hear it again.
                sent.add(number)
                os.kill(os.getpid(), number[0])
            elif self._acting.acquire(blocking=False):
                status = 1
                try:
                    tell(f"stopped by {signal.Signals(number[0]).name}, where it could not be heard")
                    status = self._stopped(number[0])
                finally:  # whatever goes wrong, because the main thread may be waiting for this one
                    os._exit(status)
        os.close(self._reading)


def requeue(restarts: int, most: int) -> str:
    """Ask Slurm to run this job again, unless it is about to end it itself; return what was done.

    `restarts` is how often the job was put back into the queue before, by anyone.
    """
    job = job_id()
    if restarts >= most:
        return f"job {job} has been requeued {restarts} times and is not again: cluster.max_requeues={most}"
    if (state := job_state(job)) != "RUNNING":
        return f"job {job} is {state}: what becomes of it is up to Slurm"
    done = scontrol("requeue", job)
    if done.returncode:
        return f"job {job} could not be requeued: {done.stderr.strip()}"
    return f"job {job} is requeued ({restarts + 1} of at most {most} times)"


def job_id() -> str:
    """Return the id of this job; one of an array is named by its place, because the array's id means all of them."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def job_state(job: str) -> str:
    """Return the state of a job as Slurm tells it, or why it does not."""
    done = scontrol("show", "job", "--oneliner", job)
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    return found[1] if found else f"unknown to scontrol ({done.stderr.strip()})"


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Ask Slurm; that it is not there, or too busy to answer, is an answer too."""
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
