"""Print texts that may be longer than anyone reads, on terminals that may be narrow or know few letters."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence


def show(text: str) -> None:
    """Print a text, which may well be piped into something that stops reading, or that knows few letters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Otherwise Python tries to flush again at exit, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
