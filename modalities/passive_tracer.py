"""Solve for a passive tracer that the flow of `modalities.navier_stokes` carries.

The tracer c has the diffusivity kappa and a mean gradient g along y, from which the velocity v along y makes its
deviations c, as eddies of the air carry heat from a warm side to a cold one:

    dc/dt + u · grad c = kappa laplace(c) - g v

It does not act on the flow. Its variance is fed by the flux down the gradient and lost by diffusion alone: half its
rate of change is `-g <v c> - kappa <|grad c|²>`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.navier_stokes import EXACT, NavierStokes


@dataclass(frozen=True)
class TracerFlow(NavierStokes):
    """The flow with a tracer: states are vorticity in 1/s and tracer, float64 `(batch, 2, size, size)`.

    `diffusivity` is in m²/s, `gradient` in units of the tracer per metre.

    Raises:
        ValueError: If a number is out of range; see also `NavierStokes`.
    """

    diffusivity: float = 0.0
    gradient: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.diffusivity < math.inf:
            raise ValueError(f"diffusivity must be at least 0 and finite, got {self.diffusivity}")
        if not math.isfinite(self.gradient):
            raise ValueError(f"gradient must be finite, got {self.gradient}")

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return (2, self.size, self.size)

    def flux(self, states: Tensor) -> Tensor:
        """Return the mean product of tracer and velocity along y, `(batch,)` in units of the tracer times m/s."""
        _, v = self.velocity(states[:, 0])
        return (v * states[:, 1].to(EXACT)).mean((1, 2))

    def _advection(self, spectrum: Tensor) -> Tensor:
        y, x = self._waves
        flow, shape = spectrum[:, 0], (self.size, self.size)
        u, v = self._velocity(flow)
        tracer = torch.fft.irfft2(spectrum[:, 1], s=shape)
        carried = 1j * (x * torch.fft.rfft2(u * tracer) + y * torch.fft.rfft2(v * tracer)) * self._kept
        _, of_v, _, _ = self._operators
        return torch.stack([self._advected(u, v), -carried - self.gradient * of_v * flow], dim=1)

    def _decay(self, step: float) -> Tensor:
        return torch.stack([super()._decay(step), torch.exp(-self.diffusivity * self._squared * step)])

    def _kick(self, spectrum: Tensor, kicks: Tensor) -> None:
        super()._kick(spectrum[:, 0], kicks)

    def _halvings(self, spectrum: Tensor, step: float) -> list[int]:
        return super()._halvings(spectrum[:, 0], step)
