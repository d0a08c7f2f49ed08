"""Guide sampling with a measurement `y = H x0 + s n`, for noise of any colour; each class wraps a denoiser.

By Tweedie's formula given the measurement, `E[x0 | x_t, y] = (x_t + b² Σ ∇ log p(x_t | y))/a`, and Bayes' rule,
guidance is a correction of the estimate of x0:

    E[x0 | x_t, y] = D + (b²/a) Σ ∇ log p(y | x_t),     D = E[x0 | x_t]

With `p(y | x_t) ≈ N(H D, S)`, and S treated as independent of x_t, the correction is `(b²/a) Σ Jᵀ Hᵀ S⁻¹ (y - H D)`,
where J is the Jacobian of D. Now `(b²/a) Σ Jᵀ = Cov[x0 | x_t]` exactly, so the correction is a Kalman update of D. The
classes differ in their choice of S:

- `DPS` (arXiv 2209.14687): a multiple of the identity;
- `PiGDM` (ΠGDM, Song et al., ICLR 2023): `H R Hᵀ + s²`, where R models `Cov[x0 | x_t]` by one variance, as in the
  paper, or by one variance per frequency, `C V/(a²C + V)` with `V = b²W`, which is exact for Gaussian data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multisagd.channel_covariance import check_unmixed
from multisagd.condition import AnyCondition
from multisagd.covariance import filter_grid
from multisagd.guidance import Interval
from multisagd.inputs import as_times
from multisagd.measurement import Measurement
from multisagd.process import Coefficients, Process
from multisagd.pullback import estimate_and_pullback
from multisagd.sampling import AnyDenoiser
from multisagd.statistics import DataStatistics

TRUSTED: Interval = (-6.0, float("inf"))
"""Log-SNRs at which a network's Jacobian is used. The Jacobian is multiplied by b²/a, which is 20 at -6 and 20,000 at
-20, where the network sees almost no signal and its errors would dominate."""


class _Measured(nn.Module):
    """Guide a denoiser with a measurement, within an interval of log-SNR; `scale` multiplies the correction."""

    def __init__(
        self,
        denoiser: AnyDenoiser,
        measurement: Measurement,
        y: Tensor,
        noise: float,
        scale: float,
        interval: Interval | None,
    ) -> None:
        super().__init__()
        if not denoiser.process.covariance.item_wise:
            denoiser.process.covariance.require_diagonal("guidance with a measurement")
        if noise < 0:
            raise ValueError(f"the noise of a measurement must be at least 0, got {noise}")
        self.denoiser = denoiser
        self.measurement = measurement
        self.y = y
        self.noise = noise
        self.scale = scale
        self.interval = _checked(interval) or (float("-inf"), float("inf"))

    @property
    def process(self) -> Process:
        """The process of the guided denoiser."""
        return self.denoiser.process

    def forward(self, x_t: Tensor, t: Tensor | float, condition: AnyCondition = None) -> Tensor:
        """Return the estimate of x0 given x_t and the measurement, shaped like x_t `(batch, channels, *grid)`."""
        t = as_times(t)
        inside = self.inside(self.interval, t, x_t)
        if not bool(inside.any()):
            return self.denoiser(x_t, t, condition)
        x0, correction = self.corrected(x_t, t, condition)
        return x0 + self.scale * torch.where(inside, correction.to(x0.dtype), 0.0)

    def inside(self, interval: Interval, t: Tensor, x_t: Tensor) -> Tensor:
        """Return whether the log-SNR at each time lies in an interval: booleans, shaped to broadcast against x_t."""
        log_snr = self.process.schedule.log_snr(t.double()).to(x_t.device).reshape(-1, *(1,) * (x_t.dim() - 1))
        return (log_snr >= interval[0]) & (log_snr <= interval[1])

    def corrected(self, x_t: Tensor, t: Tensor, condition: AnyCondition) -> tuple[Tensor, Tensor]:
        """Return the estimate without the measurement, and the correction, each in the shape and units of x_t."""
        x0, pullback = estimate_and_pullback(self.denoiser, x_t, t, condition)
        at = self.process.coefficients(t, x_t)
        gradient = pullback(self.measurement.adjoint(self.solved(self.residual(x0), at)))
        covariance = self.process.covariance.bound(condition, x_t.shape)
        return x0, self.process.scale(covariance.apply(gradient), at.b**2 / at.a)

    def residual(self, x0: Tensor) -> Tensor:
        """Return the residual of the measurement, `y - H D`, in the shape and units of y."""
        return self.measurement.restrict(self.y.to(x0)) - self.measurement.apply(x0)

    def solved(self, residual: Tensor, at: Coefficients) -> Tensor:
        """Return `S⁻¹ (y - H D)`, shaped like y, in inverse units of y."""
        raise NotImplementedError


class DPS(_Measured):
    """Guide with the error of the measurement only (arXiv 2209.14687): S is a multiple of the identity.

    The paper divides the gradient of the squared error by the error's norm and tunes a step size. Here S is the mean
    square of the error itself, at least `noise²`: an estimate of the variance of y given x_t from one measurement. With
    `scale` 1 the correction therefore follows Bayes' rule, for all steps, samplers and schedules.

    `y` is `(batch or 1, channels, *measured)`, and `noise` is the standard deviation of its noise. Guidance is limited
    to an `interval` of log-SNR, `TRUSTED` by default; None means no limit.

    Raises:
        ValueError: If the process's noise is the same for all items, but not diagonal in frequency, `noise` is
            negative, or the interval is not increasing.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        measurement: Measurement,
        y: Tensor,
        noise: float,
        scale: float = 1.0,
        interval: Interval | None = TRUSTED,
    ) -> None:
        super().__init__(denoiser, measurement, y, noise, scale, interval)

    def solved(self, residual: Tensor, at: Coefficients) -> Tensor:
        """Return the residual divided by its mean square, shaped like y, in inverse units of y."""
        count = self.measurement.restrict(torch.ones_like(residual)).flatten(1).sum(1).clamp(min=1)
        variance = (residual.square().flatten(1).sum(1) / count).clamp(min=max(self.noise**2, 1e-12))
        return residual / variance.reshape(-1, *(1,) * (residual.dim() - 1))


