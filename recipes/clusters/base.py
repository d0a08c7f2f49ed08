"""What the clusters share: the interface, the jobs they are given, and checks of the text that ends up in scripts."""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recipes.base.errors import RecipeError

CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Characters that end a line or control a terminal, and code points that are not text."""


@dataclass(frozen=True)
class Job:
    """One command with its words, as `multisagd COMMAND WORDS` would run it.

    Raises:
        RecipeError: for a word with a control character, because scripts are read line by line.
    """

    command: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for word in self.words:
            check_printable(word, word)

    def __str__(self) -> str:
        """Return the command, quoted for a shell."""
        return shlex.join(["multisagd", self.command, *self.words])

    def module(self) -> list[str]:
        """Return the words after `python` or `torchrun` that run the command."""
        return ["-m", "recipes.cli", self.command, *self.words]


class Cluster(ABC):
    """A place to run jobs; its settings are the fields of the subclass, a choice of the group `cluster`."""

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

        Raises:
            RecipeError: if they cannot be submitted from here.
        """


def check_settings(cluster: Cluster) -> None:
    """Check that no text among the settings of a cluster has a control character.

    Raises:
        RecipeError: naming the first setting that has one.
    """
    for field in fields(cluster):  # type: ignore[arg-type]  # every cluster is a dataclass
        for text in _texts(getattr(cluster, field.name)):
            check_printable(f"cluster.{field.name}", text)


def check_printable(name: str, text: str) -> None:
    """Check that a text is one printable line.

    Raises:
        RecipeError: with its name and its first control character.
    """
    if found := CONTROL_CHARACTERS.search(text):
        raise RecipeError(
            f"{name!r:.200} has the control character {found[0]!a} at position {found.start()}, which could begin a "
            "line of its own in what is launched: leave it out"
        )


def check_minimum(settings: object, minimum: int, *names: str) -> None:
    """Check numbers among the fields of a cluster's settings; None is allowed.

    Raises:
        ValueError: for one below the minimum.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _texts(value: Any) -> Iterator[str]:
    """Return all texts inside a setting."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for each in pair for text in _texts(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))
