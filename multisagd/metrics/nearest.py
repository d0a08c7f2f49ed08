"""Nearest neighbours among many vectors, in blocks, without a matrix of all distances."""

from __future__ import annotations

import torch
from torch import Tensor


def smallest_distances(points: Tensor, others: Tensor, count: int, block: int = 256) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distances of each point to its `count` nearest others, ascending, and their indices.

    `points` and `others` are `(…, dimensions)`, both results `(points, count)`. Neighbours are blocks in float32 and
    their distances then computed by subtraction, so that equal vectors are at distance 0.

    Raises:
        ValueError: if there are fewer than `count` others.
    """
    if len(others) < count:
        raise ValueError(f"the nearest {count} of {len(others)} were requested")
    # Without the mean, the products below lose fewer digits.
    centre = others.float().mean(0)
    points, others = points.float() - centre, others.float() - centre
    norms = others.square().sum(1)
    blocks = []
    for part in points.split(block):
        squares = norms - 2 * part @ others.T  # up to the part's own norm, which does not change the order
        places = squares.topk(count, dim=1, largest=False).indices
        distances, order = (part[:, None] - others[places]).norm(dim=2).sort(dim=1)
        blocks.append((distances, places.gather(1, order)))
    return torch.cat([distances for distances, _ in blocks]), torch.cat([places for _, places in blocks])


def nearer(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest of two results `(items, neighbours)` of `smallest_distances`, with their indices."""
    distances, places = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    distances, order = distances.sort(dim=1)
    return distances[:, :count], places.gather(1, order)[:, :count]