class PiGDM(_Measured):
    """Guide with the uncertainty of x0, propagated through the measurement (ΠGDM; Song et al., ICLR 2023).

    R is the model of `Cov[x0 | x_t]` in the module docstring, and `prior` determines it. If `prior` is a number, it is
    the standard deviation σ of the data, and R has the paper's variance `r² = σ²b²/(a²σ² + b²)`. If it is statistics, R
    has one variance per frequency, which is exact for Gaussian data.

    `gradient` is the interval of log-SNR in which the network is differentiated. Outside it, R also replaces
    `(b²/a) Σ Jᵀ` in the correction, which is exact for Gaussian data and half as expensive. If it is None, the network
    is never differentiated.

    See `DPS` for the other arguments; guidance acts at every log-SNR by default.

    Raises:
        ValueError: If the other arguments are invalid for `DPS`, a standard deviation is not positive, or the noise
            follows the condition of each item or is correlated between channels.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        measurement: Measurement,
        y: Tensor,
        noise: float,
        prior: DataStatistics | float,
        scale: float = 1.0,
        interval: Interval | None = None,
        *,
        gradient: Interval | None = TRUSTED,
    ) -> None:
        super().__init__(denoiser, measurement, y, noise, scale, interval)
        denoiser.process.covariance.require_diagonal("ΠGDM (use DPS instead)")
        if not isinstance(prior, DataStatistics) and not prior > 0:
            raise ValueError(f"the standard deviation of the data must be positive, got {prior}")
        check_unmixed(denoiser.process.covariance, "guidance with the uncertainty of the data")
        self.prior = prior
        self.gradient = _checked(gradient) or (float("inf"), float("inf"))

    def corrected(self, x_t: Tensor, t: Tensor, condition: AnyCondition) -> tuple[Tensor, Tensor]:
        """Return the estimate without the measurement, and the correction, each in the shape and units of x_t."""
        inside = self.inside(self.gradient, t, x_t)
        if bool(inside.all()):
            return super().corrected(x_t, t, condition)
        x0, at = self.denoiser(x_t, t, condition), self.process.coefficients(t, x_t)
        moved = self.measurement.adjoint(self.solved(self.residual(x0), at))
        correction = filter_grid(moved, self.power(at).to(moved), self.process.grid.dimensions)
        if bool(inside.any()):
            x0, other = super().corrected(x_t, t, condition)
            correction = torch.where(inside, other, correction)
        return x0, correction

    def power(self, at: Coefficients) -> Tensor:
        """Return the power of R at each frequency, `(batch or 1, channels or 1, *grid.half_shape)`."""
        grid = self.measurement.grid
        like = torch.ones((1, 1, *grid.half_shape), dtype=at.a.dtype, device=at.a.device)
        if isinstance(self.prior, DataStatistics):
            data, noise = self.prior.power_on(grid.shape).to(like), self.process.covariance.power(grid.shape).to(like)
        else:
            data, noise = self.prior**2 * like, like
        total = at.a**2 * data + at.b**2 * noise
        # Where neither data nor noise has power, R is zero.
        return torch.where(total > 0, at.b**2 * noise * data / torch.where(total > 0, total, 1.0), 0.0)

    def solved(self, residual: Tensor, at: Coefficients) -> Tensor:
        """Return the residual divided by `S = H R Hᵀ + noise²`, shaped like y, in inverse units of y."""
        return self.measurement.solve(residual, self.power(at), self.noise**2)


def _checked(interval: Interval | None) -> Interval | None:
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"a guidance interval must be two increasing log-SNRs, got {interval}")
    return interval
