"""Compare the distribution of single values, of one variable, in two sets: moments and the Wasserstein-1 distance.

Sums and cumulative distributions are kept item by item, so that resampled sets need no second pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.metrics.increments import Batches, increments

MAX_VALUES = 1 << 20
"""Maximum number of values from which the edges of a cumulative distribution are chosen."""


class Moments(NamedTuple):
    """Moments of a distribution: mean and standard deviation in its unit, skewness and kurtosis without a unit.

    A Gaussian distribution has the kurtosis 3, and two equally likely values have 1.
    """

    mean: float
    deviation: float
    skewness: float
    kurtosis: float


def power_sums(batches: Batches, centre: float = 0.0) -> Tensor:
    """Return the number of values of each item, and the sums of their first four powers, float64 `(items, 5)`.

    Batches are `(count, channels, *grid)`, each with its mask `(count, 1 or channels, *grid)` or None; masked values
    are ignored. `centre`, in the unit of the values, is subtracted first: near the mean, the sums keep their digits.
    """
    sums = []
    for x, mask in batches:
        valid = torch.ones_like(x, dtype=torch.float64) if mask is None else mask.expand_as(x).double()
        values = (x.double() - centre) * valid
        powers = [valid, values, values.square(), values**3, values**4]
        sums.append(torch.stack([each.flatten(1).sum(1) for each in powers], dim=1))
    return torch.cat(sums)


def moments(sums: Tensor, centre: float = 0.0) -> Moments:
    """Return the moments of all values of the items with the `power_sums` `(items, 5)` about `centre`, in their unit.

    Raises:
        ValueError: If there are no values, or all are equal, so that they have neither skewness nor kurtosis.
    """
    count, *powers = sums.double().sum(0).tolist()
    if count < 1:
        raise ValueError("there are no values to take moments of: all are masked")
    first, second, third, fourth = (power / count for power in powers)
    variance = max(0.0, second - first**2)
    if variance <= 1e-14 * second:  # rounding of equal values
        raise ValueError("all values are equal, so they have no skewness and no kurtosis")
    cubed = third - 3 * first * second + 2 * first**3
    fourth = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return Moments(centre + first, variance**0.5, cubed / variance**1.5, fourth / variance**2)


def difference_sums(batches: Batches, grid: Grid, names: Iterable[str]) -> Tensor:
    """Return the `power_sums` `(items, 5)` of the differences of neighbours along the named axes, taken in turn.

    One axis gives a first difference, and two give the mixed second difference.
    """
    differences = list(batches)
    for name in names:
        differences = [increments(x, mask, grid, name, 1) for x, mask in differences]
    return power_sums(differences)


def distribution_edges(values: Tensor, count: int = 256) -> Tensor:
    """Return up to `2 * count` increasing edges at which distributions of the `values` `(…)` are compared.

    They are float64 `(edges,)`, in the unit of the values. Half of them are quantiles, which resolve where most values
    are; the others are evenly spaced from the smallest to the largest value, and resolve the tails.

    Raises:
        ValueError: If there are no values.
    """
    flat = values.detach().flatten().double()
    if not len(flat):
        raise ValueError("there are no values to compare: all are masked")
    few = flat[:: -(-len(flat) // MAX_VALUES)]
    quantiles = few.sort().values[torch.linspace(0, len(few) - 1, count).round().long()]
    even = torch.linspace(float(flat.min()), float(flat.max()), count, dtype=torch.float64)
    return torch.cat([quantiles, even, flat.min()[None], flat.max()[None]]).unique()


def cumulative(batches: Batches, edges: Tensor) -> Tensor:
    """Return the number of values of each item, and how many are at most each edge, int32 `(items, 1 + edges)`.

    Batches are as in `power_sums`, and edges `(edges,)` increase, in the unit of the values.
    """
    counts = []
    for x, mask in batches:
        index = torch.searchsorted(edges, x.double().contiguous()).flatten(1)
        valid = torch.ones_like(index) if mask is None else mask.expand_as(x).flatten(1).long()
        histogram = torch.zeros(len(x), len(edges) + 1, dtype=torch.int64)
        histogram.scatter_add_(1, index, valid)
        below = histogram[:, :-1].cumsum(1)
        counts.append(torch.cat([valid.sum(1, keepdim=True), below], dim=1).int())
    return torch.cat(counts)


def fractions(counts: Tensor) -> Tensor:
    """Return the fraction of all values that is at most each edge, `(edges,)`, from `cumulative` `(items, 1 + edges)`.

    It is NaN if there are no values.
    """
    total = counts.sum(0).double()
    return total[1:] / total[0]


def wasserstein_distance(counts_a: Tensor, counts_b: Tensor, edges: Tensor) -> float:
    """Return the Wasserstein-1 distance of two distributions, in the unit of `edges` `(edges,)`.

    It is the integral of the absolute difference of both `cumulative` distributions `(items, 1 + edges)`, by the
    trapezoidal rule. It is exact but for the distribution of values between two edges, and biased upwards at finite
    counts.
    """
    difference = (fractions(counts_a) - fractions(counts_b)).abs()
    return float(torch.trapezoid(difference, edges))
