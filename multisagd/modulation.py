"""Processes whose coefficients depend on frequency: blurring, noise that changes colour over time, filtered data.

Each is a `Modulation`: called with times and a grid, it returns the factors by which signal and noise of the scalar
process are multiplied at every frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.spectrum import Spectrum


@dataclass(frozen=True)
class Blur:
    """Signal blurred more and more as noise is added: `m = (1-floor)·e^{-2π²ℓ²r²} + floor`, `ℓ = length·sin²(πt/2)`.

    `length` is the standard deviation of the blur at t = 1, in units of the axes (blurring diffusion, arXiv 2209.05557,
    here with the periodic boundary of the Fourier transform).
    """

    length: float
    floor: float = 0.001
    axes: tuple[str, ...] | None = None

    def __call__(self, t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`."""
        time = _per_frequency(t, grid)
        length = self.length * torch.sin(math.pi / 2 * time) ** 2
        radius = grid.radius(self.axes).to(t.device)
        signal = (1 - self.floor) * torch.exp(-2 * (math.pi * length * radius) ** 2) + self.floor
        return signal, torch.ones_like(signal)


@dataclass(frozen=True)
class ColorShift:
    """Noise amplitude that moves from `late` at t = 1 to `early` at t = 0: `s = (1-γ)·w_early + γ·w_late`, `γ = t`.

    Meant for a white covariance; both spectra are normalised to mean power one (arXiv 2402.04930 goes from white noise
    to blue). They must have power at every frequency where the covariance has.
    """

    early: Spectrum
    late: Spectrum

    def __call__(self, t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`."""
        early, late = ((p / grid.mean(p)).sqrt().to(t.device) for p in (self.early.power(grid), self.late.power(grid)))
        noise = torch.lerp(early, late, _per_frequency(t, grid))
        return torch.ones_like(noise), noise


@dataclass(frozen=True)
class Prefilter:
    """Data filtered by `w^{-1}` under unchanged noise: `m = w⁻¹`, with the spectrum normalised to mean power one.

    With a white covariance the signal-to-noise ratio at every frequency is that of noise of this spectrum on unfiltered
    data. Both are one diffusion in other coordinates (arXiv 2510.09660 with `z = Σ^{-1/2} x`), so comparing them tells
    what of shaped noise is due to these ratios, and what to the scale of the network's inputs and targets.

    Raises:
        ValueError: in use, for a spectrum that is empty somewhere.
    """

    spectrum: Spectrum

    def __call__(self, t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the factors of signal and noise, `(batch, *grid.half_shape)`."""
        power = self.spectrum.power(grid)
        if not bool((power > 0).all()):
            raise ValueError(f"{self.spectrum} has frequencies without power: data cannot be divided by it")
        signal = (power / grid.mean(power)).rsqrt().to(t.device).expand(len(t), *grid.half_shape)
        return signal, torch.ones_like(signal)


def _per_frequency(t: Tensor, grid: Grid) -> Tensor:
    return t.double()[(slice(None), *(None,) * grid.dimensions)]
