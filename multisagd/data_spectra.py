"""Define spectra that depend on a run's data: the measured power, and white noise outside the corrupted band."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from multisagd.corruption import Corruption
from multisagd.grid import Grid
from multisagd.spectrum import Outside, Spectrum
from multisagd.statistics import DataStatistics


@dataclass(frozen=True, eq=False)
class DataPower(Spectrum):
    """The measured power of the training data, averaged over channels and raised to `exponent`: `W = C^p`.

    If a `floor` is given, in decibels below the largest power, frequencies without data power also get noise.
    """

    statistics: DataStatistics
    exponent: float = 1.0
    floor: float | None = None

    def power(self, grid: Grid) -> Tensor:
        """Return `C^p` on `grid`, shape `grid.half_shape`, interpolated if C was measured on another grid."""
        return (self.statistics.spectrum(self.floor) ** self.exponent).power(grid)


@dataclass(frozen=True, eq=False)
class Omitting(Spectrum):
    """White noise that omits the frequencies of the run's corruption."""

    corruption: Corruption

    def power(self, grid: Grid) -> Tensor:
        """Return 1 outside the corrupted band and 0 inside, shape `grid.half_shape`."""
        return Outside(self.corruption.covariance.spectrum).power(grid)
