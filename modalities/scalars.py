"""Numbers about how an example was read, such as the start of an excerpt, which a network can take as a condition.

A network that knows the crop or the start does not have to learn that pictures may be cut off, or that sounds may begin
in the middle (as in SDXL, arXiv 2307.01952, section 2.2, and in Stable Audio, arXiv 2402.04825, section 3). Modalities
declare the names (`Modality.scalars`) and call `record` while they read a file; datasets collect the numbers with
`recording`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_RECORDED: ContextVar[dict[str, float] | None] = ContextVar("scalars", default=None)
"""The numbers recorded in the innermost `recording` block of this thread."""


def record(**values: float) -> None:
    """State numbers about the file that is being read, by their names; later ones replace earlier ones."""
    recorded = _RECORDED.get()
    if recorded is not None:
        recorded.update({name: float(value) for name, value in values.items()})


@contextmanager
def recording() -> Iterator[dict[str, float]]:
    """Provide the numbers that are recorded within the `with` block."""
    recorded: dict[str, float] = {}
    token = _RECORDED.set(recorded)
    try:
        yield recorded
    finally:
        _RECORDED.reset(token)
