"""Reduce spectra to curves, radially or along an axis, with confidence bands, and fit power laws to them.

Power varies from example to example, and within one example its deviations at neighbouring frequencies are correlated.
So the uncertainty of a curve is estimated from the variation among the curves of single examples, not among
frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.statistics import DataStatistics, transforms_about

RADIUS = "radius"
"""Name of the profile as a function of radial frequency; profiles along axes have the axes' names."""
NORMAL_95 = 1.959964
"""Half the width of the central 95 % of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Profile:
    """Power as a function of frequency: `power[..., i]` at `frequency[i]` >= 0, with its standard error if measured."""

    frequency: Tensor
    power: Tensor
    error: Tensor | None = None

    def confidence(self) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the 95 % confidence band, shaped like `power`, clamped at zero.

        Raises:
            ValueError: If the errors were not measured.
        """
        if self.error is None:
            raise ValueError("this profile has no standard errors: measure it on data with `measure_profiles`")
        half = NORMAL_95 * self.error
        return (self.power - half).clamp(min=0), self.power + half

    def thinned(self, maximum: int) -> Profile:
        """Return at most `maximum` points `(points,)`: averages over intervals of equal width in log frequency.

        Errors are not included. Frequencies must be positive and increasing, and the power must have no leading
        dimensions.
        """
        if len(self.frequency) <= maximum:
            return Profile(self.frequency, self.power)
        low, high = (math.log10(float(self.frequency[end])) for end in (0, -1))
        edges = torch.logspace(low, high, maximum, device="cpu").double()
        index = torch.searchsorted(edges, self.frequency.contiguous(), right=True)
        _, index = torch.unique(index, return_inverse=True)
        count = torch.bincount(index).double()
        return Profile(torch.bincount(index, self.frequency) / count, torch.bincount(index, self.power) / count)


def axis_profile(power: Tensor, grid: Grid, name: str) -> Profile:
    """Return the profile along one axis of a power `(..., *half_shape)`, averaged over leading dimensions.

    Frequencies are in cycles per unit of the axis; the result is averaged over opposite signs and all other axes.
    """
    axis = grid.axis(name)
    frequency = torch.fft.rfftfreq(axis.size, d=axis.spacing, dtype=torch.float64, device="cpu")
    flat = power.to(torch.float64).reshape(-1, *grid.half_shape).mean(0)
    index = (grid.frequencies(name).abs() * axis.spacing * axis.size).round().long().expand(grid.half_shape)
    return Profile(frequency, _averages(flat, index, grid.multiplicity, len(frequency)))


def radial_profile(power: Tensor, grid: Grid, rings: int | None = None) -> Profile:
    """Return the radial profile of a power `(..., *half_shape)`, with the radius in cycles per sample of every axis.

    The first point is zero frequency; the others are `rings` of equal width up to the corner of the spectrum (by
    default one bin wide along the longest axis). The frequency of a ring is the mean radius of its bins. Leading
    dimensions are kept.
    """
    index, frequency = _rings(grid, rings)
    flat = power.to(torch.float64).reshape(-1, *grid.half_shape)
    averages = torch.stack([_averages(each, index, grid.multiplicity, len(frequency)) for each in flat])
    return Profile(frequency, averages.reshape(*power.shape[: -grid.dimensions], -1))


def profile_of(power: Tensor, grid: Grid, along: str, rings: int | None = None) -> Profile:
    """Return the profile of a power `(..., *half_shape)` along an axis or radially ("radius"), averaged over the rest.

    Frequencies are in the unit given by `unit_of`; for `rings` see `radial_profile`.
    """
    if along != RADIUS:
        return axis_profile(power, grid, along)
    return radial_profile(power.reshape(-1, *grid.half_shape).mean(0), grid, rings)


def unit_of(along: str, grid: Grid) -> str:
    """Return the unit of the frequencies of a profile along an axis or a radial profile ("radius")."""
    return f"cycles per {'sample' if along == RADIUS else grid.axis(along).unit}"


def ring_indices(grid: Grid, rings: int | None = None) -> Tensor:
    """Return the index of the point of `radial_profile` to which each frequency belongs, int64 `(*half_shape,)`."""
    return _rings(grid, rings)[0]


def _rings(grid: Grid, rings: int | None) -> tuple[Tensor, Tensor]:
    """Return the index of each bin's ring, counted without empty rings, and the mean radius of each ring."""
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes})
    top = 0.5 * math.sqrt(grid.dimensions)
    count = rings or max(1, round(top * max(grid.shape)))
    index = torch.where(radius < 1e-9, 0, 1 + (radius / top * count - 1e-9).long().clamp(0, count - 1))
    _, index = torch.unique(index, return_inverse=True)
    return index, _averages(radius, index, grid.multiplicity, int(index.max()) + 1)


