"""Derive stateless seeds: every random number is a function of its purpose.

A seed is a stable hash of (run seed, stream, step, sample slot). It never depends on a rank, a batch or a process, so
a resumed run continues its noise without saved state, and a sample does not depend on its batch.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

LARGEST = 2**64 - 1
"""The largest seed that torch's generators accept."""


def derive(seed: int, stream: str, *indices: int) -> int:
    """Hash a seed, the name of a stream and any indices to a 32-bit seed (torch's CPU generator uses only 32 bits)."""
    text = ":".join([str(int(seed)), stream, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def derive_many(seed: int, stream: str, step: int, slots: Iterable[int]) -> list[int]:
    """Return one derived seed for each sample slot of a step."""
    return [derive(seed, stream, step, slot) for slot in slots]


def checked_seeds(seeds: Sequence[int], count: int | None = None) -> list[int]:
    """Check that there is one seed for each of `count` items, and return the seeds as Python integers.

    Seeds may be a list, a range, or an array or tensor of integers. If `count` is None, any number is accepted.

    Raises:
        ValueError: If there are not `count` seeds, or a seed is not an integer from 0 to 2^64 - 1.
    """
    try:
        checked = [_checked(seed) for seed in seeds]
    except TypeError as error:
        raise ValueError(
            "seeds must be integers, one for each item of the batch, for example "
            f"range({4 if count is None else count}); got {seeds!r:.80}"
        ) from error
    if count is not None and len(checked) != count:
        raise ValueError(f"expected {count} seeds for a batch of {count}, one per item, got {len(checked)}")
    return checked


def generator_seed(seed: int) -> int:
    """Return the seed for a generator: seeds below 2^32 are unchanged, and larger ones are hashed to 32 bits.

    The CPU generator keeps only 32 bits, so seeds that differ by 2^32 would draw the same numbers.

    Raises:
        ValueError: If the seed is below 0 or above 2^64 - 1.
    """
    seed = _checked(seed)
    return seed if seed < 2**32 else derive(seed, "generator")


def _checked(seed: Any) -> int:
    number = operator.index(seed)
    if not 0 <= number <= LARGEST:
        raise ValueError(f"a seed must be an integer from 0 to 2^64 - 1, got {number}")
    return number
