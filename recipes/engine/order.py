"""The order of the data, and its loading ahead of time.

Both are functions of the number of samples seen, the only clock: no sampler or generator has a state to save.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

from modalities.base import Batch, Dataset
from modalities.reading import UnreadableFilesError
from multisagd import seeds
from recipes.engine.errors import RecipeError
from recipes.engine.runtime import Runtime
from recipes.engine.settings import TrainSettings

T = TypeVar("T")


class Order:
    """An endless order of `length` items: every epoch a new permutation, derived from the seed and the epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        # Two, because a batch may begin in one epoch and end in the next.
        self._permutation = lru_cache(maxsize=2)(lambda epoch: self._shuffle(seed, epoch))

    def indices(self, start: int, count: int) -> list[int]:
        """Return the items that samples number `start` to `start + count - 1` of the whole training show."""
        places = (divmod(number, self.length) for number in range(start, start + count))
        return [int(self._permutation(epoch)[place]) for epoch, place in places]

    def _shuffle(self, seed: int, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seeds.derive(seed, "order", epoch))
        return torch.randperm(self.length, generator=generator)


def prefetch(fetch: Callable[[int], T], keys: Iterable[int], workers: int) -> Iterator[T]:
    """Yield `fetch(key)` for each key in order, with up to `workers` of them fetched ahead in threads.

    Threads and not processes: decoding releases the interpreter's lock, nothing is copied or forked, and memory does
    not grow. `workers=0` fetches when asked.
    """
    if workers < 1:
        yield from map(fetch, keys)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending: deque[Future[T]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(fetch, key))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batches(dataset: Dataset, samples: int, settings: TrainSettings, runtime: Runtime) -> Iterator[list[Batch]]:
    """Yield the parts of every batch from `samples` seen up to the end of training.

    Raises:
        RecipeError: when too many files cannot be read.
    """
    wishes = settings.training
    order, share = Order(len(dataset), settings.seed), runtime.share(wishes.batch)
    size = len(share) // wishes.accumulation

    def fetch(first: int) -> list[Batch]:
        parts = []
        for start in range(first + share.start, first + share.stop, size):
            augmentation = [
                seeds.derive(settings.seed, "augmentation", number) for number in range(start, start + size)
            ]
            parts.append(dataset.batch(order.indices(start, size), augmentation))
        return parts

    try:
        yield from prefetch(fetch, range(samples, wishes.samples, wishes.batch), settings.engine.workers)
    except UnreadableFilesError as error:
        raise RecipeError(str(error)) from error
