"""Saving while training goes on: a copy is taken at once, and written by another thread.

The copy costs the state's memory once more, on the CPU. One is written at a time: who saves again, waits for the last.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from recipes.runs.checkpoint import Checkpoints
from recipes.runs.checkpoint_files import State
from recipes.runtime.distribution import are_sharded, is_first

log = logging.getLogger("multisagd")


class Saver:
    """Writes checkpoints, `in_background` or at once; leaving it as a context waits for the last.

    It does not wait where a person has lost patience: half a checkpoint is no checkpoint, and does no harm.
    An error of the background is raised by the call that waits for it: the next `save`, or `finish`. All ranks make the
    same calls, and so all meet it at the same place.
    """

    def __init__(self, checkpoints: Checkpoints, in_background: bool) -> None:
        self.checkpoints, self.in_background = checkpoints, in_background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        impatient = kind is KeyboardInterrupt
        self._pool.shutdown(wait=not impatient, cancel_futures=impatient)
        if not impatient and self._pending is not None and (failed := self._pending.exception()) is not None:
            log.warning("%s", failed)

    def save(self, state: State) -> None:
        """Save a state; what happens to its tensors afterwards does not matter.

        Raises:
            SaveError: if this one, or the one before in the background, could not be written.
        """
        self.finish()
        if self.in_background:
            self._pending = self._pool.submit(self.checkpoints.save, staged(state))
        else:
            self.checkpoints.save(state)

    def finish(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            SaveError: if it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def staged(state: State) -> State:
    """Return a state with copies of its tensors on the CPU: of those that this rank writes."""
    written = {part: named if is_first() or are_sharded(named) else {} for part, named in state.tensors.items()}
    tensors = {
        part: {name: each.detach().to("cpu", copy=True) for name, each in named.items()}
        for part, named in written.items()
    }
    return replace(state, tensors=tensors, record=dict(state.record))
