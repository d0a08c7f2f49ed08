"""Define spectra that depend on radial frequency: power laws, blurs and bands.

The radius may include all axes or some, each with a factor, so that a spectrum can be isotropic in space only, or joint
in space and time. The families are from arXiv 2510.09660 and its precursor 2502.10236.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.spectrum import Spectrum

BandUnit = Literal["cycles", "nyquist", "diagonal"]


@dataclass(frozen=True)
class Radial(Spectrum):
    """Base class of spectra that depend on the radius over `axes`, in cycles per unit times `factors`."""

    _: KW_ONLY
    axes: tuple[str, ...] | None = None
    factors: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.axes is not None:
            object.__setattr__(self, "axes", tuple(self.axes))

    def power(self, grid: Grid) -> Tensor:
        """Return the power at the radius of every bin, shape `grid.half_shape`."""
        return self.profile(grid.radius(self.axes, self.factors), grid)

    def profile(self, radius: Tensor, grid: Grid) -> Tensor:
        """Return the power at each radius, in the shape of `radius`."""
        raise NotImplementedError

    def on(self, *axes: str) -> Self:
        """Return this spectrum with its radius restricted to these axes; factors of other axes are dropped."""
        factors = None if self.factors is None else {k: v for k, v in self.factors.items() if k in axes}
        return replace(self, axes=axes, factors=factors)


@dataclass(frozen=True)
class PowerLaw(Radial):
    """Amplitude `w = max(r, corner)^exponent`; negative exponents put the noise at low frequencies.

    `exponent` is the papers' amplitude exponent α. The papers write `w = (r + ε)^α` with ε = 1e-10 (arXiv 2510.09660,
    Eq. for plw-SAGD), which mostly changes the zero-frequency bin; `epsilon=1e-10` reproduces that. By default the
    grid's axes define the corner frequency.

    Raises:
        ValueError: If both `corner` and `epsilon` are given, or either is not positive.
    """

    exponent: float
    corner: float | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corner is not None and self.epsilon is not None:
            raise ValueError("a power law accepts corner or epsilon, not both")
        for name in ("corner", "epsilon"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"a power law's {name} must be positive, got {value}")

    def profile(self, radius: Tensor, grid: Grid) -> Tensor:
        """Return `w²`, shaped like the radius."""
        if self.epsilon is not None:
            return (radius + self.epsilon) ** (2 * self.exponent)
        corner = grid.corner(self.axes, self.factors) if self.corner is None else self.corner
        return radius.clamp(min=corner) ** (2 * self.exponent)


@dataclass(frozen=True)
class Gaussian(Radial):
    """White noise blurred by a Gaussian kernel of standard deviation `length`, in axis units: `w = e^{-2π²ℓ²r²}`."""

    length: float

    def profile(self, radius: Tensor, grid: Grid) -> Tensor:
        """Return `w²`, shaped like the radius."""
        return torch.exp(-((2 * math.pi * self.length * radius) ** 2))


@dataclass(frozen=True)
class Exponential(Radial):
    """Amplitude `w = e^{-rate·r²}` (arXiv 2502.10236); a negative rate puts the noise at high frequencies."""

    rate: float

    def profile(self, radius: Tensor, grid: Grid) -> Tensor:
        """Return `w²`, shaped like the radius."""
        return torch.exp(-2 * self.rate * radius**2)


@dataclass(frozen=True)
class LowPass(Radial):
    """White noise after a Butterworth filter: power `1/(1 + (r/cutoff)^(2·order))`, 0.5 at the cutoff.

    Raises:
        ValueError: If the cutoff is not positive and finite, or the order is not a positive integer.
    """

    cutoff: float
    order: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.cutoff < math.inf and self.order >= 1 and int(self.order) == self.order):
            raise ValueError(f"expected cutoff > 0 and an integer order >= 1, got {self.cutoff} and {self.order}")

    def profile(self, radius: Tensor, grid: Grid) -> Tensor:
        """Return the power at each radius, in the shape of `radius`."""
        return 1 / (1 + (radius / self.cutoff) ** (2 * self.order))


@dataclass(frozen=True)
class Band(Radial):
    """Power 1 inside `low <= r <= high` and 0 outside: there is no noise at other frequencies.

    The unit of `low` and `high` is `cycles` per unit of the axes; or `nyquist`, where each axis's Nyquist frequency is
    1; or `diagonal`, where the corner of the spectrum (Nyquist on every axis) is 1. The papers do not say which unit
    they use.

    Raises:
        ValueError: If 0 <= low <= high does not hold, or the unit is unknown.
    """

    low: float
    high: float
    unit: BandUnit = "cycles"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= self.high:
            raise ValueError(f"a band needs 0 <= low <= high, got [{self.low}, {self.high}]")
        _check_band_unit(self.unit)

    def power(self, grid: Grid) -> Tensor:
        """Return 1 in the band and 0 elsewhere, shape `grid.half_shape`."""
        return _inside(_band_radius(grid, self), self.low, self.high).to(torch.float64)


@dataclass(frozen=True)
class TwoBand(Radial):
    """Two bands with amplitude weights: `W = γ_l²·1[low band] + γ_h²·1[high band]` (arXiv 2510.09660, bpm-SAGD).

    A bin on an edge that the bands share belongs to the low band. Both bands filter the same white noise and are
    normalised together, so bands with equal weights that cover the whole spectrum give exactly white noise.

    Raises:
        ValueError: If the bands are not ordered, a weight is negative, or the unit is unknown.
    """

    low: tuple[float, float] = (0.0, 0.5)
    high: tuple[float, float] = (0.5, 1.0)
    weights: tuple[float, float] = (0.5, 0.5)
    unit: BandUnit = "diagonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low[0] <= self.low[1] <= self.high[0] <= self.high[1]:
            raise ValueError(f"two bands must be ordered and not overlap, got {self.low} and {self.high}")
        if min(self.weights) < 0:
            raise ValueError(f"band weights must be at least 0, got {self.weights}")
        _check_band_unit(self.unit)

    def power(self, grid: Grid) -> Tensor:
        """Return the squared weight of each bin's band, 0 outside both, shape `grid.half_shape`."""
        radius = _band_radius(grid, self)
        low = _inside(radius, *self.low)
        high = _inside(radius, *self.high) & ~low
        return self.weights[0] ** 2 * low.to(torch.float64) + self.weights[1] ** 2 * high.to(torch.float64)


