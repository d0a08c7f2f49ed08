"""Whether a simple classifier can tell generated items from real ones by one band of frequencies: a logistic test.

As in 2505.11278: where the generated distribution is right, nothing tells the two apart and the accuracy on items not
seen in fitting is 0.5; where it is wrong, the accuracy says in which band. The test sees log magnitudes, one by one: no
phases, and nothing that only shows in several frequencies together.
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

LEAST = 1e-10
"""Added to the power before the logarithm, as a share of its mean over real items: bins may have none."""


@dataclass(frozen=True)
class BandAccuracy:
    """Accuracy on unseen items, its standard error, and how many of these there were."""

    accuracy: float
    error: float
    count: int


def band_powers(
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], grid: Grid, bands: int, most: int = 128, seed: int = 0
) -> list[tuple[float, float, Tensor]]:
    """Return (low, high, power `(items, features)`) of the bands of `Grid.bands`, edges in cycles per sample.

    The features are the bins of all channels, or `most` of them by chance, the same for every set of data.
    """
    rings = grid.bands(bands)
    chosen: list[Tensor] = []
    found: list[list[Tensor]] = [[] for _ in rings]
    zero: Tensor | None = None
    for batch in batches:
        channels = (batch if isinstance(batch, Tensor) else batch[0]).shape[1]
        if zero is None:
            zero = torch.zeros(channels, *grid.shape, dtype=torch.float64)
            chosen = [
                _features(weight, channels, most, derive(seed, "bands", n)) for n, (*_, weight) in enumerate(rings)
            ]
        for transform in transforms_about(zero, [batch], grid):
            power = transform.abs().square().flatten(1)
            for parts, places in zip(found, chosen, strict=True):
                parts.append(power[:, places])
    return [(low, high, torch.cat(parts)) for (low, high, _), parts in zip(rings, found, strict=True)]


def _features(weight: Tensor, channels: int, most: int, seed: int) -> Tensor:
    """Return places in the flattened `(channels, *half_shape)` of a band's bins, at most so many."""
    places = weight.expand(channels, *weight.shape).flatten().nonzero()[:, 0]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:most]
    return places[order.sort().values]


def discriminability(real: Tensor, made: Tensor, seed: int = 0) -> BandAccuracy:
    """Return how well logistic regression on log power tells two sets of powers `(items, features)` apart.

    It is fitted to a random half of each set and judged on the other halves, weighted alike. At most a quarter as many
    features are used as items are fitted to.

    Raises:
        ValueError: for fewer than four items in a set.
    """
    with importing("sklearn", "telling bands apart"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    if min(len(real), len(made)) < 4:
        raise ValueError(f"a logistic test needs at least 4 items in each set, got {len(real)} and {len(made)}")
    least = LEAST * float(real.mean()) + 1e-300
    logs = [(each + least).log() for each in (real, made)]
    halves = [_halves(each, derive(seed, "halves", number)) for number, each in enumerate(logs)]
    fitted = sum(len(seen) for seen, _ in halves)
    used = torch.randperm(real.shape[1], generator=torch.Generator().manual_seed(derive(seed, "used")))
    used = used[: max(1, fitted // 4)]
    x = torch.cat([seen[:, used] for seen, _ in halves]).numpy()
    y = np.repeat([0, 1], [len(seen) for seen, _ in halves])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))
    model.fit(x, y)
    shares = [float((model.predict(left[:, used].numpy()) == n).mean()) for n, (_, left) in enumerate(halves)]
    counts = [len(left) for _, left in halves]
    # One more right and one more wrong: else a handful that are all right would seem to leave no doubt.
    likely = [(share * count + 1) / (count + 2) for share, count in zip(shares, counts, strict=True)]
    variance = sum(share * (1 - share) / count for share, count in zip(likely, counts, strict=True)) / 4
    return BandAccuracy(sum(shares) / 2, variance**0.5, sum(counts))


def _halves(features: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    middle = len(features) // 2
    return features[order[:middle]], features[order[middle:]]
