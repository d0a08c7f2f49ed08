"""Saving while training goes on: a copy is taken at once, and written by another thread.

The copy costs the state's memory once more, on the CPU. One is written at a time: who saves again, waits for the last.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from recipes.engine.checkpoint import Checkpoints, State
from recipes.engine.distribution import is_first
from recipes.engine.shards import are_sharded


class Saver:
    """Writes checkpoints, `in_background` or at once; leaving it as a context waits for the last.

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
        self._pool.shutdown(wait=True)

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
    tensors = {part: {name: copied(each) for name, each in named.items()} for part, named in written.items()}
    return State(state.samples, tensors, dict(state.record))


@torch.no_grad()
def copied(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU; of a sharded one, of this rank's piece."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    piece = tensor.to_local().detach().to("cpu", copy=True)
    return DTensor.from_local(
        piece, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
