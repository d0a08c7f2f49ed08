"""Sample data, starting from the process's prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from multisagd.condition import AnyCondition
from multisagd.inputs import as_data, as_times
from multisagd.process import Process
from multisagd.samplers import Model, Point, Sampler, SamplerState
from multisagd.schedule import Schedule
from multisagd.seeds import checked_seeds, derive

Spacing = Literal["time", "log_snr", "karras"]

Callback = Callable[[int, int, Tensor, Tensor], None]
"""Called as `callback(step, steps, x, x0)` after each step, with the number of steps done, the total number, the state
and the latest estimate."""


class AnyDenoiser(Protocol):
    """The interface of denoisers for sampling: a process, and a call that returns `E[x0 | x_t]`."""

    @property
    def process(self) -> Process:
        """The process for which the denoiser was made."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return `E[x0 | x_t]`, shaped like x_t `(batch, channels, *grid)`, at times t `(batch,)`."""


def time_steps(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "time",
    start: float = 1.0,
    ends: tuple[float, float] | None = None,
) -> Tensor:
    """Return `steps + 1` decreasing times from `start` to 0, float64 of shape `(steps + 1,)`.

    Steps are equal in the schedule's time (the default), in log-SNR, or in `(σ/α)^{1/7}` (arXiv 2206.00364, Eq. 5). The
    last two need no steps where noise hides the data or is invisible: with `ends`, such as those of `spectral_ends`,
    they start at the first of these log-SNRs (at `start` if that is less noisy), and all but the last step, which ends
    at time 0, lead to the second; if that is the schedule's last log-SNR, so do all.

    Raises:
        ValueError: If there is no step, the start is outside (0, 1], the ends do not increase or lie outside the range
            of the schedule, ends are given for steps equal in time, or the spacing is unknown.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, got {steps}")
    if not 0 < start <= 1:
        raise ValueError(f"sampling must start at a time in (0, 1], got {start}")
    if spacing == "time":
        if ends is not None:
            raise ValueError("ends are log-SNRs, but the steps are equal in time: choose spacing log_snr or karras")
        return start * _even(steps)
    if spacing not in ("log_snr", "karras"):
        raise ValueError(f"unknown spacing {spacing!r}; choose time, log_snr or karras")
    first, last = schedule.log_snr(torch.tensor([start, 0.0], dtype=torch.float64, device="cpu")).tolist()
    if ends is None:
        times = schedule.time(_spaced(first, last, steps, spacing))
        times[0] = start
    else:
        low, high = max(first, ends[0]), min(last, ends[1])
        if not (ends[0] < ends[1] and low < high):
            raise ValueError(
                f"ends must be two increasing log-SNRs between {first:.4g} and {last:.4g}, got {list(ends)}"
            )
        # If the second end is the schedule's own, a step from there to time 0 would change nothing.
        before = steps if high == last else max(steps - 1, 1)
        times = torch.cat([schedule.time(_spaced(low, high, before, spacing))[:steps], torch.zeros(1, device="cpu")])
    times[-1] = 0.0
    return times


def _even(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")


def _spaced(first: float, last: float, steps: int, spacing: Spacing) -> Tensor:
    """Return `steps + 1` log-SNRs from the first to the last, spaced evenly or as in EDM."""
    if spacing == "log_snr":
        return last + (first - last) * _even(steps)
    return -14 * (math.exp(-last / 14) + (math.exp(-first / 14) - math.exp(-last / 14)) * _even(steps)).log()


@torch.no_grad()
def sample(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    shape: Sequence[int],
    steps: int,
    seeds: Sequence[int],
    condition: AnyCondition = None,
    *,
    spacing: Spacing = "time",
    times: Tensor | None = None,
    initial: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw samples of `shape` = (batch, channels, *grid), one seed per item; the same seed gives the same sample.

    Noise that follows the condition of each item (`ConditionedCovariance`) follows `condition`, whatever guidance does.

    Decreasing `times` override `steps` and `spacing`. `initial` replaces the prior as x at the first time: to start
    from a noisy example, pass `process.add_noise(x0, t, noise)` with times that start at t. The result, of shape
    `shape`, is x at the last time, including the schedule's noise there, which is negligible at t = 0 except for σ_min
    in Karras' schedule.

    Raises:
        ValueError: If there is not one seed per item, times are outside [0, 1] or do not decrease, or two times have
            the same (clamped) log-SNR.
    """
    process = denoiser.process.bound(condition, shape)
    seeds = checked_seeds(seeds, *shape[:1])
    times = time_steps(process.schedule, steps, spacing) if times is None else as_times(times).to("cpu", torch.float64)
    if len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise ValueError("sampling requires at least two times, in decreasing order")
    if not bool((process.schedule.log_snr(times).diff() > 0).all()):
        raise ValueError(
            "two times have the same log-SNR after clamping to the schedule's log_snr_range: widen the range"
        )
    x = process.prior(shape, seeds, start=float(times[0])) if initial is None else as_data(initial)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"initial has shape {tuple(x.shape)}, but samples of shape {tuple(shape)} were requested")
    reference = torch.empty((1, *shape[1:]), device=x.device, dtype=torch.float64)

    def point(t: Tensor, *, last: bool = False) -> Point:
        t = t.reshape(1).to(x.device)
        return Point(t, process.coefficients(t, reference), last)

    def estimate(state: Tensor, at: Point) -> Tensor:
        return process.to_basis(denoiser(process.from_basis(state, shape), at.t.expand(shape[0]), condition))

    model = Model(estimate, point, process, len(times) - 1)
    state = SamplerState(process.to_basis(x), point(times[0]))
    for i, t in enumerate(times[1:]):
        then = point(t, last=i + 2 == len(times))
        noise = None
        if sampler.stochastic:
            noise = process.to_basis(process.noise(shape, [derive(seed, "step", i) for seed in seeds]).to(x))
        state = sampler.step(state, then, model, noise)
        if callback is not None:
            x0 = process.from_basis(state.estimates[-1][1], shape)
            callback(i + 1, model.steps, process.from_basis(state.x, shape), x0)
    return process.from_basis(state.x, shape)
