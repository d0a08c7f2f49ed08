"""What every place to run on has in common: a number of processes, and jobs that it is given."""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

STOPPING = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""Signals that torchrun is to pass on; by default it leaves out the last two."""


@dataclass(frozen=True)
class Job:
    """One command with its words, as `multisagd COMMAND WORDS` would run it."""

    command: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """Return the command as a shell would read it."""
        return shlex.join(["multisagd", self.command, *self.words])

    def module(self) -> list[str]:
        """Return the words after `python` or `torchrun` that run the command."""
        return ["-m", "recipes.cli", self.command, *self.words]


class Cluster(ABC):
    """A place to run jobs on; its settings are the fields of the subclass, a choice of the group `cluster`."""

    @property
    @abstractmethod
    def world(self) -> int:
        """How many processes one job has in all."""

    @abstractmethod
    def show(self, jobs: Sequence[Job]) -> str:
        """Return what `launch` would run or submit, as text."""

    @abstractmethod
    def launch(self, jobs: Sequence[Job]) -> int:
        """Run or submit the jobs and return the exit status.

        Raises:
            RecipeError: if they cannot be submitted from here.
        """


class Machines(Cluster):
    """A cluster whose jobs run on machines alike, as many processes on each: one for each GPU unless it is told."""

    nodes: int
    gpus: int
    processes: int | None

    @property
    def tasks(self) -> int:
        """How many processes one machine has."""
        return self.processes or max(1, self.gpus)

    @property
    def world(self) -> int:
        """How many processes one job has in all."""
        return self.nodes * self.tasks


def this_python() -> str:
    """Return the interpreter of this process."""
    return sys.executable or "python"


def at_least(settings: object, least: int, *names: str) -> None:
    """Check fields of a cluster's settings.

    Raises:
        ValueError: for one below `least`; None is left alone.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
