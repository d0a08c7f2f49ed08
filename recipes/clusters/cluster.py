"""Clusters and their jobs. The simplest cluster is this machine, which runs the jobs one after another."""

import re
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from recipes.base.errors import RecipeError, check_minimum
from recipes.base.signals import handled, handled_signals

CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Characters that end a line or control a terminal, and code points that are not text."""
FORWARDED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""Signals that torchrun passes on to the processes; its default omits the last two."""


@dataclass(frozen=True)
class Job:
    """One command and its arguments, all printable; it is run as `multisagd COMMAND WORDS`."""

    command: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for word in self.words:
            check_printable(word, word)

    def __str__(self) -> str:
        """Return the command, quoted for a shell."""
        return shlex.join(["multisagd", self.command, *self.words])


class Cluster(ABC):
    """Where jobs run. Each subclass is a choice of the group `cluster`, and its fields are the settings."""

    @property
    @abstractmethod
    def world(self) -> int:
        """Number of processes of one job."""

    @abstractmethod
    def show(self, jobs: Sequence[Job]) -> str:
        """Return what `launch` would run or submit, as text."""

    @abstractmethod
    def launch(self, jobs: Sequence[Job]) -> int:
        """Run or submit the jobs and return the exit status.

        Raises RecipeError if they cannot be submitted from here.
        """


def check_printable(name: str, value: Any) -> None:
    """Check that a string, or every string in a list or mapping, has no control characters.

    Scripts are read line by line, so a line break could start a new command.

    Raises:
        RecipeError: If there is a control character; the message names the setting and the character.
    """
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        for each in value:
            check_printable(name, each)
    elif isinstance(value, str | Path) and (match := CONTROL_CHARACTERS.search(str(value))):
        problem = f"{name!r:.200} has the control character {match[0]!a} at position {match.start()}"
        raise RecipeError(f"{problem}, which could start a new line in the launched script: remove it")


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
        """Run the jobs one after another, until one is stopped by a signal, and return the largest exit status."""
        failed = []
        for number, job in enumerate(jobs, 1):
            if len(jobs) > 1:
                print(f"job {number} of {len(jobs)}: {job}", flush=True)
            status, stopped_by = run(self.command(job))
            if stopped_by is not None:
                if number < len(jobs):
                    print(
                        f"stopped in job {number} of {len(jobs)}; the same command continues from there",
                        file=sys.stderr,
                    )
                return 128 + stopped_by
            if status:
                failed.append((number, status))
        if failed and len(jobs) > 1:
            listed = ", ".join(f"{number} (status {status})" for number, status in failed)
            print(f"error: {len(failed)} of {len(jobs)} jobs failed: {listed}", file=sys.stderr)
        return max((status for _, status in failed), default=0)


def run(command: Sequence[str]) -> tuple[int, int | None]:
    """Run a command and pass signals on to it; return its exit status, and the number of the first signal or None."""
    received: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in running:
            process.send_signal(number)

    with handled(pass_on, handled_signals()):
        # In a separate session: otherwise Ctrl-C would reach it twice, from the terminal and from here.
        running.append(subprocess.Popen(command, start_new_session=True))
        if received:
            running[0].send_signal(received[0])
        status = running[0].wait()
    # The status of a process that was killed by a signal is minus the signal's number.
    return (128 - status if status < 0 else status), (received[0] if received else None)
