"""Define processes with coefficients per frequency: blur, noise that changes colour or has a floor, filtered data.

Each is a `Modulation`: called with times and a grid, it returns factors per frequency for the signal and the noise of
the scalar process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multisagd.channel_covariance import check_shared
from multisagd.corruption import Corruption
from multisagd.covariance import SpectralCovariance
from multisagd.grid import Grid
from multisagd.inputs import as_times
from multisagd.recent import Recent
from multisagd.schedule import Schedule
from multisagd.spectrum import Spectrum, even_power


@dataclass(frozen=True)
class Blur:
    """Blur the signal more as noise is added: `m = (1-floor)·e^{-2π²ℓ²r²} + floor`, `ℓ = length·sin²(πt/2)`.

    `length` is the standard deviation of the blur at t = 1, in units of the axes (blurring diffusion, arXiv 2209.05557,
    here with the periodic boundary of the Fourier transform).
    """

    length: float
    floor: float = 0.001
    axes: tuple[str, ...] | None = None

    def __call__(self, t: Tensor | float, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`, at times t."""
        time = _per_frequency(t, grid)
        length = self.length * torch.sin(math.pi / 2 * time) ** 2
        radius = grid.radius(self.axes).to(time.device)
        signal = (1 - self.floor) * torch.exp(-2 * (math.pi * length * radius) ** 2) + self.floor
        return signal, torch.ones_like(signal)


@dataclass(frozen=True)
class ColorShift:
    """Shift the noise amplitude from `late` at t = 1 to `early` at t = 0: `s = (1-γ)·w_early + γ·w_late`, `γ = t`.

    It is meant for a white covariance. Both spectra are normalised to mean power one (arXiv 2402.04930 goes from white
    noise to blue). They must have power at every frequency at which the covariance has power.
    """

    early: Spectrum
    late: Spectrum
    _amplitudes: Recent[tuple[Tensor, ...]] = field(default_factory=Recent, init=False, repr=False, compare=False)

    def __call__(self, t: Tensor | float, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`, at times t."""
        times = _per_frequency(t, grid)

        def make() -> tuple[Tensor, ...]:
            powers = (even_power(each, grid) for each in (self.early, self.late))
            return tuple((power / grid.mean(power)).sqrt().to(times.device) for power in powers)

        early, late = self._amplitudes.get((grid, times.device), make)
        noise = torch.lerp(early, late, times)
        return torch.ones_like(noise), noise


@dataclass(frozen=True)
class Prefilter:
    """Filter the data by `m = w⁻¹` and leave the noise unchanged; the spectrum w² is normalised to mean power one.

    With a white covariance, the signal-to-noise ratio at every frequency is the same as for noise of this spectrum on
    unfiltered data. Both are the same diffusion in different coordinates (arXiv 2510.09660 with `z = Σ^{-1/2} x`), so
    comparing them separates the effect of these ratios from the effect of the scale of the network's inputs and
    targets.

    Raises:
        ValueError: From calls, if the spectrum has no power at some frequency.
    """

    spectrum: Spectrum
    _signals: Recent[Tensor] = field(default_factory=Recent, init=False, repr=False, compare=False)

    def __call__(self, t: Tensor | float, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`, at times t."""
        times = _per_frequency(t, grid)

        def make() -> Tensor:
            power = even_power(self.spectrum, grid)
            if not bool((power > 0).all()):
                raise ValueError(
                    f"{self.spectrum} has frequencies without power, so data cannot be divided by it: use a spectrum "
                    "that is positive everywhere"
                )
            return (power / grid.mean(power)).rsqrt().to(times.device)

        signal = self._signals.get((grid, times.device), make).expand(len(times), *grid.half_shape)
        return signal, torch.ones_like(signal)


class NoiseFloor:
    """Keep the noise power above a corruption's power: `b²W = max(σ²W, (1 + margin) α² c²)`, a `Modulation`.

    Raises:
        ValueError: If the margin is not positive, or the noise has no power at a frequency where the corruption has
            power, is not diagonal in frequency, or differs between channels.
    """

    def __init__(
        self, schedule: Schedule, covariance: SpectralCovariance, corruption: Corruption, margin: float = 1.0
    ) -> None:
        covariance.require_diagonal("a noise floor")
        check_shared(covariance, "a noise floor")
        if not margin > 0:
            raise ValueError(f"the margin above a corruption must be positive, got {margin}")
        if bool(((corruption.power() > 0) & ~covariance.support()).any()):
            raise ValueError("a noise floor needs noise wherever the corruption has power: remove spectrum=omitting")
        self.schedule, self.covariance, self.corruption, self.margin = schedule, covariance, corruption, margin
        self._floors: Recent[Tensor] = Recent()

    def _floor(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the floor relative to the covariance's power, cached because every step needs it."""

        def make() -> Tensor:
            power, corruption = self.covariance.power(shape), self.corruption.power(shape)
            relative = torch.where(power > 0, corruption / torch.where(power > 0, power, 1.0), 0.0)
            return ((1 + self.margin) * relative).to(device)

        return self._floors.get((shape, device), make)

    def __call__(self, t: Tensor | float, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`, at times t."""
        times = _per_frequency(t, grid)
        alpha, sigma = self.schedule.alpha_sigma(times)
        noise = (self._floor(grid.shape, times.device) * (alpha / sigma) ** 2).clamp(min=1).sqrt()
        return torch.ones_like(noise), noise


def _per_frequency(t: Tensor | float, grid: Grid) -> Tensor:
    return as_times(t).double().reshape(-1, *(1,) * grid.dimensions)
