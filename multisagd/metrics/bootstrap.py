"""Estimate the variation of a statistic of finite sets by the bootstrap (Efron, Annals of Statistics 7, 1979).

Items are resampled with replacement, class by class if the sets consist of classes, and the statistic is
computed on each draw. Only the standard deviation of these values is used, not their mean: a resampled set contains
duplicates and looks less varied than the original, so distances between resampled sets are larger on average.

Within a group of n items the variance over resampled items is (n - 1) / n times the variance over new items, which
matters if groups are small; a group of one item has zero variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multisagd.seeds import derive


def redrawn(sizes: Sequence[int], seed: int) -> Tensor:
    """Draw indices with replacement within consecutive groups of `sizes`, int64 of shape `(sum(sizes),)`."""
    generator = torch.Generator().manual_seed(seed)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return torch.cat(
        [start + torch.randint(size, (size,), generator=generator) for start, size in zip(starts, sizes, strict=True)
         if size]
    )  # fmt: skip


def bootstrap_error(
    statistic: Callable[[Tensor, Tensor], float],
    sizes: Sequence[int],
    resamples: int,
    others: Sequence[int] | None = None,
    seed: int = 0,
) -> float | None:
    """Return the standard deviation of `statistic(indices_a, indices_b)` over resampled indices of two sets.

    Both sets consist of consecutive groups. `sizes` are the group sizes of both sets or, if `others` is given, of the
    first set only; `others` are then the group sizes of the second set. The result is multiplied by sqrt(N / (N - C))
    for N items in C groups. This correction for small groups is exact for means of values with equal variance in every
    group. The result is None if there are fewer than two resamples, or if a group has only one item.
    """
    groups = [size for size in (*sizes, *(sizes if others is None else others)) if size]
    if resamples < 2 or min(groups, default=0) < 2:
        return None
    values = [
        statistic(
            redrawn(sizes, derive(seed, "bootstrap/a", number)),
            redrawn(sizes if others is None else others, derive(seed, "bootstrap/b", number)),
        )
        for number in range(resamples)
    ]
    small = (sum(groups) / (sum(groups) - len(groups))) ** 0.5
    return small * float(torch.tensor(values, dtype=torch.float64).std())


def mean_error(values: Tensor) -> float | None:
    """Return the standard error of the mean of values `(count,)`, or None if there is only one value.

    It is the limit of the bootstrap for many resamples.
    """
    return float(values.double().std() / len(values) ** 0.5) if len(values) > 1 else None
