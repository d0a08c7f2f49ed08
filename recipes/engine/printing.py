"""Print texts that may be longer than anyone reads, on terminals that may be narrow, know few letters, or be gone."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import IO


def show(text: str) -> None:
    """Print a text, which may well be piped into something that stops reading, or that knows few letters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence(sys.stdout)


def tell(text: str) -> None:
    """Print a message to standard error; that nobody can hear it any more changes nothing of what is done."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        silence(sys.stderr)
    except OSError:
        pass


def silence(stream: IO[str]) -> None:
    """Let a stream whose reader is gone lead nowhere; else Python tries to flush it again at exit, and complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def fold(text: str, first: str = "", rest: str | None = None) -> str:
    """Break a paragraph into lines as wide as the terminal, `first` before the first and `rest` before the others."""
    return textwrap.fill(
        " ".join(text.split()),
        max(60, min(120, shutil.get_terminal_size().columns)),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def columns(rows: Sequence[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Lay names, and what is said of each, in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    hanging = " " * (len(indent) + width + 2)
    return [fold(about, f"{indent}{name:<{width}}  ", hanging) if about else f"{indent}{name}" for name, about in rows]
