"""The order of the examples of several sources that are seen in given proportions.

Like `Order`, it is a function of the number of samples seen. Each source has its own endless order, and these are
merged in blocks. How often a source occurs before a block is its share times the length of all earlier blocks, rounded,
so the proportions are exact in the limit, and any block can be computed without the blocks before it. Within a block,
the sources are shuffled.
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import lcm
from typing import Protocol

import torch

from multisagd.seeds import derive

BLOCK = 256
"""Number of samples in a block, up to rounding."""


class EndlessOrder(Protocol):
    """An endless order of the items of one source, such as `Order`."""

    def indices(self, start: int, count: int) -> list[int]:
        """Return the items at `count` positions."""


class WeightedOrder:
    """An endless order of the items of several sources, which follow each other in one list.

    Args:
        weights: the number of items of each source, and its share of the samples, up to a common factor.
        sources: the order of the items of each source, which are numbered from 0.
        seed: the seed by which sources are shuffled within blocks.

    Raises:
        ValueError: If a source has no items, or a share that is not a positive number.
    """

    def __init__(self, weights: Sequence[tuple[int, float]], sources: Sequence[EndlessOrder], seed: int) -> None:
        for length, share in weights:
            if length < 1 or not 0 < share < float("inf"):
                raise ValueError(f"a source must have items and a share above 0, got {length} items and {share}")
        self.seed, self.sources = seed, sources
        self._lengths = [length for length, _ in weights]
        self._firsts = list(accumulate(self._lengths, initial=0))
        # With integers, rounding never makes a count smaller than that of an earlier block.
        shares = [Fraction(share) for _, share in weights]
        scale = lcm(*(share.denominator for share in shares))
        self._shares = [int(share * scale) for share in shares]
        self._counts = lru_cache(maxsize=8)(self._before)
        # Two blocks, because a batch may begin in one and end in the next.
        self._blocks = lru_cache(maxsize=2)(self._shuffle)

    @property
    def longest_pass(self) -> int:
        """A number of samples after which every item has been seen."""
        total = sum(self._shares)
        passes = (-(-length * total // share) for length, share in zip(self._lengths, self._shares, strict=True))
        return max(passes) + 2 * BLOCK + len(self._shares)

    def indices(self, start: int, count: int) -> list[int]:
        """Return the items for the samples `start` to `start + count - 1`, counted from the beginning of training."""
        places = map(self._place, range(start, start + count))
        return [self._firsts[source] + self.sources[source].indices(number, 1)[0] for source, number in places]

    def distinct(self, count: int) -> list[int]:
        """Return the items of up to `count` samples, ending before the first item that is repeated."""
        seen: Counter[int] = Counter()
        for number in range(count):
            source, _ = self._place(number)
            if seen[source] == self._lengths[source]:
                return self.indices(0, number)
            seen[source] += 1
        return self.indices(0, count)

    def _place(self, number: int) -> tuple[int, int]:
        """Return the source of a sample, and how many earlier samples are from this source."""
        block = number // BLOCK
        # Rounding moves the start of a block by less than the number of sources.
        while sum(self._counts(block)) > number:
            block -= 1
        while sum(self._counts(block + 1)) <= number:
            block += 1
        return self._blocks(block)[number - sum(self._counts(block))]

    def _before(self, block: int) -> list[int]:
        """Return the number of samples from each source before a block."""
        total = sum(self._shares)
        return [(2 * block * BLOCK * share + total) // (2 * total) for share in self._shares]

    def _shuffle(self, block: int) -> list[tuple[int, int]]:
        """Return the source of each sample of a block, and how many earlier samples are from this source."""
        numbers = [range(*ends) for ends in zip(self._counts(block), self._counts(block + 1), strict=True)]
        drawn = torch.repeat_interleave(torch.tensor([len(each) for each in numbers]))
        generator = torch.Generator().manual_seed(derive(self.seed, "sources", block))
        shuffled = drawn[torch.randperm(len(drawn), generator=generator)].tolist()
        following = [iter(each) for each in numbers]
        return [(source, next(following[source])) for source in shuffled]
