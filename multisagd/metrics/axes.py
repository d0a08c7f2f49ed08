"""Compute statistics along one axis of a grid: differences between neighbours, and frequency bands.

They need no network and no labels, work for every modality, and use the unit of the axis: for a video, they are the
temporal spectrum in hertz and the mean difference between frames.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from multisagd import Axis, Grid


def bands_along(axis: Axis, frequency: Tensor, bands: int) -> list[tuple[str, Tensor]]:
    """Return (name, indices of points) for zero frequency and for bands of equal width up to the highest frequency.

    `frequency` `(points,)` increases from zero, in cycles per unit of the axis. Bands without a point are omitted.
    """
    top = float(frequency[-1])
    subsets = [("0", torch.tensor([0]))]
    for number in range(bands):
        low, high = top * number / bands, top * (number + 1) / bands
        # Rounding must not decide the band of a frequency on an edge: it belongs to the lower band.
        inside = (frequency > low + 1e-9 * top) & (frequency <= high + 1e-9 * top)
        if bool(inside.any()):
            subsets.append((f"{low:.3g}-{high:.3g} / {axis.unit}", inside.nonzero()[:, 0]))
    return subsets


def neighbour_differences(batches: Iterable[tuple[Tensor, Tensor | None]], grid: Grid, name: str) -> Tensor:
    """Return the sum of absolute differences between neighbours along an axis, and the number of pairs, per item.

    Batches are `(count, channels, *grid)`, each with its mask `(count, 1 or channels, *grid)` or None; the result is
    float64 `(items, 2)`. Pairs with padding are ignored. The last and first samples of a periodic axis are neighbours.
    """
    sums = []
    for x0, mask in batches:
        axis = x0.ndim - grid.dimensions + grid.names.index(name)
        if grid.axis(name).periodic:
            x0 = torch.cat([x0, x0.narrow(axis, 0, 1)], axis)
            mask = mask if mask is None else torch.cat([mask, mask.narrow(axis, 0, 1)], axis)
        size = x0.shape[axis]
        difference = (x0.narrow(axis, 1, size - 1) - x0.narrow(axis, 0, size - 1)).abs().double()
        both = torch.ones_like(difference)
        if mask is not None:
            both = (mask.narrow(axis, 1, size - 1) & mask.narrow(axis, 0, size - 1)).expand_as(difference).double()
        sums.append(torch.stack([(difference * both).flatten(1).sum(1), both.flatten(1).sum(1)], dim=1))
    return torch.cat(sums)


def mean_difference(items: Tensor) -> Tensor:
    """Return the mean absolute difference, in the units of the data, of `neighbour_differences` `(items, 2)`."""
    total, pairs = items.sum(0)
    return total / pairs.clamp(min=1)