def _averages(values: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return the weighted average of the values with each index below `count`; `index` has the shape of `values`."""
    sums = torch.zeros(2, count, dtype=torch.float64, device="cpu")
    sums.index_add_(1, index.flatten(), torch.stack([(values * weight).flatten(), weight.flatten()]))
    return sums[0] / sums[1].clamp(min=1e-300)


def measure_profiles(
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], statistics: DataStatistics, rings: int | None = None
) -> dict[str, Profile]:
    """Return the radial profile ("radius") and the profile of every axis by its name, with standard errors.

    Power is averaged over channels, `(points,)`, in squared units of the data.

    `batches` are as in `DataStatistics.measure`; power is measured about the mean of `statistics`. Padding leaks into
    the power of single examples: if there is padding, the curves come from the statistics, and only their relative
    errors come from single examples.

    Raises:
        ValueError: If there are fewer than two examples.
    """
    grid = statistics.grid
    items: dict[str, list[Tensor]] = {name: [] for name in (RADIUS, *grid.names)}
    frequency: dict[str, Tensor] = {}
    padded = False
    for batch in batches:
        padded |= not isinstance(batch, Tensor) and batch[1] is not None and not bool(batch[1].all())
        (transform,) = transforms_about(statistics.mean, [batch], grid)
        for power in transform.abs().square().mean(1):
            for name in items:
                profile = profile_of(power, grid, name, rings)
                items[name].append(profile.power)
                frequency[name] = profile.frequency
    count = len(items[RADIUS])
    if count < 2:
        raise ValueError(f"profiles with standard errors require at least two examples, got {count}")
    # The mean was measured on the same data, so their power about it is too small by a factor of 1 - 1/n.
    scale = count / (count - 1)
    curves = {name: torch.stack(each) * scale for name, each in items.items()}
    profiles = {}
    for name, each in curves.items():
        mean, error = each.mean(0), each.std(0) / math.sqrt(count)
        if padded:
            whole = profile_of(statistics.power, grid, name, rings)
            mean, error = whole.power, error * (whole.power / mean.clamp(min=1e-300))
        profiles[name] = Profile(frequency[name], mean, error)
    return profiles


@dataclass(frozen=True)
class PowerLawFit:
    """A fit of `power ≈ level · (r² + knee²)^(exponent/2)`, where r is the radius in cycles per sample.

    It is flat far below the knee and a power law above it. `residual` is the root mean square of the error in decibels.
    """

    exponent: float
    knee: float
    level: float
    residual: float

    def power(self, radius: Tensor) -> Tensor:
        """Return the fitted power at each radius, in the shape of `radius`."""
        return self.level * (radius**2 + self.knee**2) ** (self.exponent / 2)


def fit_power_law(profile: Profile) -> PowerLawFit:
    """Fit a power law with a knee to a profile, in decibels, with equal weights; zero frequency is included.

    Raises:
        ValueError: If fewer than four points have power.
    """
    kept = profile.power > 0
    radius, power = profile.frequency[kept].double(), profile.power[kept].double()
    if len(radius) < 4:
        raise ValueError(
            f"fitting a power law with a knee requires at least four frequencies with power, got {len(radius)}"
        )
    logs, positive = power.log(), radius[radius > 0]
    low, high = math.log(float(positive.min()) / 10), math.log(float(positive.max()))

    def residuals(parameters: np.ndarray, /) -> np.ndarray:
        level, exponent, log_knee = (float(each) for each in parameters)
        return (level + exponent / 2 * (radius**2 + math.exp(2 * log_knee)).log() - logs).numpy()

    slope = float((logs[-1] - logs[1]) / (radius[-1] / radius[1]).log()) if radius[1] > 0 else -2.0
    slope = max(-19.0, min(19.0, slope))
    best = min(
        (
            scipy.optimize.least_squares(
                residuals, (float(logs[-1]), slope, start), bounds=([-300, -20, low], [300, 20, high])
            )
            for start in (low + 0.01, (low + high) / 2)
        ),
        key=lambda each: float(each.cost),
    )
    level, exponent, log_knee = (float(each) for each in best.x)
    decibels = 10 / math.log(10) * math.sqrt(2 * float(best.cost) / len(radius))
    return PowerLawFit(exponent, math.exp(log_knee), math.exp(level), decibels)


def coherence(cross: Tensor, grid: Grid, bands: int = 8) -> list[tuple[float, float, Tensor]]:
    """Return (low, high, coherence) per band of `Grid.bands`: the squared correlation `(channels, channels)`.

    Coherence lies in [0, 1] and is the squared correlation of the band-passed channels: cross powers and powers are
    summed over the band, in both halves of the spectrum, before they are divided.
    """
    result = []
    for low, high, weight in grid.bands(bands):
        summed = (cross.real * weight).flatten(2).sum(2)  # the other half of the spectrum cancels imaginary parts
        power = summed.diagonal()
        norm = (power[:, None] * power).clamp(min=1e-300)
        result.append((low, high, summed.square() / norm))
    return result
