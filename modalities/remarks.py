"""Remarks about files that were read, but not in full or not as their authors see them, such as only the first page.

Readers call `remark`; datasets collect what was said about a file with `collecting`, and count the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COLLECTED: ContextVar[set[str] | None] = ContextVar("remarks", default=None)
"""What was said in the innermost `collecting` block of this thread."""


def remark(text: str) -> None:
    """Say something about the file that is being read, in words that suit every file of its kind."""
    collected = _COLLECTED.get()
    if collected is not None:
        collected.add(text)


@contextmanager
def collecting() -> Iterator[set[str]]:
    """Provide the set of remarks made within the `with` block."""
    collected: set[str] = set()
    token = _COLLECTED.set(collected)
    try:
        yield collected
    finally:
        _COLLECTED.reset(token)
