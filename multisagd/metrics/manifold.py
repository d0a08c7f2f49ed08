"""Fidelity and variety separately: precision and recall (1904.06991), density and coverage (2002.09797).

Each set is modelled as the union of balls around its items, with the distance to the k-th nearest neighbour in the set
as radius. Precision is the fraction of generated items within the real union, recall the fraction of real items within
the generated union. Density is the number of real balls that contain a generated item, over k, and coverage is the
fraction of real balls that contain a generated item: an outlier with a large ball inflates precision, but hardly these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.metrics.neighbours import smallest_distances

SAME = 1e-12
"""Squared distances that differ by less than this fraction of both vectors' squared lengths count as equal."""


@dataclass(frozen=True, eq=False)
class Manifold:
    """Contributions of each item, float64 `(items,)`: the mean of each tensor is the metric of that name.

    `precision` and `density` are of the generated items, `recall` and `coverage` of the real ones.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifold(real: Tensor, made: Tensor, neighbours: int = 3, density_neighbours: int = 5) -> Manifold:
    """Return precision, recall, density and coverage, item by item, of features `(count, dimensions)`.

    `neighbours` is k for precision and recall, `density_neighbours` for density and coverage; defaults are from the two
    papers. At finite counts only density has the expectation 1, for sets drawn independently from one distribution and
    features fitted to neither. Items at the radius of a ball are inside, duplicates included.

    Raises:
        ValueError: for no more items than neighbours.
    """
    maximum = max(neighbours, density_neighbours)
    if min(len(real), len(made)) <= maximum:
        raise ValueError(f"{maximum} neighbours need more items in each set, got {len(real)} and {len(made)}")
    # The nearest item of a set to one of its own items is itself, at index 0.
    nearest_real, nearest_made = (smallest_distances(each, each, maximum + 1)[1] for each in (real, made))
    centre = real.double().mean(0)
    points, others = made.double() - centre, real.double() - centre
    narrow, wide = (_reach(others, nearest_real[:, k]) for k in (neighbours, density_neighbours))
    lengths = others.square().sum(1)
    precision, density = [], []
    recall, coverage = torch.zeros(2, len(real), dtype=torch.bool)
    for part, reach in zip(points.split(1024), _reach(points, nearest_made[:, neighbours]).split(1024), strict=True):
        both = part.square().sum(1)[:, None] + lengths
        # A matrix product is much faster than subtraction, and in float64 its rounding is below SAME.
        distance = both - 2 * part @ others.T - SAME * both
        within = distance <= wide
        precision.append((distance <= narrow).any(1))
        density.append(within.double().sum(1) / density_neighbours)
        recall |= (distance <= reach[:, None]).any(0)
        coverage |= within.any(0)
    return Manifold(torch.cat(precision).double(), recall.double(), torch.cat(density), coverage.double())


def _reach(points: Tensor, places: Tensor) -> Tensor:
    """Return the squared distance of each point to the point of the same index, by subtraction."""
    return torch.cat(
        [(one - points[at]).square().sum(1) for one, at in zip(points.split(1024), places.split(1024), strict=True)]
    )
