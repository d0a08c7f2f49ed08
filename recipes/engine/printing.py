"""Print texts that may be longer than anyone reads, on terminals that may know few letters."""

from __future__ import annotations

import io
import os
import sys


def show(text: str) -> None:
    """Print a text, which may well be piped into something that stops reading, or that knows few letters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Otherwise Python tries to flush again at exit, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
