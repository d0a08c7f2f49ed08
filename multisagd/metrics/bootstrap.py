"""The variation of a statistic of finite sets: the bootstrap (Efron, Annals of Statistics 7, 1979).

Items are resampled with replacement, class by class if the sets consist of classes, and the statistic is
computed on each draw. Only the SPREAD of these values is used. Their mean is not used: a set with duplicates looks less
varied than it is, so a distance between resampled sets is larger on average than the distance of the sets.

Within a group of n items the variance over resampled items is (n - 1) / n of that over new items, which matters where
groups are small; a group of one item has zero variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multisagd.seeds import derive


def redrawn(sizes: Sequence[int], seed: int) -> Tensor:
    """Return indices drawn with replacement within consecutive groups, int64 of shape `(sum(sizes),)`."""
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
    """Return the standard deviation of `statistic(places_a, places_b)` over resampled indices of two sets.

    The sets consist of consecutive groups of `sizes`; the second of `others`, if given. It is scaled up by
    sqrt(N / (N - C)) for N items in C groups, which is exact for means of values with equal variance in every group.
    None for fewer than two resamples, or a group of one item: the spread is then undefined.
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
    """Return the standard error of the mean of values `(count,)`, the limit of a bootstrap; None for one value."""
    return float(values.double().std() / len(values) ** 0.5) if len(values) > 1 else None
