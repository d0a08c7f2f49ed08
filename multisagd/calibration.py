"""Keep the power of samples right: correct it after every step to what the forward process has at that time.

At every frequency, x at a time has the power `a² C + b² W`, where C is the power of the data and W that of the noise.
The states of a sampler have another power, as its steps are finite and the network errs. The error of a step is small,
but every later step starts from it: a network that sees too little of a coarse structure adds too little of the fine
structure that belongs to it. This is called exposure bias, and remedies scale the predicted noise (arXiv 2308.15321) or
two bands of a wavelet transform (2507.10072) by numbers that are tuned. Here nothing is tuned, because the power is
known: `calibrate` measures the power of the sampler's own states, and returns a sampler that multiplies each ring of
frequency, after every step, by the factor that it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

import torch
from torch import Tensor

from multisagd.analysis.profiles import radial_profile, ring_indices
from multisagd.condition import AnyCondition, mapped
from multisagd.covariance import from_half_spectrum, to_half_spectrum
from multisagd.grid import Grid
from multisagd.process import Process
from multisagd.samplers import Model, Point, Sampler, SamplerState
from multisagd.sampling import AnyDenoiser, Callback, sample
from multisagd.statistics import DataStatistics


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Take the steps of another sampler, and multiply every ring of frequency by a factor after each.

    `gains` (steps, channels, rings), dimensionless, are those of the times at which they were measured, so a run has to
    have as many steps. The deviation from `mean` (channels, *grid), in the units of the data, is multiplied. Items do
    not depend on one another.

    Raises:
        ValueError: From `step`, if there are more steps, or x has another grid or other channels.
    """

    sampler: Sampler
    gains: Tensor
    mean: Tensor
    grid: Grid

    @property
    def stochastic(self) -> bool:
        """Whether steps need noise."""
        return self.sampler.stochastic

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step and correct it; see `Sampler.step` for shapes and units."""
        if model.steps != len(self.gains):
            raise ValueError(f"calibrated for {len(self.gains)} steps, got {model.steps}: calibrate for these steps")
        moved = self.sampler.step(state, then, model, noise)
        deviation = _deviation(moved.x, then, self.mean, model.process, self.grid)
        return _corrected(
            moved, deviation, self.gains[state.number][:, self._rings], self.mean, model.process, self.grid
        )

    @cached_property
    def _rings(self) -> Tensor:
        return ring_indices(self.grid)

    def __str__(self) -> str:
        """Return the sampler's own description."""
        return f"{self.sampler}, calibrated"


def calibrate(
    sampler: Sampler,
    denoiser: AnyDenoiser,
    statistics: DataStatistics,
    times: Tensor,
    seeds: Sequence[int],
    condition: AnyCondition = None,
    *,
    batch: int = 64,
    callback: Callback | None = None,
) -> Calibrated:
    """Return a sampler whose states have the power of the forward process, measured on one sample for each seed.

    The factors are those at the decreasing `times` (steps + 1,), on the grid of the data's `statistics`. A `condition`
    has one entry for each seed, and its values must be as frequent as in the data, because it is the power of all data
    that is compared. The relative error of a ring's power is about 1/√n, where n is the number of seeds multiplied by
    that of the ring's frequencies. `batch` states at a time are passed to the network;
    `callback` is as in `sample`.

    Frequencies without power in data and noise are not changed.

    Raises:
        ValueError: From `sample`; or if the statistics have another grid than the process, or the noise follows the
            condition of each item.
    """
    process, grid = denoiser.process, statistics.grid
    if process.covariance.item_wise:
        raise ValueError("calibration needs noise with the same power for all items, but it follows their conditions")
    if grid.shape != process.grid.shape:
        raise ValueError(f"the statistics have the grid {grid.shape}, but the process has {process.grid.shape}")
    measuring = _Measuring(sampler, statistics, [])
    shape = (len(seeds), statistics.mean.shape[0], *grid.shape)
    sample(
        _InParts(denoiser, batch), measuring, shape, len(times) - 1, seeds, condition, times=times, callback=callback
    )
    return Calibrated(sampler, torch.stack(measuring.gains), statistics.mean, grid)


@dataclass(frozen=True, eq=False)
class _Measuring:
    """Take the steps of another sampler, correct the power of the whole batch, and append the factors to `gains`."""

    sampler: Sampler
    statistics: DataStatistics
    gains: list[Tensor]

    @property
    def stochastic(self) -> bool:
        return self.sampler.stochastic

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        mean, grid = self.statistics.mean, self.statistics.grid
        moved = self.sampler.step(state, then, model, noise)
        deviation = _deviation(moved.x, then, mean, model.process, grid)
        power = deviation.abs().double().square().mean(0).cpu() / grid.numel
        a, b = (each[0].cpu().double() for each in (then.at.a, then.at.b))
        expected = a**2 * self.statistics.power.cpu() + b**2 * model.process.covariance.power(grid.shape).cpu()
        wanted, found = (radial_profile(each, grid).power for each in (expected, power))
        gain = torch.where((wanted > 0) & (found > 0), (wanted / found.clamp(min=1e-300)).sqrt(), 1.0)
        self.gains.append(gain)
        return _corrected(moved, deviation, gain[:, ring_indices(grid)], mean, model.process, grid)


@dataclass(frozen=True, eq=False)
class _InParts:
    """A denoiser that passes `batch` items at a time to another one."""

    denoiser: AnyDenoiser
    batch: int

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, condition: AnyCondition = None) -> Tensor:
        parts = [slice(start, start + self.batch) for start in range(0, len(x_t), self.batch)]
        return torch.cat([self.denoiser(x_t[p], t[p], mapped(condition, itemgetter(p))) for p in parts])


def _deviation(x: Tensor, at: Point, mean: Tensor, process: Process, grid: Grid) -> Tensor:
    """Return the amplitudes (batch, channels, *half_shape) of a state's deviation from the mean at that time."""
    if x.shape[1] != mean.shape[0] or (process.modulation is None and x.shape[2:] != grid.shape):
        raise ValueError(f"calibrated for {mean.shape[0]} channels on {grid.shape}, got x of shape {tuple(x.shape)}")
    a = at.at.a.to(x.real.dtype)
    if process.modulation is None:
        return to_half_spectrum(x - a * mean.to(x), grid.dimensions)
    return x - a * to_half_spectrum(mean.to(x.device, x.real.dtype), grid.dimensions)


def _corrected(
    state: SamplerState, deviation: Tensor, factor: Tensor, mean: Tensor, process: Process, grid: Grid
) -> SamplerState:
    """Return the state whose deviation from the mean has been multiplied by a factor (channels, *half_shape)."""
    deviation = deviation * factor.to(deviation.device, deviation.real.dtype)
    x, a = state.x, state.point.at.a.to(state.x.real.dtype)
    if process.modulation is None:
        return replace(state, x=a * mean.to(x) + from_half_spectrum(deviation, grid.shape).to(x))
    return replace(state, x=deviation + a * to_half_spectrum(mean.to(x.device, x.real.dtype), grid.dimensions))
