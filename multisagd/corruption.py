"""Corruption that is confined to a part of the spectrum: making it, and finding it in data.

`x' = x + n` with Gaussian n of power `b²(k)` at frequency k, zero outside some band. What a band noise, rain, a moiré
pattern, the hum of the mains or a flicker is follows from the spectrum alone (arXiv 2510.09660, selective omission).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from multisagd.covariance import SpectralCovariance
from multisagd.grid import Grid
from multisagd.spectrum import Spectrum
from multisagd.statistics import DataStatistics
from multisagd.table import Table

Scale = Literal["deviation", "bins"]


class Corruption:
    """Gaussian noise of a spectrum that is empty somewhere, at a level, on a grid.

    `scale` says what `level` is. With `deviation` it is the standard deviation of the corruption, in units of the data:
    the papers' convention, in which a narrow band has much power in each of its bins. With `bins` it is the amplitude
    in the loudest bin, so that a level of 1 is as loud there as white noise of unit variance, however narrow the band.

    Raises:
        ValueError: for a level that is not positive and finite, an unknown scale, or a spectrum without power.
    """

    def __init__(self, spectrum: Spectrum, grid: Grid, level: float = 1.0, scale: Scale = "deviation") -> None:
        if not 0 < level < math.inf:
            raise ValueError(f"the level of a corruption must be positive and finite, got {level}")
        if scale not in ("deviation", "bins"):
            raise ValueError(f"unknown scale {scale!r}; choose deviation or bins")
        self.covariance = SpectralCovariance(spectrum, grid)
        self.level = level
        self.scale: Scale = scale

    @property
    def grid(self) -> Grid:
        """The grid of the data."""
        return self.covariance.grid

    @property
    def deviation(self) -> float:
        """Standard deviation of the corruption over the grid."""
        loudest = 1.0 if self.scale == "deviation" else float(self.covariance.power().max())
        return self.level / math.sqrt(loudest)

    def power(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the power `b²(k)` of the corruption on the half spectrum, float64."""
        return self.deviation**2 * self.covariance.power(shape)

    def noise(self, shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Draw the corruption of a batch `(batch, channels, *grid)`, one seed per item."""
        split = len(shape) - self.grid.dimensions
        return self.deviation * self.covariance.sample(seeds, tuple(shape[1:split]), tuple(shape[split:]))

    def corrupt(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return `x0 + n`, shaped like x0, one seed per item."""
        return x0 + self.noise(x0.shape, seeds).to(x0)


def excess_power(data: DataStatistics, expected: Tensor, errors: float = 4.0, count: int | None = None) -> Tensor:
    """Return the power that data have above what is expected, where it is more than chance: an estimate of `b²(k)`.

    `expected` is a power on the half spectrum: that of clean data (`DataStatistics.power.mean(0)`, with their `count`)
    or of a power law fitted to the rest (`multisagd.analysis.profiles`), for which leave `count` out. A measured power
    is a mean of `count` squared magnitudes, so for Gaussian data its relative standard error is `1/√count` per channel
    (`√2` of that at the frequencies that are their own conjugates); excesses within `errors` of them are taken as none.
    Data are heavier in their tails than a Gaussian, so keep `errors` generous, or look at the result.

    Raises:
        ValueError: if the expected power has another shape, or is not positive everywhere.
    """
    measured = data.power.mean(0)
    if expected.shape != measured.shape or not bool((expected > 0).all()):
        raise ValueError(f"expected a positive power of shape {tuple(measured.shape)}, got {tuple(expected.shape)}")
    channels = len(data.power)
    spread = torch.where(_own_conjugates(data.grid), 2.0, 1.0)
    variance = spread * measured**2 / (data.count * channels)
    if count is not None:
        variance = variance + spread * expected**2 / (count * channels)
    excess = measured - expected
    return torch.where(excess > errors * variance.sqrt(), excess, 0.0)


def estimate_corruption(
    data: DataStatistics, clean: DataStatistics, errors: float = 4.0, least: float = 0.1
) -> Corruption:
    """Return the corruption that the spectrum of data shows beside clean data of the same kind on the same grid.

    Where the power of corrupted data exceeds that of clean data by more than chance, and by more than the share `least`
    of it, the excess is the corruption's; its level and spectrum follow.

    Raises:
        ValueError: if the grids differ, or there is no such excess.
    """
    if data.grid != clean.grid:
        raise ValueError(f"data on a grid of shape {data.grid.shape} cannot be compared with {clean.grid.shape}")
    expected = clean.power.mean(0)
    excess = excess_power(data, expected.clamp(min=1e-12 * float(expected.max())), errors, clean.count)
    excess = torch.where(excess > least * expected, excess, 0.0)
    return measured_corruption(excess, data.grid)


def measured_corruption(excess: Tensor, grid: Grid) -> Corruption:
    """Return the corruption of this power on the half spectrum of a grid.

    Raises:
        ValueError: if it is zero everywhere.
    """
    total = float(grid.mean(excess))
    if total <= 0:
        raise ValueError("no frequency has more power than expected: there is no corruption to be seen in the spectrum")
    return Corruption(Table(excess, grid), grid, math.sqrt(total))


def _own_conjugates(grid: Grid) -> Tensor:
    """Return which bins of the half spectrum are real for real data: zero or Nyquist along every axis."""
    own = torch.ones(grid.half_shape, dtype=torch.bool)
    for axis in grid.axes:
        cycles = (grid.frequencies(axis.name) * axis.spacing).abs()
        own = own & ((cycles < 1e-9) | ((cycles - 0.5).abs() < 1e-9))
    return own
