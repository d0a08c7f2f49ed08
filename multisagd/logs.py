"""Silencing messages that libraries log and that are irrelevant here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Show only errors of the logger of that name; restore its level afterwards."""
    speaker = logging.getLogger(name)
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(level)
