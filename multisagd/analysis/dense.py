"""What a sampler makes of Gaussian data that are NOT stationary, on grids small enough for full matrices.

The transfer function knows the data by their power per frequency, as if every place were alike. Here the covariance is
a matrix K, the optimal denoiser is `μ + aK(a²K + b²Σ)⁻¹(x - aμ)`, and the responses of a run are matrices. Compare its
error with that of the transfer function to learn whether the stationary model is good enough to design with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.analysis.transfer import check_sampler
from multisagd.process import Process
from multisagd.samplers import Model, Point, Sampler, SamplerState

LIMIT = 1024
"""Most samples of a grid: its matrices have the square of that."""


@dataclass(frozen=True)
class DenseLaw:
    """A Gaussian law of one channel, `mean` (n,) and `covariance` (n, n), n samples in the order of `flatten`."""

    mean: Tensor
    covariance: Tensor

    def wasserstein(self, other: DenseLaw) -> float:
        """Return the 2-Wasserstein distance between two Gaussian laws (Bures' formula)."""
        half = _matrix_root(self.covariance)
        cross = _matrix_root(half @ other.covariance @ half)
        spread = torch.trace(self.covariance) + torch.trace(other.covariance) - 2 * torch.trace(cross)
        shift = (self.mean - other.mean).square().sum()
        return math.sqrt(max(0.0, float(spread + shift)))


def dense_transfer(sampler: Sampler, process: Process, times: Tensor, data: DenseLaw) -> DenseLaw:
    """Return the law of what `sample(..., times=times)` generates from the optimal denoiser of these Gaussian data.

    The grid is that of the process, one channel.

    Raises:
        ValueError: for a grid of more than 1,024 samples, data of another size, coefficients that depend on frequency,
            or `GaussianIntegrator`.
    """
    check_sampler(sampler)
    n, shape = process.grid.numel, process.grid.shape
    if n > LIMIT:
        raise ValueError(f"full matrices are for grids of up to {LIMIT} samples, this one has {n}")
    if data.covariance.shape != (n, n) or data.mean.shape != (n,):
        raise ValueError(f"a grid of {n} samples needs a mean ({n},) and a covariance ({n}, {n})")
    if process.modulation is not None:
        raise ValueError("full matrices are for processes with scalar coefficients")
    steps, eye = len(times) - 1, torch.eye(n, dtype=torch.float64, device="cpu")
    color = process.covariance.color(eye.reshape(n, *shape)).reshape(n, n)  # symmetric: Σ^{1/2}
    noise = color @ color
    like = torch.empty((1, 1), dtype=torch.float64, device="cpu")

    def point(t: Tensor, *, last: bool = False) -> Point:
        return Point(t.reshape(1), process.coefficients(t.reshape(1), like), last)

    # A state holds one row for every unit of noise: of the start, then the mean, then of each step.
    rows = 1 + n * (1 + (steps if sampler.stochastic else 0))
    of_mean = torch.zeros(rows, 1, dtype=torch.float64, device="cpu")
    of_mean[n] = 1

    def estimate(x: Tensor, now: Point) -> Tensor:
        a, b = now.at.a, now.at.b
        gain = torch.linalg.lstsq(a**2 * data.covariance + b**2 * noise, a * data.covariance).solution
        mean = of_mean * data.mean
        return mean + (x - a * mean) @ gain

    first = point(times[0])
    x = torch.zeros(rows, n, dtype=torch.float64, device="cpu")
    x[:n] = first.at.b * color
    state = SamplerState(x, first)
    model = Model(estimate, point, process, steps)
    for i, t in enumerate(times[1:]):
        injected = None
        if sampler.stochastic:
            injected = torch.zeros_like(x)
            injected[n + 1 + i * n : n + 1 + (i + 1) * n] = color
        state = sampler.step(state, point(t, last=i + 1 == steps), model, injected)
    noises = torch.cat([state.x[:n], state.x[n + 1 :]])
    return DenseLaw(state.x[n], noises.T @ noises)


def _matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