@dataclass(frozen=True)
class Rings(Spectrum):
    """Power by ring: `levels[0]` at zero frequency, the others in rings of equal width up to the spectrum's corner.

    For the rings see `Grid.bands`; their edges are in cycles per sample of every axis. Designed spectra use them.

    Raises:
        ValueError: If there are fewer than two levels, a level is negative or not finite, or all are zero.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        fit = all(math.isfinite(level) and level >= 0 for level in self.levels)
        if len(self.levels) < 2 or not fit or not any(self.levels):
            raise ValueError(
                "rings need at least two levels of power, one for zero frequency and one for every ring; "
                "all must be finite and at least 0, and one must be positive"
            )

    def power(self, grid: Grid) -> Tensor:
        """Return the level of each bin's ring, shape `grid.half_shape`."""
        rings, top = len(self.levels) - 1, 0.5 * math.sqrt(grid.dimensions)
        power = torch.zeros(grid.half_shape, dtype=torch.float64, device="cpu")
        for _, high, weight in grid.bands(rings):
            power = torch.where(weight > 0, self.levels[round(high / top * rings)], power)
        return power


def _check_band_unit(unit: str) -> None:
    if unit not in ("cycles", "nyquist", "diagonal"):
        raise ValueError(f"unknown band unit {unit!r}; choose cycles, nyquist or diagonal")


def _inside(radius: Tensor, low: float, high: float) -> Tensor:
    # Rounding must not exclude a bin on an edge of the band: 3/10 is computed as .30000000000000004.
    return (radius >= low * (1 - 1e-12)) & (radius <= high * (1 + 1e-12))


def _band_radius(grid: Grid, band: Band | TwoBand) -> Tensor:
    if band.unit == "cycles":
        return grid.radius(band.axes, band.factors)
    axes = grid.select(band.axes)
    given = band.factors or {}
    factors = {axis.name: given.get(axis.name, 1.0) / axis.nyquist for axis in axes}
    radius = grid.radius(band.axes, factors)
    return radius if band.unit == "nyquist" else radius / math.sqrt(len(axes))
