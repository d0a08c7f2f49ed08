"""Define spectra: noise power as a function of frequency, composable by `*`, `+` and `**`.

A spectrum is a description, independent of any grid: `power(grid)` evaluates it. The algebra acts on the power, that
is, on the squared amplitude weight `W = w²`; overall scale does not matter, because the covariance normalises the mean
power to one. Frequencies are physical (cycles per unit of the axis), so a spectrum keeps its meaning when the grid
changes.

This file contains the algebra, white noise and offsets. Radial spectra are in `radial.py`, spectra along time in
`spacetime.py`, and measured spectra in `table.py`. Sources: arXiv 2510.09660 (shaped forward noise), 2412.03134
(offsets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multisagd.grid import Grid

SUPPORT_THRESHOLD = 1e-14
"""Bins with less than this fraction of the largest power count as empty: float32 cannot resolve their amplitude."""


class Spectrum:
    """Base class of noise power as a function of frequency; subclasses are frozen dataclasses with `power`."""

    def power(self, grid: Grid) -> Tensor:
        """Return the unnormalised power on the half spectrum of `grid`, float64, shape `grid.half_shape`.

        It may depend on the signs of the frequencies; noise uses `even_power`.
        """
        raise NotImplementedError

    def on(self, *axes: str) -> Spectrum:
        """Return this spectrum restricted to some axes, so that it is constant along all others.

        Raises:
            TypeError: If this class of spectrum cannot be restricted.
        """
        raise TypeError(f"{type(self).__name__} cannot be restricted to axes")

    def __mul__(self, other: Spectrum | float) -> Spectrum:
        return Product(self, _as_spectrum(other))

    def __add__(self, other: Spectrum | float) -> Spectrum:
        return Sum(self, _as_spectrum(other))

    __rmul__ = __mul__
    __radd__ = __add__

    def __pow__(self, exponent: float) -> Spectrum:
        return Power(self, exponent)


def even_power(spectrum: Spectrum, grid: Grid) -> Tensor:
    """Return the power of a real field with this spectrum: unnormalised, even, `(*half_shape,)`, float64 on the CPU.

    At the Nyquist frequency of an axis of even size, which is both +1/2 and -1/2 cycles per sample, the result is the
    mean over the two signs, so that spectra that are mirror images along an axis remain mirror images on any grid.
    """
    with torch.device("cpu"):  # regardless of the default device
        return grid.even(_mean_of_signs(spectrum, grid, grid.names[:-1]))


def _mean_of_signs(spectrum: Spectrum, grid: Grid, names: Sequence[str]) -> Tensor:
    # `names` omits the last axis: once all others are flipped, `Grid.even` handles it.
    if not names:
        return spectrum.power(grid).to("cpu", torch.float64)
    power = _mean_of_signs(spectrum, grid, names[1:])
    if grid.axis(names[0]).size % 2:
        return power
    return (power + _mean_of_signs(spectrum, grid.turned(names[0]), names[1:])) / 2


def _as_spectrum(value: Spectrum | float) -> Spectrum:
    return value if isinstance(value, Spectrum) else Flat(value)


@dataclass(frozen=True)
class Product(Spectrum):
    """The product of two powers; if their axes differ, the spectrum is separable."""

    left: Spectrum
    right: Spectrum

    def power(self, grid: Grid) -> Tensor:
        """Return the product of both powers."""
        return self.left.power(grid) * self.right.power(grid)

    def on(self, *axes: str) -> Spectrum:
        """Return the product with both factors restricted to these axes."""
        return Product(self.left.on(*axes), self.right.on(*axes))


@dataclass(frozen=True)
class Sum(Spectrum):
    """The sum of two powers: the noise is a sum of two independent terms."""

    left: Spectrum
    right: Spectrum

    def power(self, grid: Grid) -> Tensor:
        """Return the sum of both powers."""
        return self.left.power(grid) + self.right.power(grid)

    def on(self, *axes: str) -> Spectrum:
        """Return the sum with both terms restricted to these axes."""
        return Sum(self.left.on(*axes), self.right.on(*axes))


@dataclass(frozen=True)
class Power(Spectrum):
    """A spectrum raised to an exponent; bins without power stay empty, even if the exponent is zero or negative."""

    base: Spectrum
    exponent: float

    def power(self, grid: Grid) -> Tensor:
        """Return the power of the base, raised to the exponent."""
        base = self.base.power(grid)
        return torch.where(base > 0, base.clamp(min=torch.finfo(base.dtype).tiny) ** self.exponent, 0.0)

    def on(self, *axes: str) -> Spectrum:
        """Return this spectrum with its base restricted to these axes."""
        return Power(self.base.on(*axes), self.exponent)


@dataclass(frozen=True)
class Flat(Spectrum):
    """White noise.

    Raises:
        ValueError: If the level is negative or not finite.
    """

    level: float = 1.0

    def __post_init__(self) -> None:
        if not (self.level >= 0 and math.isfinite(self.level)):
            raise ValueError(f"a spectrum's level must be at least 0 and finite, got {self.level}")

    def power(self, grid: Grid) -> Tensor:
        """Return `level` in every bin."""
        return torch.full(grid.half_shape, float(self.level), dtype=torch.float64, device="cpu")

    def on(self, *axes: str) -> Spectrum:
        """Return this spectrum, which is constant along every axis."""
        return self


@dataclass(frozen=True)
class Offset(Spectrum):
    """Power `strength²·n` at zero frequency along `axes` (all by default), where n is their number of samples.

    `Flat() + Offset(s)` is offset noise: white noise plus one normal number of standard deviation `s` per channel
    (arXiv 2412.03134). Along the time axis only, it is the shared part of mixed video noise (arXiv 2305.10474).
    """

    strength: float
    axes: tuple[str, ...] | None = None

    def power(self, grid: Grid) -> Tensor:
        """Return the power of a constant along the axes."""
        axes = grid.select(self.axes)
        zero = torch.ones(grid.half_shape, dtype=torch.bool, device="cpu")
        for axis in axes:
            zero = zero & (grid.frequencies(axis.name) == 0)
        return self.strength**2 * math.prod(axis.size for axis in axes) * zero.to(torch.float64)

    def on(self, *axes: str) -> Spectrum:
        """Return the offset along these axes only."""
        return replace(self, axes=axes)


@dataclass(frozen=True)
class Outside(Spectrum):
    """Power 1 where another spectrum has no power, 0 elsewhere: noise that omits the other's frequencies.

    With the spectrum of a corruption, it is the noise of selective omission (arXiv 2510.09660): frequencies without
    noise are never generated.

    Raises:
        ValueError: From `power`, if the other spectrum has no power on the grid.
    """

    inner: Spectrum

    def power(self, grid: Grid) -> Tensor:
        """Return 1 outside the support of the other spectrum, and 0 inside."""
        inner = even_power(self.inner, grid)
        if not bool((inner > 0).any()):
            raise ValueError(f"{self.inner} has no power on a grid of shape {grid.shape}: there is nothing to omit")
        return (inner <= SUPPORT_THRESHOLD * inner.max()).to(torch.float64)

    def on(self, *axes: str) -> Spectrum:
        """Return this spectrum with the other spectrum restricted to these axes."""
        return Outside(self.inner.on(*axes))
