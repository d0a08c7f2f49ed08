"""Coloured-noise sampling (arXiv 2605.30332): the noise of a stochastic sampler's steps, shaped without any training.

A step's white noise is multiplied in frequency by

    β(f, t) ∝ [(1 - γ(f, t)/d) e^{α(t) f}]^p,   mean over frequencies of β² = 1,

where γ, the progress, is the fraction of its final power that a frequency has at time t, so that noise is added where
the sample is not finished. The prior and the network are unchanged. With coloured step noise the states no longer have
the distribution on which the network was trained, which the method accepts.

The formula, and that γ is measured on deterministic trajectories of the model, are from the paper. The remaining
choices are ours: γ is the power of the estimate of x0 over that of the finished sample, in rings of frequency, about
zero; it is taken at the time a step starts from; f is the radius as a fraction of the largest; α is linear in t. The
published results also choose d, α, p and the size of the noise for each model by its FID, and interpolate α otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd import DPMSolver, Grid, Process, sample, time_steps
from multisagd.covariance import filter_grid, to_half_spectrum
from multisagd.samplers import Model, Point, Sampler, SamplerState, required
from multisagd.sampling import AnyDenoiser

LEAST = 0.01
"""Minimum of 1 - γ, so that the noise has some colour when all frequencies are finished."""


@dataclass(frozen=True, eq=False)
class Progress:
    """The fraction of its final power that each frequency ring has: `shares` (times, rings), `times` increasing.

    `ring` is the index of the ring of each frequency, int64 `(*half_shape)`.
    """

    times: Tensor
    shares: Tensor
    ring: Tensor

    def at(self, t: float) -> Tensor:
        """Return the progress at a time, interpolated linearly between measured times, `(*half_shape)` float64."""
        right = int(torch.searchsorted(self.times, t).clamp(1, len(self.times) - 1))
        low, high = (float(self.times[place]) for place in (right - 1, right))
        place = min(1.0, max(0.0, (t - low) / (high - low)))
        return torch.lerp(self.shares[right - 1], self.shares[right], place)[self.ring]


@torch.no_grad()
def measure_progress(
    denoiser: AnyDenoiser,
    channels: int,
    seeds: Sequence[int],
    condition: Tensor | None = None,
    steps: int = 50,
    rings: int = 8,
    batch: int = 64,
) -> Progress:
    """Measure progress on deterministic trajectories (DPM-Solver++) from the prior, one per seed and condition."""
    grid = denoiser.process.grid
    weights = torch.stack([weight for *_, weight in grid.bands(rings)])
    power = torch.zeros(steps + 1, len(weights), dtype=torch.float64)

    def add(place: int, x: Tensor) -> None:
        spectrum = to_half_spectrum(x.double().cpu(), grid.dimensions).abs().square().sum((0, 1))
        power[place] += (weights * spectrum).flatten(1).sum(1)

    def look(done: int, steps: int, x: Tensor, x0: Tensor) -> None:
        add(done - 1, x0)

    times = time_steps(denoiser.process.schedule, steps)
    for start in range(0, len(seeds), batch):
        chosen = seeds[start : start + batch]
        part = None if condition is None else condition[start : start + batch]
        shape = (len(chosen), channels, *grid.shape)
        add(steps, sample(denoiser, DPMSolver(), shape, steps, chosen, part, times=times, callback=look))
    shares = (power / power[-1]).clamp(0, 1)
    return Progress(times.flip(0), shares.flip(0), weights.argmax(0))


@dataclass(frozen=True, eq=False)
class ColouredSteps:
    """A stochastic sampler whose step noise has amplitude β(f, t); see the docstring of this module.

    `strength` is p, and at 0 the sampler is `base`, bit for bit; `divider` is d; `tilt` is α at t = 1 and at t = 0.

    Raises:
        ValueError: If the sampler has no noise, the strength is negative or the divider is below 1; in `step`, if
            coefficients depend on frequency.
    """

    base: Sampler
    progress: Progress
    strength: float = 1.0
    divider: float = 1.0
    tilt: tuple[float, float] = (0.0, 0.0)
    stochastic = True

    def __post_init__(self) -> None:
        if not self.base.stochastic:
            raise ValueError(f"{self.base} has no step noise that could be coloured")
        if self.strength < 0 or self.divider < 1:
            raise ValueError(f"need strength >= 0 and divider >= 1, got {self.strength} and {self.divider}")

    def step(self, state: SamplerState, then: Point, model: Model, noise: Tensor | None) -> SamplerState:
        """Take one step of the base sampler with coloured noise."""
        noise = required(noise, self)
        if self.strength > 0:
            if model.process.modulation is not None:
                raise ValueError("coloured steps need coefficients that are the same at every frequency")
            gain = self.amplitude(float(state.point.t), model.process).to(noise)
            noise = filter_grid(noise, gain, model.process.grid.dimensions)
        return self.base.step(state, then, model, noise)

    def amplitude(self, t: float, process: Process) -> Tensor:
        """Return β(f, t), `(*half_shape)` float64; the noise of the process times this has unit mean power."""
        grid = process.grid
        lacking = (1 - self.progress.at(t) / self.divider).clamp(min=LEAST)
        tilt = self.tilt[1] + t * (self.tilt[0] - self.tilt[1])
        raised = (lacking * torch.exp(tilt * radius(grid))) ** self.strength
        return raised / math.sqrt(float(grid.mean(raised.square() * process.covariance.power())))


def radius(grid: Grid) -> Tensor:
    """Return the radius of every frequency in cycles per sample, as a fraction of the largest, `(*half_shape)`."""
    found = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes})
    return found / found.max()
