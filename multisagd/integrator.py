"""Sample Gaussian data exactly in any number of steps, even one.

At each frequency, the probability-flow ODE is `dy/dτ = x0 - μ` with `y = (x - aμ)/b` and `τ = a/b`. The estimate is
split into the Wiener filter of Gaussian data, `τC/(τ²C + W)·y`, and a residual r from the network. The first part is
integrated exactly (its transfer functions are in arXiv 2502.00180), and r is taken as constant over a step:

    y_s = √(q_s/q_t) y_t + r √q_s (asinh(τ_s√(C/W)) - asinh(τ_t√(C/W)))/√C,   q = τ²C + W

For C = 0 this is DDIM. DPM-Solver (2206.00927) also solves a linear part exactly, but in log-SNR only; here it
includes the data's spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.channel_covariance import ChannelCovariance
from multisagd.covariance import from_half_spectrum, to_half_spectrum
from multisagd.process import Process
from multisagd.samplers import Model, Point, SamplerState
from multisagd.statistics import DataStatistics

QUIET = 1e-12
"""Minimum power of C, as a fraction of the largest: smaller values are rounding errors."""


@dataclass(frozen=True)
class GaussianIntegrator:
    """Take deterministic first-order exponential steps that are exact for Gaussian data with these `statistics`.

    If the channels of the noise are correlated, the steps are those of its components, and exact for data whose
    components are uncorrelated.

    Raises:
        ValueError: From `step`, if the process has coefficients per frequency, its noise has no power at some frequency
            or is not diagonal in frequency, or the data have a different number of channels.
    """

    statistics: DataStatistics
    stochastic = False

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        x, now = state.x, state.point
        x0 = model.estimate(x, now)
        dimensions = model.process.grid.dimensions
        shape = tuple(x.shape[-dimensions:])
        data, white = self._powers(model.process, x)
        a, b, a_s, b_s = (each.reshape(()) for each in (now.at.a, now.at.b, then.at.a, then.at.b))
        t, s = a / b, a_s / b_s
        q_t, q_s, ratio = t**2 * data + white, s**2 * data + white, (data / white).sqrt()
        stride = (torch.asinh(s * ratio) - torch.asinh(t * ratio)) / data.sqrt()
        # Each term multiplies a deviation from the mean by a gain per frequency.
        keep, push = b_s / b * (q_s / q_t).sqrt(), b_s * q_s.sqrt() * stride
        wiener = a * data / (a**2 * data + b**2 * white)
        mean = self.statistics.mean_on(shape).to(x)
        away, aim = (to_half_spectrum(each, dimensions) for each in (x - a.to(x.dtype) * mean, x0 - mean))
        covariance = model.process.covariance
        if isinstance(covariance, ChannelCovariance):
            away, aim = (covariance.to_components(each, shape) for each in (away, aim))
        moved = (keep - push * wiener).to(away.real.dtype) * away + push.to(away.real.dtype) * aim
        if isinstance(covariance, ChannelCovariance):
            moved = covariance.from_components(moved, shape)
        moved = from_half_spectrum(moved, shape).to(x.dtype) + a_s.to(x.dtype) * mean
        return state.moved(moved, then, (now, x0))

    def check(self, process: Process) -> None:
        """Check that the process has scalar coefficients and noise at every frequency, diagonal in frequency.

        Raises:
            ValueError: If the process does not meet these conditions.
        """
        process.covariance.require_diagonal("GaussianIntegrator (use DDIM instead)")
        if process.modulation is not None:
            raise ValueError("GaussianIntegrator needs scalar coefficients; use DDIM instead")
        if not bool(process.covariance.support().all()):
            raise ValueError("GaussianIntegrator needs noise at every frequency; use DDIM instead")

    def _powers(self, process: Process, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the powers of data and noise on the grid of x, float64."""
        self.check(process)
        shape = tuple(x.shape[-process.grid.dimensions :])
        if x.shape[1] != len(self.statistics.mean):
            raise ValueError(f"statistics have {len(self.statistics.mean)} channels, but the samples have {x.shape[1]}")
        covariance = process.covariance
        if isinstance(covariance, ChannelCovariance):
            data, noise = covariance.power_in_components(self.statistics, shape), covariance.components(shape).power
        else:
            data, noise = self.statistics.power_on(shape), covariance.power(shape)
        return data.clamp(min=QUIET * float(data.max())).to(x.device), noise.to(x.device)
