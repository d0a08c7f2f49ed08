"""Define noise whose channels differ or are correlated: given spectra, given matrices, or what data show.

See `multisagd.channel_covariance` for the forms, and `multisagd.cross_spectra` for measuring data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from multisagd.channel_covariance import ChannelPower, ChannelSpectrum
from multisagd.cross_spectra import MAX_CHANNELS, channel_basis, in_basis, shrunk
from multisagd.grid import Grid
from multisagd.spectrum import Spectrum, even_power
from multisagd.statistics import DataStatistics
from multisagd.table import Table

Channels = Literal["each", "basis", "full"]
INDEPENDENT = 1e-9
"""Power of the weakest combination of channels relative to the strongest, below which they depend on each other."""


@dataclass(frozen=True)
class PerChannel(ChannelSpectrum):
    """Noise with a spectrum for every channel, or for every component of an orthonormal basis of the channels.

    Each spectrum is scaled to a mean power of one, times its entry of `levels` (one by default). Row i of `basis` has
    the weights with which channel i adds up the components: for images, for example, brightness and two colour
    differences.

    Raises:
        ValueError: If there are no spectra, the numbers of spectra, levels and rows differ, a level is negative, or the
            basis is not orthonormal.
    """

    spectra: tuple[Spectrum, ...]
    levels: tuple[float, ...] | None = None
    basis: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.spectra)
        if not count:
            raise ValueError("spectra must have an entry for each channel")
        if self.levels is not None and len(self.levels) != count:
            raise ValueError(f"there are {count} spectra, but {len(self.levels)} levels: give each spectrum one level")
        if not all(level >= 0 and math.isfinite(level) for level in self.levels or ()):
            raise ValueError(f"levels must be at least 0 and finite, got {self.levels}")
        if self.basis is None:
            return
        if len(self.basis) != count or any(len(row) != count for row in self.basis):
            raise ValueError(f"the basis of {count} channels must have {count} rows of {count} numbers")
        matrix = torch.tensor(self.basis, dtype=torch.float64, device="cpu")
        unit = torch.eye(count, dtype=torch.float64, device="cpu")
        if not bool(((matrix.T @ matrix - unit).abs() <= 1e-3).all()):
            raise ValueError("the basis must be orthonormal: its columns of length 1 and at right angles to each other")

    def channel_power(self, grid: Grid) -> ChannelPower:
        """Return the powers `(channels, *half_shape)` and the basis, which is made orthonormal to all digits.

        Raises:
            ValueError: If a spectrum has no power on the grid, or cannot be evaluated on it.
        """
        powers = []
        for spectrum, level in zip(self.spectra, self.levels or (1.0,) * len(self.spectra), strict=True):
            power = even_power(spectrum, grid)
            mean = float(grid.mean(power))
            if not mean > 0:
                raise ValueError(f"{spectrum} has no power at any frequency of a grid of shape {grid.shape}")
            powers.append(level * power / mean)
        if self.basis is None:
            return ChannelPower(torch.stack(powers))
        left, _, right = torch.linalg.svd(torch.tensor(self.basis, dtype=torch.float64, device="cpu"))
        return ChannelPower(torch.stack(powers), left @ right)


@dataclass(frozen=True, eq=False)
class CrossTable(ChannelSpectrum):
    """Noise with a Hermitian matrix of channels at every frequency of the statistics' grid: their `cross` power.

    On another grid, matrices are interpolated linearly in frequency.

    Raises:
        ValueError: If the statistics have no cross power, or have more than 8 channels; from `channel_power`, if the
            channels depend on each other at some frequency.
    """

    statistics: DataStatistics

    def __post_init__(self) -> None:
        channels = len(_cross_of(self.statistics))
        if channels > MAX_CHANNELS:
            raise ValueError(
                f"a matrix at every frequency is limited to {MAX_CHANNELS} channels, but the data have {channels}: "
                "choose one basis for all frequencies (spectrum.channels=basis), or a spectrum for every channel (each)"
            )

    def channel_power(self, grid: Grid) -> ChannelPower:
        """Return the components of the matrices on `grid`, each frequency with its own basis."""
        cross = self.statistics.cross_on(grid.shape)
        assert cross is not None
        found = ChannelPower.of_matrix(cross)
        weakest, strongest = found.power[0], found.power[-1]
        singular = (weakest <= INDEPENDENT * strongest) & (strongest > 0)
        if bool(singular.any()):
            raise ValueError(
                f"at {int((singular * grid.multiplicity).sum()):,} of {grid.numel:,} frequencies the channels depend "
                "on each other, as in grey images stored in colour, so some combinations of channels would have no "
                "noise: set a floor (spectrum.floor=60), or use a spectrum for every channel (spectrum.channels=each)"
            )
        return found


@dataclass(frozen=True, eq=False)
class DataChannels(ChannelSpectrum):
    """Noise with the power of the training data in every channel, raised to `exponent`, and with their correlation.

    `channels` says how: a spectrum for `each` channel, independent of the others; one orthonormal `basis` of the
    channels, that of the eigenvectors of their covariance, with a spectrum per component; or the `full` matrix of
    channels at every frequency, shrunk as in `multisagd.cross_spectra.shrunk` and raised to the exponent as a matrix.
    If a `floor` is given, in decibels below the largest power, weaker components get that much noise.

    Raises:
        ValueError: If the statistics lack the cross power, which `basis` and `full` need, or the floor is negative; for
            `full`, if there are more than 8 channels; from `channel_power`, also if the channels depend on each other
            and there is no floor.
    """

    statistics: DataStatistics
    channels: Channels = "each"
    exponent: float = 1.0
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.channels not in ("each", "basis", "full"):
            raise ValueError(f"unknown channels {self.channels!r}; choose each, basis or full")
        if self.floor is not None and not self.floor >= 0:
            raise ValueError(f"floor must be at least 0 dB below the largest power, got {self.floor}")
        if self.channels != "each":
            _cross_of(self.statistics)
        if self.channels == "full":
            CrossTable(self.statistics)

    def channel_power(self, grid: Grid) -> ChannelPower:
        """Return the powers of the components on `grid`, interpolated if it differs from that of the data."""
        # What is estimated depends on the data's own grid only, and is interpolated to others.
        if self.channels == "each":
            own = self.statistics.grid
            found = ChannelPower(torch.stack([even_power(Table(each, own), grid) for each in self.statistics.power]))
        elif self.channels == "basis":
            found = self._basis(grid)
        else:
            found = self._full(grid)
        if self.floor is not None:
            lowest = float(found.power.max()) * 10 ** (-self.floor / 10)
            found = ChannelPower(found.power.clamp(min=lowest), found.basis)
        return found.raised(self.exponent)

    def _basis(self, grid: Grid) -> ChannelPower:
        basis, cross = (
            channel_basis(_cross_of(self.statistics), self.statistics.grid),
            self.statistics.cross_on(grid.shape),
        )
        assert cross is not None
        return ChannelPower(in_basis(cross, basis).diagonal().real.movedim(-1, 0).clamp(min=0), basis)

    def _full(self, grid: Grid) -> ChannelPower:
        estimate = shrunk(_cross_of(self.statistics), self.statistics.grid, self.statistics.count)
        statistics = replace(self.statistics, cross=estimate)
        if self.floor is None:
            return CrossTable(statistics).channel_power(grid)
        cross = statistics.cross_on(grid.shape)
        assert cross is not None
        return ChannelPower.of_matrix(cross)  # the floor makes singular matrices regular


def _cross_of(statistics: DataStatistics) -> Tensor:
    if statistics.cross is None:
        raise ValueError(
            "the cross power of the channels was not measured with these statistics: measure the data with "
            "multisagd.cross_spectra.measure_cross, or give every channel its own spectrum (channels=each)"
        )
    return statistics.cross
