"""The order of the examples in training, and prefetching.

The order is a function of the number of samples seen: no sampler or generator has a state to save.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

import torch

from modalities.base import Batch, Dataset, Groups
from modalities.reading import UnreadableFilesError, read_batch
from multisagd import seeds
from recipes.base.errors import as_recipe_error
from recipes.data.weighted_order import WeightedOrder
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import Runtime

K = TypeVar("K")
T = TypeVar("T")


class Order:
    """An endless order of `length` items: each epoch is a new permutation, derived from the seed and the epoch.

    With `groups` of items that are stored together, an epoch shuffles the groups, takes a window of groups at a time,
    and shuffles the items of each window. Memory use is limited to two lists of groups and a few windows of items.

    Raises:
        ValueError: If the groups do not contain `length` items in total.
    """

    def __init__(self, length: int, seed: int, groups: Groups | None = None) -> None:
        groups = groups or Groups((length,), 1)
        ends = list(accumulate(groups.lengths))
        if ends[-1] != length:
            raise ValueError(f"the groups must contain {length} items in total, got {ends[-1]}")
        self.length, self.seed, self.groups = length, seed, groups
        self._starts = [0, *ends]
        # Two epochs, because a batch may begin in one and end in the next; windows are shorter.
        self._windows = lru_cache(maxsize=2)(self._split)
        self._items = lru_cache(maxsize=4)(self._shuffle)

    @property
    def longest_pass(self) -> int:
        """Number of samples after which every item has been seen."""
        return self.length

    def indices(self, start: int, count: int) -> list[int]:
        """Return the items for the samples `start` to `start + count - 1`, counted from the beginning of training."""
        return [self._item(*divmod(number, self.length)) for number in range(start, start + count)]

    def _item(self, epoch: int, position: int) -> int:
        _, starts = self._windows(epoch)
        window = bisect_right(starts, position) - 1
        return int(self._items(epoch, window)[position - starts[window]])

    def _split(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """Return the groups of each window of an epoch, and the position at which each window starts."""
        lengths, window = self.groups.lengths, self.groups.window
        shuffled = torch.randperm(len(lengths), generator=self._generator("groups", epoch)).tolist()
        windows = [shuffled[first : first + window] for first in range(0, len(shuffled), window)]
        sizes = (sum(lengths[group] for group in groups) for groups in windows)
        return windows, list(accumulate(sizes, initial=0))

    def _shuffle(self, epoch: int, window: int) -> torch.Tensor:
        """Return the shuffled items of one window."""
        groups = self._windows(epoch)[0][window]
        items = torch.cat([torch.arange(self._starts[group], self._starts[group + 1]) for group in groups])
        # The first window has no number in its seed, so that the order without groups does not depend on windows.
        generator = self._generator("order", epoch, *([window] if window else []))
        return items[torch.randperm(len(items), generator=generator)]

    def _generator(self, stream: str, *indices: int) -> torch.Generator:
        return torch.Generator().manual_seed(seeds.derive(self.seed, stream, *indices))


def order_of(dataset: Dataset, seed: int, grouped: bool = False) -> Order | WeightedOrder:
    """Return the endless order of a dataset, in the proportions of its sources if it has `weights`.

    If it has none and `grouped` is True, examples that are stored together follow each other, as in training.
    """
    if dataset.weights is None:
        return Order(len(dataset), seed, dataset.groups if grouped else None)
    sources = [Order(length, seeds.derive(seed, "source", n)) for n, (length, _) in enumerate(dataset.weights)]
    return WeightedOrder(dataset.weights, sources, seed)


def prefetch(fetch: Callable[[K], T], keys: Iterable[K], workers: int) -> Iterator[T]:
    """Yield `fetch(key)` for each key in order, prefetching up to `workers` keys in threads.

    Threads are used instead of processes: decoding releases the interpreter's lock, nothing is copied or forked, and
    memory does not grow. `workers=0` fetches on demand.
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
    """Yield this process's parts of every batch, one for each accumulation step, starting after `samples` samples.

    Raises RecipeError if too many files are unreadable.
    """
    training, seed = settings.training, settings.seed
    order, share = order_of(dataset, seed, grouped=True), runtime.share(training.batch)
    size = len(share) // training.accumulation

    def part(start: int) -> Batch:
        augmentation = [seeds.derive(seed, "augmentation", number) for number in range(start, start + size)]
        return read_batch(dataset, order.indices(start, size), augmentation)

    def fetch(first: int) -> list[Batch]:
        return [part(start) for start in range(first + share.start, first + share.stop, size)]

    with as_recipe_error(UnreadableFilesError):
        yield from prefetch(fetch, range(samples, training.samples, training.batch), settings.engine.workers)
