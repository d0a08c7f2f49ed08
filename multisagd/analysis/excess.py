"""Measure corruption as excess power, relative to clean data or to a fitted power law."""

from __future__ import annotations

import torch
from torch import Tensor

from multisagd.analysis.profiles import Profile, fit_power_law
from multisagd.corruption import Corruption
from multisagd.grid import Grid
from multisagd.statistics import DataStatistics


class NoExcessError(ValueError):
    """Raised if no frequency has more power than expected."""


FEWEST = 5
"""Minimum number of rings for the fit of a power law."""


def excess_power(data: DataStatistics, expected: Tensor, errors: float = 4.0, count: int | None = None) -> Tensor:
    """Return the significant excess of the data's power over the expected power: an estimate of `b²(k)`.

    `expected` is a power on the half spectrum: either the power of clean data (`DataStatistics.power.mean(0)`; `count`
    is then their number), or a fitted power law (`multisagd.analysis.profiles`; `count` is then None). A measured power
    is a mean of `count` squared magnitudes, so for Gaussian data its relative standard error is at most `1/√count`
    (times `√2` at self-conjugate frequencies), with equality if all channels are equal. Excesses within `errors`
    standard errors count as zero. Real data have heavier tails than a Gaussian, so use a large value of `errors`, or
    check the result.

    Raises:
        ValueError: If the expected power has a different shape, or is not positive everywhere.
    """
    measured = data.power.mean(0)
    if expected.shape != measured.shape or not bool((expected > 0).all()):
        raise ValueError(f"expected positive power of shape {tuple(measured.shape)}, got {tuple(expected.shape)}")
    spread = torch.where(_own_conjugates(data.grid), 2.0, 1.0)
    variance = spread * measured**2 / data.count
    if count is not None:
        variance = variance + spread * expected**2 / count
    excess = measured - expected
    return torch.where(excess > errors * variance.sqrt(), excess, 0.0)


def estimate_corruption(
    data: DataStatistics, clean: DataStatistics | None = None, errors: float = 4.0, minimum: float | None = None
) -> Corruption:
    """Return the corruption visible in the spectrum of data, relative to clean data on the same grid.

    Where the power of corrupted data exceeds the power of clean data significantly, and by more than the fraction
    `minimum` of it, the excess is the corruption, which gives its level and spectrum. By default `minimum` is 0.1 with
    `clean` data.

    If `clean` is None, a fitted power law is used instead (`fitted_power`), and `minimum` is 1 by default: everything
    that stands out from the spectrum counts as corruption, so `minimum` should be large.

    Raises:
        NoExcessError: If no frequency has such an excess.
        ValueError: If the grids differ, or a power law cannot be fitted.
    """
    if clean is not None and data.grid != clean.grid:
        raise ValueError(f"grids differ: data of shape {data.grid.shape} cannot be compared with {clean.grid.shape}")
    expected = fitted_power(data) if clean is None else clean.power.mean(0)
    expected = expected.clamp(min=1e-12 * float(expected.max()))
    excess = excess_power(data, expected, errors, None if clean is None else clean.count)
    fraction = minimum if minimum is not None else (1.0 if clean is None else 0.1)
    excess = torch.where(excess > fraction * expected, excess, 0.0)
    return measured_corruption(excess, data.grid)


def fitted_power(data: DataStatistics, decibels: float = 3.0) -> Tensor:
    """Fit a power law with a knee to the spectrum of data, ignoring outliers, and return its power `(*half_shape)`.

    The fit uses the median power of rings of frequency, which lines and spots hardly affect. Rings more than `decibels`
    above the fit are omitted one by one, the farthest first, until half of them are left. Zero frequency is excluded.

    Raises:
        ValueError: If the grid has fewer rings than a fit needs.
    """
    grid, power = data.grid, data.power.mean(0)
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes})
    rings = [(radius[weight > 0], power[weight > 0]) for _, high, weight in grid.bands(max(grid.shape) // 2) if high]
    middle = torch.tensor([float(radii.mean()) for radii, _ in rings], dtype=torch.float64, device="cpu")
    median = torch.tensor([float(values.median()) for _, values in rings], dtype=torch.float64, device="cpu")
    kept = median > 0
    if int(kept.sum()) < FEWEST:
        raise ValueError(
            f"fitting a power law requires at least {FEWEST} frequency rings with power, got {int(kept.sum())}"
        )
    fewest = max(FEWEST, int(kept.sum()) // 2)
    while True:
        fit = fit_power_law(Profile(middle[kept], median[kept]))
        above = torch.where(kept, 10 * (median / fit.power(middle)).log10(), 0.0)
        if float(above.max()) <= decibels or int(kept.sum()) <= fewest:
            return fit.power(radius)
        kept[int(above.argmax())] = False


def measured_corruption(excess: Tensor, grid: Grid) -> Corruption:
    """Return the corruption whose power on a grid is `excess`, `(*half_shape,)`.

    Raises:
        NoExcessError: If the power is zero everywhere.
    """
    if not bool((excess > 0).any()):
        raise NoExcessError("no frequency has more power than expected: no corruption is visible in the spectrum")
    return Corruption.of_power(excess, grid)


def _own_conjugates(grid: Grid) -> Tensor:
    """Return which bins of the half spectrum are real for real data: zero or Nyquist along every axis."""
    own = torch.ones(grid.half_shape, dtype=torch.bool, device="cpu")
    for axis in grid.axes:
        cycles = (grid.frequencies(axis.name) * axis.spacing).abs()
        own = own & ((cycles < 1e-9) | ((cycles - 0.5).abs() < 1e-9))
    return own
