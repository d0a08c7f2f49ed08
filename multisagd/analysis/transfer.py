"""Compute the exact transfer function of any sampler, with any number of steps, for stationary Gaussian data.

The optimal denoiser of Gaussian data is affine at every frequency (the Wiener filter), and every sampler here is linear
in the state, the estimates and the injected noise. A sampling run is therefore determined by its responses: to the
noise it starts from, to a mean of one, and to each draw of injected noise. They are propagated by the sampler's own
`step`; for DDIM they give the product formula of arXiv 2502.00180 (Section 4).

    x(k) = noise_gain(k)·b_1 ε(k) + mean_gain(k)·μ(k) + Σ_i injected_i(k)·z_i(k),   ε, z_i ~ N(0, W(k))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.channel_covariance import check_unmixed
from multisagd.grid import Grid
from multisagd.integrator import GaussianIntegrator
from multisagd.process import Process
from multisagd.samplers import Model, Point, Sampler, SamplerState
from multisagd.statistics import DataStatistics


@dataclass(frozen=True)
class Spectra:
    """Powers per frequency, float64, with shapes that broadcast against each other.

    `data` is the power C about the mean, `mean` the power |μ|² of the mean, `noise` the power W of the covariance, and
    `weight` the number of bins of the full spectrum that each entry represents.
    """

    data: Tensor
    mean: Tensor
    noise: Tensor
    weight: Tensor

    @classmethod
    def of(cls, statistics: DataStatistics, process: Process) -> Spectra:
        """Return the spectra of data and noise on the grid of the statistics, `(channels, *half_shape)`.

        Raises:
            ValueError: If the process and the statistics have different axes, or the noise is not diagonal in frequency
                or correlated between channels, and so has no transfer function.
        """
        process.covariance.require_diagonal("a transfer function")
        check_unmixed(process.covariance, "a transfer function")
        described = [[(axis.name, axis.unit) for axis in grid.axes] for grid in (process.grid, statistics.grid)]
        if described[0] != described[1]:
            raise ValueError(f"a process on axes {described[0]} is incompatible with statistics on axes {described[1]}")
        noise = process.covariance.power(statistics.grid.shape)
        noise = noise[None] if noise.dim() == statistics.grid.dimensions else noise
        return cls(statistics.power, statistics.mean_power, noise, statistics.grid.multiplicity[None])


@dataclass(frozen=True)
class Transfer:
    """The distribution of generated data, per frequency: `N(mean_gain · μ, power)`, shaped like `spectra.data`.

    `noise_gain` acts on x at the first time, whose noise has power `prior`; `injected` is the power in the result of
    all injected noise.
    """

    spectra: Spectra
    noise_gain: Tensor
    mean_gain: Tensor
    prior: Tensor
    injected: Tensor

    @property
    def power(self) -> Tensor:
        """Return the generated power about the mean, `(channels, *half_shape)`; exact sampling gives `spectra.data`."""
        return self.noise_gain**2 * self.prior + self.injected

    @property
    def bias(self) -> Tensor:
        """Return the squared error `(mean_gain - 1)² |μ|²` of the generated mean, a power `(channels, *half_shape)`."""
        return (self.mean_gain - 1) ** 2 * self.spectra.mean

    def wasserstein(self) -> Tensor:
        """Return the squared 2-Wasserstein distance to the data per frequency, a power `(channels, *half_shape)`.

        It is the sum of the squared differences of the standard deviations and of the means.
        """
        return (root(self.spectra.data) - root(self.power)) ** 2 + self.bias

    def kl(self) -> Tensor:
        """Return the Kullback-Leibler divergence from the data per frequency, in nats, `(channels, *half_shape)`.

        It is infinite where only one of the two distributions has power, or where both are constant and differ. It is
        zero where both are the same constant.
        """
        some = self.spectra.data > 0
        data = torch.where(some, self.spectra.data, 1.0)
        ratio = torch.where(some, self.power / data, 1.0)
        constant = torch.where(self.power + self.bias > 0, torch.inf, 0.0)
        return torch.where(some, 0.5 * (ratio - 1 - ratio.log() + self.bias / data), constant)

    def absolute_error(self) -> Tensor:
        """Return the absolute error of the power, plus `bias`, a power `(channels, *half_shape)`."""
        return (self.power - self.spectra.data).abs() + self.bias

    def total(self, values: Tensor) -> Tensor:
        """Sum values `(channels, *half_shape)` over the full spectrum and all channels, to a scalar in their unit."""
        return (values * self.spectra.weight).sum()


def root(power: Tensor) -> Tensor:
    """Return the square root of a power, in its shape, with derivative 0 (not infinity) where the power is 0."""
    positive = power > 0
    return torch.where(positive, torch.where(positive, power, 1.0).sqrt(), 0.0)


def transfer_function(
    sampler: Sampler,
    process: Process,
    times: Tensor,
    statistics: DataStatistics,
    *,
    start_at_mean: bool = False,
) -> Transfer:
    """Return the distribution generated by `sample(..., times=times)` with the optimal denoiser of Gaussian data.

    `times` decrease, as in `sample`. Sampling starts at `b_1 ε` or, if `start_at_mean` is True, at `a_1 μ + b_1 ε`, as
    in training.

    Raises:
        ValueError: If the process is incompatible with the statistics (see `Spectra.of`), the times do not decrease, or
            the sampler is a `GaussianIntegrator`, whose error is zero.
    """
    spectra = Spectra.of(statistics, process)
    like = torch.empty((1, 1, *statistics.grid.shape), dtype=torch.float64, device="cpu")
    return follow(sampler, process, times, spectra, like, start_at_mean=start_at_mean)


def follow(
    sampler: Sampler, process: Process, times: Tensor, spectra: Spectra, like: Tensor, *, start_at_mean: bool = False
) -> Transfer:
    """Propagate mean and power through the sampling steps at decreasing times `(steps + 1,)` in [0, 1].

    `like` `(1, 1, *grid)` is a tensor on the grid for which the process computes its coefficients. The result is
    differentiable with respect to `times` and `spectra.noise`.

    Raises:
        ValueError: If the times do not decrease, or the sampler is a `GaussianIntegrator`.
    """
    check_sampler(sampler)
    if len(times) < 2 or not bool((times.detach().diff() < 0).all()):
        raise ValueError("a transfer function requires at least two times, in decreasing order")
    steps = len(times) - 1

    def point(t: Tensor, *, last: bool = False) -> Point:
        return Point(t.reshape(1), process.coefficients(t.reshape(1), like), last)

    # Responses lie along the first dimension: to x at the first time, to the mean, and to the noise of every step.
    shape = torch.broadcast_shapes(spectra.data.shape, spectra.noise.shape)
    responses = torch.eye(2 + (steps if sampler.stochastic else 0), dtype=torch.float64, device="cpu")
    responses = responses.reshape(len(responses), len(responses), *(1,) * len(shape))
    of_mean = responses[1]

    def estimate(x: Tensor, now: Point) -> Tensor:
        # The Wiener filter; where neither data nor noise has power, the estimate is the mean.
        total = now.at.a**2 * spectra.data + now.at.b**2 * spectra.noise
        gain = torch.where(total > 0, now.at.a * spectra.data / torch.where(total > 0, total, 1.0), 0.0)
        return gain * x + (1 - gain * now.at.a) * of_mean

    model = Model(estimate, point, process, steps)
    first = point(times[0])
    x = responses[0].expand(len(responses), *shape)
    state = SamplerState(x + first.at.a * of_mean if start_at_mean else x, first)
    for i, t in enumerate(times[1:]):
        then = point(t, last=i + 1 == steps)
        state = sampler.step(state, then, model, responses[2 + i] if sampler.stochastic else None)
    noise_gain, mean_gain, *injected = state.x
    power = sum((each**2 * spectra.noise for each in injected), torch.zeros_like(noise_gain))
    return Transfer(spectra, noise_gain, mean_gain, first.at.b[0] ** 2 * spectra.noise, power)


def check_sampler(sampler: Sampler) -> None:
    """Check that a sampler has a transfer function.

    Raises:
        ValueError: If the sampler is a `GaussianIntegrator`.
    """
    if isinstance(sampler, GaussianIntegrator):
        raise ValueError(
            "the Gaussian integrator has no error on Gaussian data, with any number of steps: there is nothing to "
            "analyse or design; choose another sampler"
        )


@dataclass(frozen=True)
class BandError:
    """The error in one frequency band, `low <= r < high` (cycles per sample, `Grid.bands`).

    `power` is the generated power divided by the data's power, `bias` the squared error of the mean divided by the
    data's power, and `fraction` the band's fraction of the total squared 2-Wasserstein distance.
    """

    low: float
    high: float
    power: float
    bias: float
    fraction: float


def error_budget(transfer: Transfer, grid: Grid, bands: int = 8) -> list[BandError]:
    """Return the error in each frequency band; zero frequency is its own band."""
    wasserstein = transfer.wasserstein()
    whole = float(transfer.total(wasserstein))
    budget = []
    for low, high, weight in grid.bands(bands):
        data, power, bias, error = (
            float((each * weight).sum()) for each in (transfer.spectra.data, transfer.power, transfer.bias, wasserstein)
        )
        ratio, shift = (power / data, bias / data) if data else (float("nan"), float("nan"))
        budget.append(BandError(low, high, ratio, shift, error / whole if whole else 0.0))
    return budget
