"""What data look like along each axis of their grid: power over frequency, and how much neighbours differ.

These need no network and no labels, serve every modality, and are in the units of the axes: for a video, the temporal
spectrum in hertz and the mean difference of frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from multisagd import DataStatistics, Grid
from multisagd.analysis.profiles import Profile, axis_profile


def band_powers(profile: Profile, bands: int) -> list[tuple[float, float, float]]:
    """Return (low, high, mean power) of zero frequency and of `bands` bands of equal width up to Nyquist."""
    top = float(profile.frequency[-1])
    found = [(0.0, 0.0, float(profile.power[0]))]
    for number in range(bands):
        low, high = top * number / bands, top * (number + 1) / bands
        # Rounding must not decide where a frequency on an edge belongs: it is in the band below.
        inside = (profile.frequency > low + 1e-9 * top) & (profile.frequency <= high + 1e-9 * top)
        if bool(inside.any()):
            found.append((low, high, float(profile.power[inside].mean())))
    return found


def neighbour_difference(batches: Iterable[tuple[Tensor, Tensor | None]], grid: Grid, name: str) -> float:
    """Return the mean absolute difference of neighbours along one axis, over all pairs of data; 0 if there are none.

    Batches are (count, channels, *grid), each with its mask (count, 1 or channels, *grid) or None.
    """
    total, pairs = 0.0, 0.0
    for x0, mask in batches:
        difference, both = _neighbours(x0, grid, name, mask)
        total += float((difference * both).sum())
        pairs += float(both.sum())
    return total / pairs if pairs else 0.0


def _neighbours(x0: Tensor, grid: Grid, name: str, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the absolute differences of neighbours, and 1 where both are data."""
    place = x0.ndim - grid.dimensions + grid.names.index(name)
    size = x0.shape[place]
    difference = (x0.narrow(place, 1, size - 1) - x0.narrow(place, 0, size - 1)).abs().double()
    if mask is None:
        return difference, torch.ones_like(difference)
    both = mask.narrow(place, 1, size - 1) & mask.narrow(place, 0, size - 1)
    return difference, both.expand_as(difference).double()


def describe(batches: Sequence[tuple[Tensor, Tensor | None]], grid: Grid, bands: int) -> dict[str, dict[str, object]]:
    """Return per axis its unit, the mean neighbour difference, and the power in bands about the mean of the data."""
    statistics = DataStatistics.measure(list(batches), grid)
    found: dict[str, dict[str, object]] = {}
    for axis in grid.axes:
        profile = axis_profile(statistics.power, grid, axis.name)
        found[axis.name] = {
            "unit": axis.unit,
            "difference": neighbour_difference(batches, grid, axis.name),
            "bands": [list(band) for band in band_powers(profile, bands)],
        }
    return found
