"""Test whether a model repeats its training data: whether samples are nearer to it than held-out data are.

Samples of a model that has learned the distribution are as far from the training examples as new data. Repeated
training examples are nearer. Metrics that compare sets do not detect this: copies of training examples score like real
data.
"""

from __future__ import annotations

import torch
from torch import Tensor

REPEATED = 1 / 3
"""A sample counts as a repetition if its smallest distance is below this fraction of the second smallest."""


def smallest_distances(points: Tensor, others: Tensor, count: int, block: int = 256) -> tuple[Tensor, Tensor]:
    """Return the increasing Euclidean distances of each point to its `count` nearest others, and their indices.

    `points` and `others` are `(…, dimensions)`; each of the two results is `(points, count)`. Neighbours are found in
    float32 by matrix products; their distances are then computed by subtraction, so that equal vectors are at distance
    0.

    Raises:
        ValueError: If there are fewer than `count` others.
    """
    if len(others) < count:
        raise ValueError(f"cannot return the nearest {count} of only {len(others)} vectors")
    # With the mean subtracted, the products below lose fewer digits.
    centre = others.float().mean(0)
    points, others = points.float() - centre, others.float() - centre
    norms = others.square().sum(1)
    blocks = []
    for part in points.split(block):
        squares = norms - 2 * part @ others.T  # omits the norm of `part`, which does not change the order
        indices = squares.topk(count, dim=1, largest=False).indices
        distances, order = (part[:, None] - others[indices]).norm(dim=2).sort(dim=1)
        blocks.append((distances, indices.gather(1, order)))
    return torch.cat([distances for distances, _ in blocks]), torch.cat([indices for _, indices in blocks])


def nearer(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Merge two results `(items, neighbours)` of `smallest_distances`; keep the `count` smallest distances."""
    distances, indices = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    distances, order = distances.sort(dim=1)
    return distances[:, :count], indices.gather(1, order)[:, :count]


class NearestExamples:
    """Find the nearest neighbours of vectors `(points, dimensions)` among batches of examples, which are not stored.

    `distances` and `indices`, both `(points, count)`, describe the `count` nearest examples so far, in increasing order
    of distance; `indices` number the examples in the order in which they were added.
    """

    def __init__(self, points: Tensor, count: int) -> None:
        self.points, self.count, self.seen = points, count, 0
        self.distances = torch.empty(len(points), 0)
        self.indices = torch.empty(len(points), 0, dtype=torch.int64)

    def add(self, examples: Tensor) -> None:
        """Search a batch of examples `(batch, dimensions)`, in the units of the samples."""
        distances, indices = smallest_distances(self.points, examples, min(self.count, len(examples)))
        before = (self.distances, self.indices)
        self.distances, self.indices = nearer(before, (distances, indices + self.seen), self.count)
        self.seen += len(examples)


def nearer_fraction(samples: Tensor, held_out: Tensor) -> float:
    """Return the fraction of pairs whose sample is nearer to training data than the held-out example.

    Ties count as one half. The arguments are distances to the nearest training example, `(count,)` each. The result is
    0.5 for new data of the same distribution, larger if training data are repeated (the test statistic of 2004.05675),
    and smaller if samples are far away.
    """
    ordered, samples = held_out.sort().values, samples.contiguous()
    below, up_to = torch.searchsorted(ordered, samples), torch.searchsorted(ordered, samples, right=True)
    further, equal = len(ordered) - up_to, up_to - below
    return float((further + equal / 2).double().mean() / len(ordered))


def repetitions(distances: Tensor) -> Tensor:
    """Return which samples repeat a single training example, bool `(count,)`, given distances `(count, 2 or more)`.

    Their nearest example is much nearer than the second nearest (2310.02664).
    """
    return distances[:, 0] <= REPEATED * distances[:, 1]
