"""Measure fidelity and variety separately: precision and recall (1904.06991), density and coverage (2002.09797).

Each set is modelled as the union of balls around its items, whose radius is the distance to the k-th nearest neighbour
in the set. Precision is the fraction of generated items inside the real union, and recall the fraction of real items
inside the generated union. Density is the mean number of real balls that contain a generated item, divided by k, and
coverage is the fraction of real balls that contain a generated item. An outlier with a large ball inflates precision,
but hardly density and coverage.
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
    """Contributions of single items to metrics, float64 `(items,)`: the mean of each is the metric of that name.

    `precision` and `density` are per generated item, `recall` and `coverage` per real item.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifold(real: Tensor, made: Tensor, neighbours: int = 3, density_neighbours: int = 5) -> Manifold:
    """Return each item's contribution to precision, recall, density and coverage, from features `(count, dimensions)`.

    `neighbours` is k for precision and recall, `density_neighbours` for density and coverage; defaults are from the two
    papers. For sets drawn independently from one distribution, with features fitted to neither, only density has the
    expectation 1 at finite counts. Items at the radius of a ball are inside, duplicates included.

    Raises:
        ValueError: If a set does not have more items than neighbours.
    """
    maximum = max(neighbours, density_neighbours)
    if min(len(real), len(made)) <= maximum:
        raise ValueError(
            f"with {maximum} neighbours, each set must have at least {maximum + 1} items, got {len(real)} and "
            f"{len(made)}"
        )
    # The nearest neighbour of an item in its own set is the item itself, at index 0.
    nearest_real, nearest_made = (smallest_distances(each, each, maximum + 1)[1] for each in (real, made))
    centre = real.double().mean(0)
    points, others = made.double() - centre, real.double() - centre
    narrow, wide = (_squared_radii(others, nearest_real[:, k]) for k in (neighbours, density_neighbours))
    lengths = others.square().sum(1)
    precision, density = [], []
    recall, coverage = torch.zeros(2, len(real), dtype=torch.bool)
    radii = _squared_radii(points, nearest_made[:, neighbours])
    for part, made_radii in zip(points.split(1024), radii.split(1024), strict=True):
        both = part.square().sum(1)[:, None] + lengths
        # A matrix product is much faster than subtraction, and in float64 its rounding is below SAME.
        distance = both - 2 * part @ others.T - SAME * both
        within = distance <= wide
        precision.append((distance <= narrow).any(1))
        density.append(within.double().sum(1) / density_neighbours)
        recall |= (distance <= made_radii[:, None]).any(0)
        coverage |= within.any(0)
    return Manifold(torch.cat(precision).double(), recall.double(), torch.cat(density), coverage.double())


def _squared_radii(points: Tensor, indices: Tensor) -> Tensor:
    """Return the squared distance of each point to the point whose index is in `indices`, computed by subtraction."""
    return torch.cat(
        [(one - points[at]).square().sum(1) for one, at in zip(points.split(1024), indices.split(1024), strict=True)]
    )
