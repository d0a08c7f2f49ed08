"""Two processes whose coefficients depend on frequency: blurring, and noise that changes colour over time.

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


def _per_frequency(t: Tensor, grid: Grid) -> Tensor:
    return t.double()[(slice(None), *(None,) * grid.dimensions)]
