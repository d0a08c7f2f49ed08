"""The order of the examples in training, and prefetching.

The order is a function of the number of samples seen: no sampler or generator has a state to save.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch

from modalities.base import Batch, Dataset, Groups, distinct_classes
from modalities.buckets import bucketed, members
from modalities.reading import UnreadableFilesError, read_batch
from multisagd import seeds
from recipes.base.errors import as_recipe_error
from recipes.data.weighted_order import WeightedOrder
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import Runtime

K = TypeVar("K")
T = TypeVar("T")
BLOCK = 16
"""Number of batches among which the buckets are shuffled."""


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


def order_of(
    dataset: Dataset, seed: int, grouped: bool = False, weights: Sequence[tuple[int, float]] | None = None
) -> Order | WeightedOrder:
    """Return the endless order of a dataset, in the proportions of its sources if it has `weights`.

    Others can be given. If there are none and `grouped` is True, examples that are stored together follow each other,
    as in training.
    """
    weights = dataset.weights if weights is None else weights
    if weights is None:
        return Order(len(dataset), seed, dataset.groups if grouped else None)
    sources = [Order(length, seeds.derive(seed, "source", n)) for n, (length, _) in enumerate(weights)]
    return WeightedOrder(weights, sources, seed)


class BucketOrder:
    """The endless order of the batches of several buckets with these numbers of items.

    A cycle has as many batches as there are items, and each bucket has as many of them as it has items, spread evenly,
    so that all items are equally frequent. Batches are then shuffled within blocks by the seed: which bucket a batch is
    from depends only on the seed and on the number of the batch.

    Raises:
        ValueError: If there are no buckets, or one is empty.
    """

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"every bucket needs at least one item, got {list(lengths)}")
        self.lengths, self.seed = list(lengths), seed
        owners = np.repeat(np.arange(len(lengths), dtype=np.int16), lengths)
        numbers = np.concatenate([np.arange(length) for length in lengths])
        # In a cycle of n batches, number i of a bucket with m of them should come at (i + 1/2) · n/m.
        due = np.argsort((numbers + 0.5) / np.repeat(np.array(lengths, np.float64), lengths), kind="stable")
        self._owners, self._numbers = owners[due], numbers[due]
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def of_batch(self, number: int) -> tuple[int, int]:
        """Return the bucket of a batch, and which of this bucket's batches it is; both count from 0."""
        cycle, position = divmod(number, len(self._owners))
        block, offset = divmod(position, BLOCK)
        place = block * BLOCK + self._shuffled(cycle, block)[offset]
        bucket = int(self._owners[place])
        return bucket, cycle * self.lengths[bucket] + int(self._numbers[place])

    def _shuffle(self, cycle: int, block: int) -> list[int]:
        size = min(BLOCK, len(self._owners) - block * BLOCK)
        generator = torch.Generator().manual_seed(seeds.derive(self.seed, "buckets", cycle, block))
        order: list[int] = torch.randperm(size, generator=generator).tolist()
        return order


class TrainingOrder:
    """The examples of every batch of training; if the modality has buckets, all examples of a batch are from one."""

    def __init__(self, dataset: Dataset, seed: int, batch: int) -> None:
        self.buckets, self.batch = bucketed(dataset), batch
        several = len(self.buckets) > 1
        own = [seeds.derive(seed, "bucket", number) if several else seed for number in range(len(self.buckets))]
        weights = _bucket_weights(dataset, self.buckets) if several else [dataset.weights]
        self._orders = [
            order_of(part, each, grouped=True, weights=known)
            for part, each, known in zip(self.buckets, own, weights, strict=True)
        ]
        self._turns = BucketOrder(_quotas(self.buckets, weights), seed) if several else None

    @property
    def longest_pass(self) -> int:
        """Number of samples within which every example is seen."""
        if self._turns is None:
            return self._orders[0].longest_pass
        quotas = self._turns.lengths
        passes = [order.longest_pass / quota for order, quota in zip(self._orders, quotas, strict=True)]
        # Each bucket's batches come in turn, but for the rounding of quotas and the shuffled blocks.
        return math.ceil(max(passes) * sum(quotas)) + 2 * BLOCK * self.batch

    def examples(self, first: int, places: range) -> tuple[Dataset, list[int]]:
        """Return the bucket of the batch that begins after `first` samples, and its examples at some of its places."""
        number, begin = 0, first
        if self._turns is not None:
            number, turn = self._turns.of_batch(first // self.batch)
            begin = turn * self.batch
        return self.buckets[number], self._orders[number].indices(begin + places.start, len(places))

    def classes(self, samples: int) -> set[int]:
        """Return the classes of the examples of the first `samples` samples, in whole batches."""
        found: set[int] = set()
        for first in range(0, samples, self.batch):
            found |= distinct_classes(*self.examples(first, range(self.batch)))
            if len(found) == len(self.buckets[0].classes or ()):
                break
        return found


def _bucket_weights(dataset: Dataset, buckets: Sequence[Dataset]) -> list[Sequence[tuple[int, float]] | None]:
    """Return the `weights` of each bucket of a dataset, such that every source keeps its share of the whole."""
    weights = dataset.weights
    if weights is None:
        return [None] * len(buckets)
    lengths = [length for length, _ in weights]
    own = np.repeat([share / length for length, share in weights], lengths)  # of each example
    found: list[Sequence[tuple[int, float]] | None] = []
    for indices, part in zip(filter(None, members(dataset)), buckets, strict=True):
        ends = np.cumsum([length for length, _ in part.weights or ()])
        blocks = np.split(own[indices], ends[:-1])
        found.append([(len(block), float(block.sum())) for block in blocks])
    return found


def _quotas(buckets: Sequence[Dataset], weights: Sequence[Sequence[tuple[int, float]] | None]) -> list[int]:
    """Return the numbers of batches of the buckets in one cycle: in proportion to their examples or their weights."""
    shares = [sum(share for _, share in each) for each in weights if each is not None]
    if not shares:
        return [len(part) for part in buckets]
    examples = sum(len(part) for part in buckets)
    return [max(1, round(examples * share / sum(shares))) for share in shares]


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

    If the modality has buckets, all parts of a batch are from the same one. Raises RecipeError if too many files are
    unreadable.
    """
    training, seed, share = settings.training, settings.seed, runtime.share(settings.training.batch)
    order, size = TrainingOrder(dataset, seed, training.batch), len(share) // training.accumulation

    def part(first: int, start: int) -> Batch:
        bucket, indices = order.examples(first, range(start, start + size))
        numbers = range(first + start, first + start + size)
        return read_batch(bucket, indices, [seeds.derive(seed, "augmentation", number) for number in numbers])

    def fetch(first: int) -> list[Batch]:
        return [part(first, start) for start in range(share.start, share.stop, size)]

    with as_recipe_error(UnreadableFilesError):
        yield from prefetch(fetch, range(samples, training.samples, training.batch), settings.engine.workers)
