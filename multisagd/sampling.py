"""Sample data, starting from the process's prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

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

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `E[x0 | x_t]`, shaped like x_t `(batch, channels, *grid)`, at times t `(batch,)`."""


def time_steps(schedule: Schedule, steps: int, spacing: Spacing = "time", start: float = 1.0) -> Tensor:
    """Return `steps + 1` decreasing times from `start` to 0, float64 of shape `(steps + 1,)`.

    Steps are equal in the schedule's time (the default), in log-SNR, or in `(σ/α)^{1/7}` (arXiv 2206.00364, Eq. 5).

    Raises:
        ValueError: If `steps` is less than 1, the start is outside (0, 1], or the spacing is unknown.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, got {steps}")
    if not 0 < start <= 1:
        raise ValueError(f"sampling must start at a time in (0, 1], got {start}")
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
    if spacing == "time":
        return start * even
    first, last = schedule.log_snr(torch.tensor([start, 0.0], dtype=torch.float64, device="cpu"))
    if spacing == "log_snr":
        log_snr = torch.lerp(last, first, even)
    elif spacing == "karras":
        log_snr = -14 * torch.lerp((-last / 14).exp(), (-first / 14).exp(), even).log()
    else:
        raise ValueError(f"unknown spacing {spacing!r}; choose time, log_snr or karras")
    times = schedule.time(log_snr)
    times[0], times[-1] = start, 0.0
    return times


@torch.no_grad()
def sample(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    shape: Sequence[int],
    steps: int,
    seeds: Sequence[int],
    condition: Tensor | None = None,
    *,
    spacing: Spacing = "time",
    times: Tensor | None = None,
    initial: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw samples of `shape` = (batch, channels, *grid), one seed per item; the same seed gives the same sample.

    Decreasing `times` override `steps` and `spacing`. `initial` replaces the prior as x at the first time: to start
    from a noisy example, pass `process.add_noise(x0, t, noise)` with times that start at t. The result, of shape
    `shape`, is x at the last time, including the schedule's noise there, which is negligible at t = 0 except for σ_min
    in Karras' schedule.

    Raises:
        ValueError: If there is not one seed per item, times are outside [0, 1] or do not decrease, or two times have
            the same (clamped) log-SNR.
    """
    process = denoiser.process
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
