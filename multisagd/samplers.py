"""Define samplers: frozen dataclasses with a pure `step` from a state at one time to a state at an earlier time.

A step uses the process only through multiplicative coefficients, so the same code handles scalar coefficients (on
tensors) and coefficients per frequency (on half spectra). Noise is an argument, already coloured by the process's
covariance; a step that needs noise and gets None raises an error. A deterministic step does not involve the covariance,
because with `w > 0` it commutes with whitening (arXiv 2510.09660).

Notation: `x = a x0 + b ε`, now (t) and then (s < t); `λ = log(a/b)`, half the log-SNR; `h = λ_s - λ_t`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from multisagd.process import Coefficients, Process, posterior_step, x0_weights


@dataclass(frozen=True)
class Point:
    """A time point in a sampling run, with its coefficients (float64); `last` marks the end of the run."""

    t: Tensor
    at: Coefficients
    last: bool = False

    @property
    def half_log_snr(self) -> Tensor:
        """Return half the log-SNR, `λ = log(a/b)`, shaped like `at.a`."""
        return self.at.a.log() - self.at.b.log()


@dataclass(frozen=True)
class SamplerState:
    """The state of a sampling run after `number` steps: x at a point, and the last two estimates of x0 in order."""

    x: Tensor
    point: Point
    estimates: tuple[tuple[Point, Tensor], ...] = ()
    number: int = 0

    def moved(self, x: Tensor, point: Point, *estimates: tuple[Point, Tensor]) -> SamplerState:
        """Return the state with x `(batch, channels, *grid)` at the next point, in the units of the data.

        `estimates` of x0 are appended; the last two are kept.
        """
        estimates = (*self.estimates, *estimates)[-2:]
        return replace(self, x=x, point=point, estimates=estimates, number=self.number + 1)


@dataclass(frozen=True)
class Model:
    """What a step needs: functions for the estimate at a point and the point at a time, the process, and `steps`."""

    estimate: Callable[[Tensor, Point], Tensor]
    point: Callable[[Tensor], Point]
    process: Process
    steps: int


class Sampler(Protocol):
    """The interface of samplers; `stochastic` is whether `step` needs noise."""

    @property
    def stochastic(self) -> bool:
        """Whether steps need noise."""

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step to `then`; x, estimates and `noise` are `(batch, channels, *grid)` in the units of the data.

        Raises:
            ValueError: If noise is needed but None.
        """


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of `factor * tensor`, shaped like the tensors; float64 factors are cast to their precision."""
    return functools.reduce(torch.add, (factor.to(tensor.real.dtype) * tensor for factor, tensor in terms))


def required(noise: Tensor | None, sampler: object) -> Tensor:
    """Return the noise `(batch, channels, *grid)`, in the same units, after checking that it is not None.

    Raises:
        ValueError: If the noise is None.
    """
    if noise is None:
        raise ValueError(f"{sampler} needs noise for this step, got None")
    return noise


@dataclass(frozen=True)
class DDIM:
    """Take DDIM steps, from deterministic (`eta` 0) to ancestral (`eta` 1) (arXiv 2010.02502, Eq. 12).

    `x_s = a_s x0 + √(b_s² - c²) (x_t - a_t x0)/b_t + c z`, where c is eta times the noise factor of the posterior.

    Raises:
        ValueError: If eta is not between 0 and 1.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie between 0 and 1, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether steps need noise."""
        return self.eta > 0

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        x, now = state.x, state.point
        x0 = model.estimate(x, now)
        a, b, a_s, b_s = now.at.a, now.at.b, then.at.a, then.at.b
        injected = self.eta * posterior_step(now.at, then.at)[2]
        keep = (b_s**2 - injected**2).sqrt() / b
        terms = [(keep, x), (a_s - keep * a, x0)]
        if self.eta > 0:
            terms.append((injected, required(noise, self)))
        return state.moved(combine(*terms), then, (now, x0))


@dataclass(frozen=True)
class Ancestral:
    """Take DDPM's ancestral steps (arXiv 2006.11239), between any two times.

    `variance` chooses the variance of the posterior given x0 (`β̃`, the paper's lower choice) or of the forward step
    (`β`). The last step always uses the posterior's variance: the forward step's noise would remain in the sample.
    """

    variance: Literal["posterior", "forward"] = "posterior"
    stochastic = True

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        x, now = state.x, state.point
        x0 = model.estimate(x, now)
        mean_x0, mean_x, factor = posterior_step(now.at, then.at)
        if self.variance == "forward" and not then.last:
            ratio = now.at.a / then.at.a
            factor = (now.at.b**2 - (ratio * then.at.b) ** 2).clamp(min=0).sqrt()
        moved = combine((mean_x0, x0), (mean_x, x), (factor, required(noise, self)))
        return state.moved(moved, then, (now, x0))


@dataclass(frozen=True)
class Euler:
    """Take Euler steps of the probability-flow ODE in the path's own parameter, with optional churn.

    The parameter is σ on exploding paths and in flow matching, and the angle on preserving paths (`Schedule.tangent`).
    Where σ/α lies in `churn_range`, churn first goes back to a noisier time (arXiv 2206.00364, Algorithm 2): σ/α grows
    by the fraction `churn/steps`, at most √2 - 1, and the added noise is scaled by `noise_scale`.

    Raises:
        ValueError: If the churn is negative; from `step`, if coefficients depend on frequency.
    """

    churn: float = 0.0
    churn_range: tuple[float, float] = (0.0, math.inf)
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.churn < 0:
            raise ValueError(f"churn must be at least 0, got {self.churn}")

    @property
    def stochastic(self) -> bool:
        """Whether steps need noise."""
        return self.churn > 0

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        return self._integrate(self._churned(state, model, noise), then, model, corrected=False)

    def _integrate(self, state: SamplerState, then: Point, model: Model, *, corrected: bool) -> SamplerState:
        x, now, schedule = state.x, state.point, model.process.schedule
        if model.process.modulation is not None:
            raise ValueError(f"{type(self).__name__} needs scalar coefficients; use DDIM, DPMSolver or UniPC instead")
        x0 = model.estimate(x, now)
        parameter = [schedule.path_parameter(point.at.a, point.at.b) for point in (now, then)]
        stride = parameter[1] - parameter[0]
        slope = self._slope(x, x0, now, model)
        moved = combine((torch.ones_like(stride), x), (stride, slope))
        # The last step is of first order: there is almost no noise at its end, and the slope divides by the noise.
        if corrected and not then.last:
            end = self._slope(moved, model.estimate(moved, then), then, model)
            moved = combine((torch.ones_like(stride), x), (stride / 2, slope + end))
        return state.moved(moved, then, (now, x0))

    def _slope(self, x: Tensor, x0: Tensor, point: Point, model: Model) -> Tensor:
        skip, out = x0_weights(point.at, model.process.schedule, "flow")
        return combine((1 / out, x0), (-skip / out, x))

    def _churned(self, state: SamplerState, model: Model, noise: Tensor | None) -> SamplerState:
        now = state.point
        ratio = float((-now.half_log_snr.detach()).exp().max())
        if self.churn == 0 or not self.churn_range[0] <= ratio <= self.churn_range[1]:
            return state
        growth = 1 + min(self.churn / model.steps, math.sqrt(2) - 1)
        schedule = model.process.schedule
        back = model.point(schedule.time(schedule.log_snr(now.t) - 2 * math.log(growth)))
        if not back.t > now.t:  # already at the highest noise level
            return state
        keep = back.at.a / now.at.a
        added = (back.at.b**2 - (keep * now.at.b) ** 2).clamp(min=0).sqrt() * self.noise_scale
        return replace(state, x=combine((keep, state.x), (added, required(noise, self))), point=back)


@dataclass(frozen=True)
class Heun(Euler):
    """Take Heun's second-order steps: an Euler step, then the mean of the slopes at both ends.

    See arXiv 2206.00364, Algorithms 1 and 2. Each step needs two estimates, except the last, which is an Euler step.
    """

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        return self._integrate(self._churned(state, model, noise), then, model, corrected=True)
