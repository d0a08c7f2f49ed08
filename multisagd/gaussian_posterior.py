"""Compute the exact posterior of stationary Gaussian data given a measurement, as a reference for tests of guidance.

For `x0 ~ N(μ, C)` and `y = H x0 + s n`, with `K = C Hᵀ (H C Hᵀ + s²)⁻¹`:

    E[x0 | y] = μ + K (y - H μ),      x0 | y ~ x + K (y - H x - s n)   for x ~ N(μ, C) and n ~ N(0, 1)

The second is Matheron's rule: a sample of the prior, corrected as if it had been measured. For a filter H the posterior
is, at each frequency, `N(μ + C h*/(C|h|² + s²) (y - hμ), C s²/(C|h|² + s²))`.

`ConditionalGaussianDenoiser` is the exact denoiser of such data under a dense condition: the same formula, applied to
the estimate and the covariance that x_t leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from multisagd.condition import AnyCondition, Condition
from multisagd.covariance import SpectralCovariance, filter_grid
from multisagd.denoiser import GaussianDenoiser
from multisagd.inputs import as_data
from multisagd.measurement import Filtered, Measurement
from multisagd.process import Process
from multisagd.seeds import checked_seeds, derive
from multisagd.spectrum import Flat
from multisagd.statistics import DataStatistics


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """The posterior of Gaussian data with these statistics; `noise` is the standard deviation of the measurement noise.

    Raises:
        ValueError: If the noise is negative.
    """

    statistics: DataStatistics
    measurement: Measurement
    noise: float

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"the noise of a measurement must be at least 0, got {self.noise}")

    def mean(self, y: Tensor) -> Tensor:
        """Return the Wiener estimate `E[x0 | y]`, `(batch, channels, *grid)` in the units of x0, for measurements y."""
        y = as_data(y)
        mean = self.statistics.mean_on(self.measurement.grid.shape).to(y)[None]
        return mean + self._gain(self.measurement.restrict(y) - self.measurement.apply(mean))

    def sample(self, y: Tensor, seeds: Sequence[int]) -> Tensor:
        """Draw samples `(batch, channels, *grid)` of the posterior, one seed per item of y.

        Raises:
            ValueError: If there is not one seed per item.
        """
        y, seeds = as_data(y), checked_seeds(seeds, len(y))
        grid = self.measurement.grid
        prior_seeds, noise_seeds = (
            [derive(seed, f"posterior/{what}") for seed in seeds] for what in ("datum", "noise")
        )
        power, mean = self.statistics.power_on(grid.shape).to(y), self.statistics.mean_on(grid.shape).to(y)
        white = SpectralCovariance(Flat(), grid).to(y.device, torch.promote_types(y.dtype, torch.float32))
        drawn = white.sample(prior_seeds, channels=len(mean)).to(y.dtype)
        x = mean + filter_grid(drawn, power.sqrt(), grid.dimensions).to(y.dtype)
        return x + self._gain(self.measurement.restrict(y) - self.measurement.observe(x, self.noise, noise_seeds))

    def power(self) -> Tensor:
        """Return the posterior power about the mean, `(channels, *half_shape)`, float64.

        Raises:
            ValueError: If the measurement is not a filter, so that the posterior is not stationary.
        """
        if not isinstance(self.measurement, Filtered):
            raise ValueError("only the posterior of a filter is stationary: draw samples instead")
        data = self.statistics.power_on(self.measurement.grid.shape)
        total = data * self.measurement.transfer.abs().square() + self.noise**2
        return torch.where(total > 0, data * self.noise**2 / torch.where(total > 0, total, 1.0), data)

    def _gain(self, residual: Tensor) -> Tensor:
        """Return `K` times the residual, `(batch, channels, *grid)`."""
        power = self.statistics.power_on(self.measurement.grid.shape).to(residual)[None]
        moved = self.measurement.adjoint(self.measurement.solve(residual, power, self.noise**2))
        return filter_grid(moved, power, self.measurement.grid.dimensions).to(residual.dtype)


class ConditionalGaussianDenoiser(nn.Module):
    """Return the exact `E[x0 | x_t, y]` of stationary Gaussian data, where the dense condition is a measurement y.

    It is an oracle for tests of conditional networks and of sampling with them. Given x_t, the data are Gaussian with
    the mean D of `GaussianDenoiser` and, at each frequency, the power `P = CV/(a²C + V)`, with data power C and noise
    power V. Then `E[x0 | x_t, y] = D + P Hᵀ (H P Hᵀ + s²)⁻¹ (y - H D)`. Without a condition, the result is D.

    Raises:
        ValueError: If noise is not diagonal in frequency or correlated between channels, for which this formula does
            not hold.
    """

    def __init__(self, process: Process, posterior: GaussianPosterior) -> None:
        super().__init__()
        self.process, self.posterior = process, posterior
        # The formula treats every channel on its own.
        self.unconditional = GaussianDenoiser(process, replace(posterior.statistics, cross=None))

    def forward(self, x_t: Tensor, t: Tensor | float, condition: AnyCondition = None) -> Tensor:
        """Return `E[x0 | x_t, y]`, `(batch, channels, *grid)`, in the units of x_t.

        `y = condition.dense` is `(batch, channels, *measured)`, in the units of the data; NaN counts as not measured by
        `Masked`. All other parts are ignored.
        """
        estimate = self.unconditional(x_t, t)
        y = condition.dense if isinstance(condition, Condition) else None
        if y is None:
            return estimate
        measurement, noise = self.posterior.measurement, self.posterior.noise
        shape, at = tuple(x_t.shape[2:]), self.process.coefficients(t, estimate)
        data, added = self.posterior.statistics.power_on(shape).to(estimate), at.b**2 * self._noise_power(estimate)
        total = at.a**2 * data + added
        power = torch.where(total > 0, data * added / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        residual = measurement.restrict(y.nan_to_num(0.0)) - measurement.apply(estimate)
        moved = measurement.adjoint(measurement.solve(residual, power, noise**2))
        return estimate + filter_grid(moved, power, self.process.grid.dimensions).to(estimate.dtype)

    def _noise_power(self, x: Tensor) -> Tensor:
        return self.process.covariance.power(tuple(x.shape[2:])).to(x)
