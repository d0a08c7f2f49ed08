"""Whether a model repeats its training data: distances to the nearest training examples, beside held-out data's.

A model that has learned the distribution is as far from the training examples as new data are. One that repeats them
is nearer, which no distance between sets can see: copies of training examples score like real data.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from recipes.metrics.nearest import nearer, smallest_distances

REPEATED = 1 / 3
"""A sample counts as a repetition if its nearest training example is nearer than this share of the second nearest."""


def nearest_examples(points: Tensor, examples: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return distances to the `count` nearest examples and their places, `(points, count)`, fewer if there are fewer.

    `points` are vectors `(points, dimensions)`, `examples` batches of such, numbered in their order: so a training set
    is read once and never held.

    Raises:
        ValueError: without examples.
    """
    start = 0
    best: tuple[Tensor, Tensor] | None = None
    for batch in examples:
        distances, places = smallest_distances(points, batch, min(count, len(batch)))
        found = (distances, places + start)
        best = found if best is None else nearer(best, found, count)
        start += len(batch)
    if best is None:
        raise ValueError("there are no examples to search")
    return best


def share_nearer(samples: Tensor, held_out: Tensor) -> float:
    """Return the share of pairs in which the sample is nearer to training data than the held-out datum, ties half.

    Takes distances to the nearest training example, `(count,)` each. 0.5 for new data of the same distribution, more
    if training data are repeated (the statistic of the test in 2004.05675), less if samples are far off.
    """
    ordered = held_out.sort().values
    further = len(ordered) - torch.searchsorted(ordered, samples, right=True)
    equal = torch.searchsorted(ordered, samples, right=True) - torch.searchsorted(ordered, samples)
    return float((further + equal / 2).double().mean() / len(ordered))


def repetitions(distances: Tensor) -> Tensor:
    """Return which samples repeat a single training example, bool `(count,)`, from distances `(count, 2 or more)`.

    Those whose nearest example is far nearer than the second nearest (the rule of 2310.02664).
    """
    return distances[:, 0] <= REPEATED * distances[:, 1]
