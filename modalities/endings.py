"""Endings of file names, which may have several parts (.nii.gz), and a message about files with other endings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

SHOWN = 5
"""Number of endings that a message lists."""


def ending_of(name: str, suffixes: Sequence[str]) -> str:
    """Return the longest of `suffixes`, which are in lower case, with which a name ends, or "" if there is none."""
    return max((suffix for suffix in suffixes if name.lower().endswith(suffix)), key=len, default="")


def other_ending(name: str) -> str:
    """Return the last part of the ending of a file that is not read, for `listed`."""
    return PurePosixPath(name).suffix.lower() or "(none)"


def listed(endings: Counter[str]) -> str:
    """Return the most common endings with their counts, as text."""
    rest = len(endings) - SHOWN
    some = ", ".join(f"{count} × {ending}" for ending, count in endings.most_common(SHOWN))
    return f"{some or 'nothing'}{f', and {rest} more endings' if rest > 0 else ''}"
