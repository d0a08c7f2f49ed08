"""Compute KID, the squared maximum mean discrepancy of two sets of features with a cubic kernel (1801.01401).

Unlike the Fréchet distance it is unbiased: its expectation for equal distributions is 0 for any number of items, and
values may be negative. If each class has a fixed number of items, pairs within a set must be weighted: two items of the
same set share a class less often than items of different sets do (see `pair_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multisagd.seeds import derive

MAX_SET_SIZE = 4000
"""Maximum number of items of a subset: their matrix of pairs takes 128 MB."""


def squared_mmd(features_a: Tensor, features_b: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> float:
    """Return the unbiased estimate of MMD² with the kernel `(x·y / dimensions + 1)³` (1801.01401, section 4).

    Features are `(count_a, dimensions)` and `(count_b, dimensions)`; pairs of an item with itself are omitted.
    `weights` of the pairs within each set, `(count, count)` with mean 1 over the pairs, default to 1.

    Raises:
        ValueError: If a set has fewer than two items.
    """
    a, b = features_a.double(), features_b.double()
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 items in each set, got {len(a)} and {len(b)}")
    weights_a, weights_b = (None, None) if weights is None else weights
    return _within(a, weights_a) + _within(b, weights_b) - 2 * float(_kernel(a, b).mean())


def pair_weights(sizes: Sequence[int]) -> tuple[Tensor, float]:
    """Return the weights of pairs within each class, `(classes,)`, and the weight of pairs between classes.

    `sizes` are the numbers of items of the classes.

    Items of two independent sets are both in class c with probability `(n_c / N)²`, but two different items of one set
    only with probability `n_c (n_c - 1) / (N (N - 1))`. The weights compensate for this, so that the expectation of
    MMD² for equal distributions is zero. A class with a single item has no pairs: its weight is distributed over all
    other pairs, and a bias remains.
    """
    each = torch.tensor([float(size) for size in sizes], dtype=torch.float64)
    total = float(each.sum())
    missed = float((each == 1).sum()) / total**2
    between = (total - 1) / total / (1 - missed)
    within = torch.where(each > 1, between * each / (each - 1).clamp(min=1), 0.0)
    return within, between


def kernel_distance(
    features_a: Tensor, features_b: Tensor, sizes: Sequence[int] | None = None, size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """Return the mean of MMD² over disjoint subsets of up to `size` items, and the standard error of that mean.

    Features are `(items, features)`; MMD² is dimensionless.

    The subsets share no item, so no bootstrap is needed. There are at least four subsets if there are enough items;
    with a single subset the error is None. If both sets contain fixed numbers of items of each class, class by class,
    pass these numbers as `sizes`: subsets then contain an equal part of each class, and are larger if classes are
    small.

    Raises:
        ValueError: If `sizes` are given and a set does not have `sum(sizes)` items.
    """
    count = min(len(features_a), len(features_b))
    groups = [count] if sizes is None else list(sizes)
    if sum(groups) != count or (sizes is not None and len(features_a) != len(features_b)):
        raise ValueError(
            f"sizes that add up to {sum(groups)} items do not match sets of {len(features_a)} and {len(features_b)} "
            "items"
        )
    parts = _parts(groups, max(1, count // max(2, min(size, count // 4))))
    orders = [
        _shuffled(groups, len(each), derive(seed, "kernel", n)) for n, each in enumerate((features_a, features_b))
    ]
    classes = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
    estimates = []
    for part in range(parts):
        # Take the same positions in both orders, so that both subsets have equal numbers of items of each class.
        weights = _of_pairs(classes[part::parts], len(groups))
        a, b = (order[part::parts] for order in orders)
        estimates.append(squared_mmd(features_a[a], features_b[b], (weights, weights)))
    values = torch.tensor(estimates, dtype=torch.float64)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def _parts(sizes: Sequence[int], maximum: int) -> int:
    """Return a number of parts, at most `maximum`, such that 99 % of items share a part with others of their class."""
    while maximum > 1 and sum(size for size in sizes if size < 2 * maximum) > sum(sizes) / 100:
        maximum -= 1
    return max(maximum, -(-sum(sizes) // MAX_SET_SIZE))


def _shuffled(sizes: Sequence[int], total: int, seed: int) -> Tensor:
    """Return indices in random order within each class, or `sizes[0]` random indices if there is one class."""
    generator = torch.Generator().manual_seed(seed)
    if len(sizes) == 1:
        return torch.randperm(total, generator=generator)[: sizes[0]]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return torch.cat([start + torch.randperm(n, generator=generator) for start, n in zip(starts, sizes, strict=True)])


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _of_pairs(classes: Tensor, total: int) -> Tensor:
    within, between = pair_weights(torch.bincount(classes, minlength=total).tolist())
    return torch.where(classes[:, None] == classes, within[classes], between)


def _within(a: Tensor, weights: Tensor | None) -> float:
    kernel = _kernel(a, a) if weights is None else _kernel(a, a) * weights
    return float((kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1)))
