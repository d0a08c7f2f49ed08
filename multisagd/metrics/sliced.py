"""Compute the sliced Wasserstein distance along random lines, on which optimal transport reduces to sorting.

Bonneel et al., Journal of Mathematical Imaging and Vision 51 (2015), eq. 14. It needs no network and does not assume
Gaussian distributions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def directions(dimensions: int, count: int, seed: int = 0) -> Tensor:
    """Draw `count` uniform directions, `(dimensions, count)` of unit length; they depend on the seed only."""
    drawn = torch.randn(count, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (drawn / drawn.norm(dim=1, keepdim=True)).T.float()


def project(data: Tensor, lines: Tensor) -> Tensor:
    """Return the projections of data `(count, …)` onto lines `(dimensions, lines)`: `(count, lines)`."""
    return torch.cat([part.flatten(1).float() @ lines for part in data.split(1024)])


def sliced_distance(projected_a: Tensor, projected_b: Tensor) -> float:
    """Return the sliced Wasserstein-2 distance of two projected sets `(count_a, lines)` and `(count_b, lines)`.

    It is the square root of the mean over lines of the squared distance, in the unit of the data. Like the Fréchet
    distance it is biased upwards at finite counts. Sets of different counts are compared exactly, as step functions.

    Raises:
        ValueError: If a set is empty, or the sets have different numbers of lines.
    """
    (a, lines), (b, others) = projected_a.shape, projected_b.shape
    if lines != others or not min(a, b):
        shapes = f"{tuple(projected_a.shape)} and {tuple(projected_b.shape)}"
        raise ValueError(f"expected two sets of items projected onto the same lines, got {shapes}")
    # Both quantile functions are constant between these probabilities, in units of 1 / (a b).
    edges = torch.cat([torch.arange(1, a + 1) * b, torch.arange(1, b + 1) * a]).unique()
    widths = torch.diff(edges, prepend=edges.new_zeros(1)).double() / (a * b)
    one, other = projected_a.sort(0).values.double(), projected_b.sort(0).values.double()
    difference = one[(edges - 1) // b] - other[(edges - 1) // a]
    return float((difference.square() * widths[:, None]).sum(0).mean().sqrt())
