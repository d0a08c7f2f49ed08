"""What every place to run on has in common: a number of processes, and jobs that it is given."""

from __future__ import annotations

import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recipes.engine.errors import RecipeError

STOPPING = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""Signals that torchrun is to pass on; by default it leaves out the last two."""


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Characters that end a line, steer a terminal, or may stand in no YAML; and bytes that are no text at all."""


@dataclass(frozen=True)
class Job:
    """One command with its words, as `multisagd COMMAND WORDS` would run it.

    Raises:
        RecipeError: for a word with a control character: files for clusters are read line by line.
    """

    command: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for word in self.words:
            check_printable(word, word)

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


def check_settings(cluster: Cluster) -> None:
    """Check that no text among the settings of a cluster has a control character.

    Raises:
        RecipeError: naming the first that has one.
    """
    for field in fields(cluster):  # type: ignore[arg-type]  # every cluster is a dataclass
        for text in _texts(getattr(cluster, field.name)):
            check_printable(f"cluster.{field.name}", text)


def check_printable(name: str, text: str) -> None:
    """Check that a text is one line that can be shown.

    Raises:
        RecipeError: naming it, and its first character that is none to be shown.
    """
    if found := CONTROL.search(text):
        raise RecipeError(
            f"{name!r:.200} has the control character {found[0]!a} at position {found.start()}, which could begin a "
            "line of its own in what is launched: leave it out"
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for each in pair for text in _texts(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))


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
