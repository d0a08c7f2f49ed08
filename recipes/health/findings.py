"""What a check is and what it finds.

Nothing here, nor in the files of checks, imports more than the standard library before a check runs: they are needed
most where some library cannot be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "absent", "warning", "broken"]
"""Fine; not there and not needed; works, but look at it; does not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, how it is, what was seen, and if anything is to be done, what."""

    state: State
    name: str
    told: str
    remedy: str = ""


@dataclass(frozen=True)
class Wishes:
    """What the person asked for: a run folder to judge, and whether to try what takes long."""

    run_dir: Path | None = None
    deep: bool = False


@dataclass(frozen=True)
class Check:
    """One check of an area; training needs what is `essential`."""

    area: str
    name: str
    look: Callable[[Wishes], Iterable[Finding]]
    essential: bool = False


class UnavailableError(Exception):
    """A check cannot look, because what it looks with is broken, which another check tells."""


def needed(package: str) -> Any:
    """Import a package for a check that is not about that package.

    Raises:
        UnavailableError: if it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    # Whatever a broken installation raises; that it is broken is the finding of another check.
    except Exception as error:
        raise UnavailableError(f"not looked at, because {package} cannot be imported") from error


def run(check: Check, wishes: Wishes) -> list[Finding]:
    """Return what a check finds; one that fails is itself the finding."""
    try:
        return list(check.look(wishes))
    except UnavailableError as error:
        return [Finding("absent", check.name, str(error))]
    except Exception as error:  # a check must never end the others
        reason = " ".join(str(error).split()) or type(error).__name__
        return [Finding("broken", check.name, f"{type(error).__name__}: {reason:.400}")]
