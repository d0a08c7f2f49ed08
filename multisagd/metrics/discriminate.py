"""Test whether a logistic classifier can distinguish generated from real items using a single frequency band.

As in arXiv 2505.11278, if the generated distribution is correct, the two kinds are indistinguishable, and the accuracy
on unseen items is 0.5; otherwise the accuracy shows which bands are wrong. The test uses the log power of single
frequencies, but no phases and no joint structure of several frequencies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multisagd import Grid
from multisagd.libraries import importing
from multisagd.seeds import derive
from multisagd.statistics import transforms_about

MIN_RELATIVE_POWER = 1e-10
"""Added to the power before the logarithm, as a fraction of its mean over real items, since bins may be empty."""


@dataclass(frozen=True)
class BandAccuracy:
    """The accuracy on unseen items, its standard error, and the number of these items."""

    accuracy: float
    error: float
    count: int


def band_powers(
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], grid: Grid, bands: int, maximum: int = 128, seed: int = 0
) -> list[tuple[float, float, Tensor]]:
    """Return (low, high, power `(items, features)`) of each band of `Grid.bands`, with edges in cycles per sample.

    The features are the bins of all channels, or a random choice of `maximum` of them, the same for every set of data.
    """
    rings = grid.bands(bands)
    bins: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in rings]
    zero: Tensor | None = None
    for batch in batches:
        channels = (batch if isinstance(batch, Tensor) else batch[0]).shape[1]
        if zero is None:
            zero = torch.zeros(channels, *grid.shape, dtype=torch.float64)
            bins = [
                _features(weight, channels, maximum, derive(seed, "bands", n)) for n, (*_, weight) in enumerate(rings)
            ]
        for transform in transforms_about(zero, [batch], grid):
            power = transform.abs().square().flatten(1)
            for parts, indices in zip(features, bins, strict=True):
                parts.append(power[:, indices])
    return [(low, high, torch.cat(parts)) for (low, high, _), parts in zip(rings, features, strict=True)]


def _features(weight: Tensor, channels: int, maximum: int, seed: int) -> Tensor:
    """Return indices in the flattened `(channels, *half_shape)` of a band's bins, at most `maximum`."""
    indices = weight.expand(channels, *weight.shape).flatten().nonzero()[:, 0]
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:maximum]
    return indices[order.sort().values]


def discriminability(real: Tensor, made: Tensor, seed: int = 0) -> BandAccuracy:
    """Return the accuracy of logistic regression on the log power of two sets, with powers `(items, features)`.

    The regression is fitted to a random half of each set and evaluated on the other halves, with equal weights. The
    number of features is at most a quarter of the number of fitted items.

    Raises:
        ValueError: If a set has fewer than four items.
    """
    with importing("sklearn", "the logistic test of bands"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    if min(len(real), len(made)) < 4:
        raise ValueError(f"a logistic test needs at least 4 items in each set, got {len(real)} and {len(made)}")
    minimum = MIN_RELATIVE_POWER * float(real.mean()) + 1e-300
    logs = [(each + minimum).log() for each in (real, made)]
    halves = [_halves(each, derive(seed, "halves", number)) for number, each in enumerate(logs)]
    fitted = sum(len(seen) for seen, _ in halves)
    used = torch.randperm(real.shape[1], generator=torch.Generator().manual_seed(derive(seed, "used")))
    used = used[: max(1, fitted // 4)]
    x = torch.cat([seen[:, used] for seen, _ in halves]).numpy()
    y = np.repeat([0, 1], [len(seen) for seen, _ in halves])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))
    model.fit(x, y)
    fractions = [float((model.predict(left[:, used].numpy()) == n).mean()) for n, (_, left) in enumerate(halves)]
    counts = [len(left) for _, left in halves]
    # Add one correct and one wrong prediction: otherwise a few items, all correct, would have a standard error of zero.
    likely = [(fraction * count + 1) / (count + 2) for fraction, count in zip(fractions, counts, strict=True)]
    variance = sum(fraction * (1 - fraction) / count for fraction, count in zip(likely, counts, strict=True)) / 4
    return BandAccuracy(sum(fractions) / 2, variance**0.5, sum(counts))


def _halves(features: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    middle = len(features) // 2
    return features[order[:middle]], features[order[middle:]]
