"""What libraries say through `logging`, kept down where it is no news."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hear nothing but errors of the logger of that name, and restore its level afterwards."""
    speaker = logging.getLogger(name)
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(level)
