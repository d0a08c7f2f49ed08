"""Whether a model repeats its training data: distances to the nearest training examples, beside held-out data's.

A model that has learned the distribution is as far from the training examples as new data are. One that repeats them
is nearer, which no distance between sets can see: copies of training examples score like real data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multisagd.metrics.nearest import nearer, smallest_distances

REPEATED = 1 / 3
"""A sample counts as a repetition if its nearest training example is nearer than this share of the second nearest."""


class NearestExamples:
    """Looks up vectors `(points, dimensions)` among examples that come in batches, and are held no longer than that.

    `distances` and `places`, both `(points, count)`, are those of the `count` nearest so far, rising; the places number
    the examples in the order of their coming.
    """

    def __init__(self, points: Tensor, count: int) -> None:
        self.points, self.count, self.seen = points, count, 0
        self.distances = torch.empty(len(points), 0)
        self.places = torch.empty(len(points), 0, dtype=torch.int64)

    def add(self, examples: Tensor) -> None:
        """Search a batch of examples `(batch, dimensions)`."""
        distances, places = smallest_distances(self.points, examples, min(self.count, len(examples)))
        before = (self.distances, self.places)
        self.distances, self.places = nearer(before, (distances, places + self.seen), self.count)
        self.seen += len(examples)


def share_nearer(samples: Tensor, held_out: Tensor) -> float:
    """Return the share of pairs in which the sample is nearer to training data than the held-out datum, ties half.

    Takes distances to the nearest training example, `(count,)` each. 0.5 for new data of the same distribution, more
    if training data are repeated (the statistic of the test in 2004.05675), less if samples are far off.
    """
    ordered, samples = held_out.sort().values, samples.contiguous()
    below, up_to = torch.searchsorted(ordered, samples), torch.searchsorted(ordered, samples, right=True)
    further, equal = len(ordered) - up_to, up_to - below
    return float((further + equal / 2).double().mean() / len(ordered))


def repetitions(distances: Tensor) -> Tensor:
    """Return which samples repeat a single training example, bool `(count,)`, from distances `(count, 2 or more)`.

    Those whose nearest example is far nearer than the second nearest (the rule of 2310.02664).
    """
    return distances[:, 0] <= REPEATED * distances[:, 1]
