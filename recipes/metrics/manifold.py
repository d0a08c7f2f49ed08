"""Fidelity and variety apart: precision and recall (1904.06991), density and coverage (2002.09797).

Each set is taken for the union of balls around its items that reach to the item's k-th nearest neighbour in the set.
Precision is the share of generated items within the real union, recall that of real items within the generated one.
Density counts in how many real balls a generated item lies, over k, and coverage is the share of real balls that hold
a generated item: one outlier with a large ball inflates precision, and hardly these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recipes.metrics.nearest import smallest_distances


@dataclass(frozen=True, eq=False)
class Manifold:
    """What each item contributes, float64: the mean of each tensor is the metric of that name.

    `precision` and `density` are of the generated items, `recall` and `coverage` of the real ones.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifold(real: Tensor, made: Tensor, neighbours: int = 3, density_neighbours: int = 5) -> Manifold:
    """Return precision, recall, density and coverage, item by item, of features `(count, dimensions)`.

    `neighbours` is the k of precision and recall, `density_neighbours` that of density and coverage, the values of the
    two papers. At finite counts only density has the expectation 1 for equal distributions.

    Raises:
        ValueError: for no more items than neighbours.
    """
    most = max(neighbours, density_neighbours)
    if min(len(real), len(made)) <= most:
        raise ValueError(f"{most} neighbours need more than so many items in each set, got {len(real)} and {len(made)}")
    # The nearest item of a set to one of its own is itself, at place 0.
    real_reach, made_reach = (smallest_distances(each, each, most + 1)[0] for each in (real, made))
    centre = real.float().mean(0)
    others = real.float() - centre
    precision, density = [], []
    recall, coverage = torch.zeros(2, len(real), dtype=torch.bool)
    for part, reach in zip((made.float() - centre).split(1024), made_reach[:, neighbours].split(1024), strict=True):
        distance = torch.cdist(part, others)
        within = distance <= real_reach[:, density_neighbours]
        precision.append((distance <= real_reach[:, neighbours]).any(1))
        density.append(within.double().sum(1) / density_neighbours)
        recall |= (distance <= reach[:, None]).any(0)
        coverage |= within.any(0)
    return Manifold(torch.cat(precision).double(), recall.double(), torch.cat(density), coverage.double())
