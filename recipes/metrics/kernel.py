"""KID: the squared maximum mean discrepancy of two sets of features, with a cubic kernel (1801.01401).

Unlike the Fréchet distance it has no bias: the expectation for equal distributions is 0 at every number of items, and
values may be negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multisagd.seeds import derive


def squared_mmd(features_a: Tensor, features_b: Tensor) -> float:
    """Return the unbiased estimate of MMD² with the kernel `(x·y / dimensions + 1)³` (1801.01401, section 4).

    Features are `(count_a, dimensions)` and `(count_b, dimensions)`; pairs of an item with itself are left out.

    Raises:
        ValueError: for fewer than two items in a set.
    """
    a, b = features_a.double(), features_b.double()
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 items in each set, got {len(a)} and {len(b)}")
    return _within(a) + _within(b) - 2 * float(_kernel(a, b).mean())


def kernel_distance(
    features_a: Tensor, features_b: Tensor, size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """Return the mean of MMD² over disjoint subsets of up to `size` items, and the standard error of that mean.

    The subsets share no item, so they are independent, and their spread needs no bootstrap. There are at least four of
    them where the items suffice for that; with a single one the error is None.
    """
    count = min(len(features_a), len(features_b))
    size = max(2, min(size, count // 4))
    orders = [
        torch.randperm(len(each), generator=torch.Generator().manual_seed(derive(seed, "kernel", number)))
        for number, each in enumerate((features_a, features_b))
    ]
    values = torch.tensor(
        [
            squared_mmd(features_a[orders[0][start : start + size]], features_b[orders[1][start : start + size]])
            for start in range(0, max(1, count - size + 1), size)
        ],
        dtype=torch.float64,
    )
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(a: Tensor) -> float:
    kernel = _kernel(a, a)
    return float((kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1)))
