"""What data look like along each axis of their grid: power over frequency, and how much neighbours differ.

These need no network and no labels, serve every modality, and are in the units of the axes: for a video, the temporal
spectrum in hertz and the mean difference of frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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


def on_logarithmic_axis(frequency: Tensor) -> Tensor:
    """Return frequencies from zero upwards as a logarithmic axis can show them, zero at half the lowest."""
    moved = frequency.clone()
    moved[0] = moved[1] / 2 if len(moved) > 1 else 1.0
    return moved


def draw_profiles(powers: Mapping[str, Tensor], grid: Grid, path: Path) -> None:
    """Draw the profile of every axis, one curve for each named power `(..., *half_shape)`, as one PNG.

    The power at zero frequency stands at half the lowest frequency, for the scales are logarithmic.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(3.8 * grid.dimensions + 0.4, 3.2), layout="constrained")
    plots = figure.subplots(1, grid.dimensions, squeeze=False)[0]
    for plot, axis in zip(plots, grid.axes, strict=True):
        for name, power in powers.items():
            if not bool((power > 0).any()):  # a single example has no power about the mean, and a log scale no zero
                continue
            profile = axis_profile(power, grid, axis.name)
            frequency = on_logarithmic_axis(profile.frequency)
            floor = float(profile.power.max()) * 1e-12
            plot.loglog(frequency.numpy(), profile.power.clamp(min=floor).numpy(), marker=".", label=name)
        # Labels between the powers of ten run into one another on so small a plot.
        plot.xaxis.set_minor_formatter(NullFormatter())
        plot.set(xlabel=f"cycles per {axis.unit}", title=axis.name)
    plots[0].set_ylabel("power")
    if plots[-1].has_data():
        plots[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
