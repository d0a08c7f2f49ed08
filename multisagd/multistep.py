"""Sample with multistep exponential integrators: one estimate per step, and higher order from earlier estimates.

They integrate `d(x/b) = x0 d(a/b)` exactly, except for x0, which is extrapolated in `λ = log(a/b)`. Coloured noise
shifts λ by a constant at each frequency, so steps h and their ratios are the same at all frequencies, and nothing here
depends on the covariance (arXiv 2211.01095, 2302.04867).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from multisagd.samplers import Model, Point, SamplerState, combine, required

STILL = 1e-12
"""Steps in λ below this count as zero: they are rounding errors."""


@dataclass(frozen=True)
class DPMSolver:
    """Take multistep DPM-Solver++ steps of order 1 or 2, for the ODE or for the SDE with the same marginals.

    The first step is of first order, and so is the last, unless `first_order_last` is False: the last step in λ is much
    longer than the step before, and extrapolating over it overshoots (arXiv 2211.01095, Eq. 9 and Algorithm 2, and its
    section on SDE solvers).

    Raises:
        ValueError: If the order is not 1 or 2.
    """

    order: Literal[1, 2] = 2
    sde: bool = False
    first_order_last: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"the order of DPM-Solver++ must be 1 or 2, got {self.order}")

    @property
    def stochastic(self) -> bool:
        """Whether steps need noise."""
        return self.sde

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        x, now = state.x, state.point
        x0 = model.estimate(x, now)
        h = then.half_log_snr - now.half_log_snr
        decay = torch.exp(-2 * h) if self.sde else torch.exp(-h)
        gain = -then.at.a * (torch.expm1(-2 * h) if self.sde else torch.expm1(-h))
        keep = then.at.b / now.at.b * (torch.exp(-h) if self.sde else 1)
        weight, terms = torch.ones_like(h), [(keep, x)]
        if self.order == 2 and state.estimates and not (then.last and self.first_order_last):
            before, x0_before = state.estimates[-1]
            stride = now.half_log_snr - before.half_log_snr
            # At a frequency with a constant signal-to-noise ratio (a noise floor) there is nothing to extrapolate from.
            still = stride.abs() < STILL
            extrapolate = torch.where(still, 0.0, 0.5 * h / torch.where(still, 1.0, stride))
            weight = weight + extrapolate
            terms.append((-gain * extrapolate, x0_before))
        terms.append((gain * weight, x0))
        if self.sde:
            terms.append((then.at.b * (1 - decay).clamp(min=0).sqrt(), required(noise, self)))
        return state.moved(combine(*terms), then, (now, x0))


@dataclass(frozen=True)
class UniPC:
    """Take UniPC steps of order 2: data prediction, `B(h) = e^h - 1`, and a corrector that needs no extra estimate.

    The estimate at the predicted point corrects that point and is reused in the next step (arXiv 2302.04867). The last
    step is a first-order prediction, for the reason given in `DPMSolver`.

    Raises:
        ValueError: From `step`, if the signal-to-noise ratio of a frequency does not change (`NoiseFloor`).
    """

    stochastic = False

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step; see `Sampler.step` for shapes and units."""
        x, now = state.x, state.point
        if not state.estimates:
            state = replace(state, estimates=((now, model.estimate(x, now)),))
        before, x0 = state.estimates[:-1], state.estimates[-1][1]
        h = then.half_log_snr - now.half_log_snr
        if bool((h.abs() < STILL).any()):
            raise ValueError("UniPC cannot handle a constant noise level at some frequency: use DDIM or DPMSolver")
        gain = -then.at.a * torch.expm1(-h)
        base = combine((then.at.b / now.at.b, x), (gain, x0))
        if then.last:
            return state.moved(base, then)
        if not before:
            x0_then = model.estimate(base, then)
            corrected = base + combine((gain / 2, x0_then), (-gain / 2, x0))
        else:
            earlier, x0_before = before[-1]
            r = (earlier.half_log_snr - now.half_log_snr) / h
            x0_then = model.estimate(base + combine((gain / (2 * r), x0_before), (-gain / (2 * r), x0)), then)
            early, late = _corrector_weights(h, r)
            early = early / r
            corrected = base + combine((gain * early, x0_before), (gain * late, x0_then), (-gain * (early + late), x0))
        return state.moved(corrected, then, (then, x0_then))


def _corrector_weights(h: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Solve `ρ1 + ρ2 = q1`, `r ρ1 + ρ2 = q2` for the weights of the differences at r h and h (2302.04867, Eq. 11)."""
    phi_1 = torch.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 0.5
    early = (phi_2 - 2 * phi_3) / phi_1 / (1 - r)
    return early, phi_2 / phi_1 - early
