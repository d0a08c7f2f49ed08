"""Define spectra along time: autoregressive noise, drifting noise, and stop bands for mains hum.

Parameters are in physical units of the time axis of a video or an audio clip: time constants in units of the axis
(seconds), velocities in units per unit (pixels per second), frequencies in cycles per unit (hertz). Mixed video noise
(arXiv 2305.10474), which is partly shared by all frames, is `Flat() + Offset(strength, axes=("frame",))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.spectrum import Spectrum


@dataclass(frozen=True)
class Autoregressive(Spectrum):
    """First-order autoregressive noise along one axis, by lag-one `coefficient` or by `time_constant` in axis units.

    The power is `(1-ρ²)/|1-ρe^{-iω}|²` with `ρ = e^{-spacing/time_constant}`: progressive noise in arXiv 2305.10474.
    The grid is periodic, so its first and last samples are neighbours, unless noise is drawn on a longer grid
    (`PaddedCovariance`).

    Raises:
        ValueError: If neither or both parameters are given, |coefficient| >= 1, or the time constant is not positive
            and finite.
    """

    coefficient: float | None = None
    time_constant: float | None = None
    _: KW_ONLY
    axis: str

    def __post_init__(self) -> None:
        if (self.coefficient is None) == (self.time_constant is None):
            raise ValueError("an autoregressive spectrum needs either a coefficient or a time_constant")
        if self.coefficient is not None and not abs(self.coefficient) < 1:
            raise ValueError(f"the autoregressive coefficient must lie between -1 and 1, got {self.coefficient}")
        if self.time_constant is not None and not 0 < self.time_constant < math.inf:
            raise ValueError(f"time_constant must be positive and finite, got {self.time_constant}")

    def power(self, grid: Grid) -> Tensor:
        """Return the autoregressive power along the axis, shape `grid.half_shape`."""
        spacing = grid.axis(self.axis).spacing
        rho = self.coefficient if self.time_constant is None else math.exp(-spacing / self.time_constant)
        assert rho is not None
        return _autoregressive(rho, grid.frequencies(self.axis) * spacing).expand(grid.half_shape)


@dataclass(frozen=True)
class VelocityTuned(Spectrum):
    """Noise that drifts at constant velocity and is autoregressive in time in the moving frame.

    `velocity` is in units per unit of `axis`, by axis name, for example `{"width": 8.0}` for 8 pixels per second to the
    right. Where `f_t + v·f` is zero the noise is constant in the moving frame; elsewhere its power equals the power of
    `Autoregressive` at that frequency: `x_n(r) = ρ x_{n-1}(r - vΔ) + √(1-ρ²) ξ_n(r)` on a periodic grid, with
    `ρ = e^{-Δ/time_constant}`. An empty `velocity` gives `Autoregressive`. For noise with several velocities, add
    spectra.

    Raises:
        ValueError: If the time constant is not positive and finite, or a velocity is along time or not finite.
    """

    velocity: Mapping[str, float]
    time_constant: float
    _: KW_ONLY
    axis: str = "frame"

    def __post_init__(self) -> None:
        if not 0 < self.time_constant < math.inf:
            raise ValueError(f"time_constant must be positive and finite, got {self.time_constant}")
        finite = all(isinstance(v, int | float) and math.isfinite(v) for v in self.velocity.values())
        if self.axis in self.velocity or not finite:
            raise ValueError(
                f"velocity must map axes other than {self.axis!r} to finite numbers, in units per unit of "
                f"{self.axis!r}; got {dict(self.velocity)}"
            )

    def power(self, grid: Grid) -> Tensor:
        """Return the power at every frequency, shape `grid.half_shape`."""
        spacing = grid.axis(self.axis).spacing
        shifted = grid.frequencies(self.axis).expand(grid.half_shape)
        for name, velocity in self.velocity.items():
            shifted = shifted + float(velocity) * grid.frequencies(name)
        return _autoregressive(math.exp(-spacing / self.time_constant), shifted * spacing)


PITCH = ("Hz", "mel", "octave")
"""Units of the axis along which a spectrogram shows pitch."""


@dataclass(frozen=True)
class HarmonicStop(Spectrum):
    """Power 0 within `width / 2` of a fundamental frequency and its harmonics along one axis, 1 elsewhere.

    It gives noise without mains hum: `HarmonicStop(50.0, width=2.0, axis="time")` on a waveform whose time axis is in
    seconds omits 50, 100, 150 Hz, …, so a model trained with it neither learns nor generates them (selective omission,
    arXiv 2510.09660). `harmonics` limits their number; None means all. If the periods of a hum do not fill the excerpt
    exactly, it leaks beyond its stop band: it is reduced, not removed.

    Raises:
        ValueError: If a frequency or width is not positive, stop bands overlap, or there is no harmonic; from `power`,
            if the grid is so short that a stop band contains none of its frequencies, or is that of a spectrogram.
    """

    fundamental: float
    _: KW_ONLY
    width: float
    axis: str
    harmonics: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.width < self.fundamental < math.inf:
            raise ValueError(f"expected 0 < width < fundamental, got {self.width} and {self.fundamental}")
        if self.harmonics is not None and self.harmonics < 1:
            raise ValueError(f"harmonics must be at least 1, or None for all, got {self.harmonics}")

    def power(self, grid: Grid) -> Tensor:
        """Return 0 in the stop bands and 1 elsewhere, shape `grid.half_shape`."""
        axis, frequency = grid.axis(self.axis), grid.frequencies(self.axis).abs()
        if pitch := next((each.name for each in grid.axes if each.unit in PITCH and each != axis), None):
            raise ValueError(
                f"HarmonicStop: on a grid with an axis {pitch}, frequencies along {self.axis} are those of temporal "
                "modulation and not of what one hears, so no hum is stopped: use a waveform (modality=audio_waveform)"
            )
        nearest = (frequency / self.fundamental).round()
        # Rounding must not exclude a bin on the edge of a stop.
        stopped = (frequency - nearest * self.fundamental).abs() <= self.width / 2 * (1 + 1e-9)
        stopped &= nearest >= 1
        if self.harmonics is not None:
            stopped &= nearest <= self.harmonics
        last = min(math.floor(axis.nyquist / self.fundamental), self.harmonics or axis.size)
        if len(nearest[stopped].unique()) < last:
            raise ValueError(
                f"along the {self.axis} axis of {axis.size * axis.spacing:.4g} {axis.unit}, frequencies are "
                f"{1 / (axis.size * axis.spacing):.4g} apart, so stop bands of width={self.width:g} miss harmonics "
                f"of {self.fundamental:g}: make width at least that spacing, or use a longer grid"
            )
        return (~stopped).to(torch.float64).expand(grid.half_shape)


def _autoregressive(rho: float, cycles_per_sample: Tensor) -> Tensor:
    return (1 - rho**2) / (1 - 2 * rho * torch.cos(2 * math.pi * cycles_per_sample) + rho**2)
