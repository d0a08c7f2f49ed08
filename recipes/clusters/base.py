"""What the clusters share: the interface, the jobs they are given, and checks of the text that ends up in scripts."""

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def check_printable(name: str, value: Any) -> None:
    """Check that a text is one printable line, and so is every text in a list or a mapping.

    Raises:
        RecipeError: with its name and its first control character.
    """
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        for each in value:
            check_printable(name, each)
    elif isinstance(value, str | Path) and (found := CONTROL_CHARACTERS.search(str(value))):
        raise RecipeError(
            f"{name!r:.200} has the control character {found[0]!a} at position {found.start()}, which could begin a "
            "line of its own in what is launched: leave it out"
        )
