"""Compute log-likelihoods under a denoiser and its process with the probability-flow ODE (arXiv 2011.13456, §4.3).

In `y = x_t/α` the flow is simple in the log-SNR λ, for any schedule and any colour of the noise:

    dy/dλ = (E[x0 | x_t] - y)/2,        d log|∂y/∂y_0|/dλ = (tr J - n)/2,   J = ∂E[x0 | x_t]/∂y

because `dy/dr` is the noise `(y - x0)/r` for `r = σ/α = e^{-λ/2}` (arXiv 2010.02502, Eq. 14). It is integrated
from the data at t = 0 to t = 1, where the distribution is the prior `N(0, σ² Σ)`; only there Σ enters, by its
determinant and norm. The integrated variable is `z = y √sigmoid(λ)`, the x of the variance-preserving path: y grows
like r at high noise and would need most of the steps there, whereas z changes only where data and noise mix.

The trace is exact, or estimated by random probes (Hutchinson). `J = Cov[x0 | x_t] Σ⁻¹/r²` is not symmetric under
coloured noise, but for `Σ = R Rᵀ` it is similar to the symmetric `S = R⁻¹ J R`. Of all matrices similar to J, S has the
smallest symmetric part, which determines the variance of a probe. So a probe v becomes `R v` on one side of J and
`R⁻ᵀ v` on the other. If the statistics of the data are given, the Jacobian of the Wiener filter, whose trace is known,
is subtracted, and only the network's difference from it is estimated; this needs noise that is diagonal in frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.condition import AnyCondition
from multisagd.covariance import SpectralCovariance, to_half_spectrum
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.padding import PaddedCovariance
from multisagd.process import Process
from multisagd.pullback import estimate_and_pullback
from multisagd.sampling import AnyDenoiser
from multisagd.schedule import Schedule
from multisagd.seeds import checked_seeds, derive
from multisagd.spectrum import Flat
from multisagd.statistics import DataStatistics

Probes = list[tuple[Tensor, Tensor]]
LEVEL = 2 / 255
"""Distance between adjacent 8-bit levels in the scale of the tensors, [-1, 1]."""


def log_likelihood(
    denoiser: AnyDenoiser,
    x0: Tensor,
    *,
    steps: int = 50,
    seeds: Sequence[int] = (),
    probes: int | None = 1,
    condition: AnyCondition = None,
    statistics: DataStatistics | None = None,
    mean: Tensor | None = None,
) -> Tensor:
    """Return the log-likelihood of each item of x0 `(batch, channels, *grid)` in nats, float64 `(batch,)`.

    It is the log-density at x0 of the distribution that the flow generates from `process.prior`, centred on `mean`
    `(channels, *grid)` if given. Deterministic samplers generate this distribution in the limit of infinitely many
    steps. It is closest to the data's distribution if `mean` is the mean of the data, which matters if the noise at t =
    1 does not hide the mean. The density is that of x at t = 0, which includes the noise that the schedule leaves
    there: negligible, except for a narrow `log_snr_range` or Karras' σ_min.

    Steps are equal in log-SNR and of fourth order (Runge-Kutta). Each step calls the denoiser four times, with one
    gradient per call and probe.

    `probes` is the number of random vectors per item, drawn from its seed; they give the estimate a variance, but no
    bias. If it is None, the trace is exact: this needs no seeds, but one gradient per value of an example. `statistics`
    of the data reduce the variance (the more, the closer the denoiser is to a Wiener filter) and change nothing else.
    They are not used if the noise is not diagonal in frequency.

    The denoiser is called in the dtype of x0 (float32 for integers); the rest is float64. Densities refer to the scale
    of x0: for data multiplied by c, subtract `n log c`, where n is the number of values of an example.

    Raises:
        ValueError: If `steps` or `probes` is less than 1, there are probes but not one seed per item, the noise has no
            power at some frequencies (such data have no density) or is drawn on a padded grid, coefficients depend on
            frequency, or the statistics have a different number of channels.
    """
    x0 = as_data(x0)
    process = denoiser.process.bound(condition, x0.shape)
    _check(process, x0, steps, seeds, probes)
    grid, n = process.grid.resize(x0.shape[2:]), x0[0].numel()
    covariance = process.covariance
    vectors = list(_exact(x0) if probes is None else _random(process, x0, seeds, probes))
    known = None
    if statistics is not None and probes is not None and covariance.diagonal:
        known = _Wiener.of(process, statistics, vectors)

    def slope(log_snr: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of z and of the log-determinant of y with respect to λ."""
        (a, _), shrink = process.schedule.from_log_snr(log_snr), torch.sigmoid(log_snr).sqrt()
        y = z / shrink
        t = process.schedule.time(log_snr).expand(len(y)).to(y.device)
        estimate, pullback = estimate_and_pullback(denoiser, (a * y).to(x0.dtype), t, condition)
        traces = [(a * pullback(left).double() * right).flatten(1).sum(1) for left, right in vectors]
        trace = torch.stack(traces).sum(0) / (1 if probes is None else probes)
        if known is not None:
            trace = trace + known.correction(log_snr)
        return shrink * (estimate.double() - y) / 2 + torch.sigmoid(-log_snr) * z / 2, (trace - n) / 2

    ends = process.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu"))
    first, last = (tuple(factor.to(x0.device) for factor in process.schedule.from_log_snr(end)) for end in ends)
    shrink = torch.sigmoid(ends).sqrt()
    z, determinant = _follow(slope, x0.detach().double() / first[0] * shrink[0], ends, steps)
    # Convert from y to x: the density of x is needed at one end, and its prior is known at the other.
    determinant = determinant + n * (last[0].log() - first[0].log())
    x = last[0] / shrink[1] * z
    center = torch.zeros_like(x) if mean is None else last[0] * mean.to(x)
    norm = covariance.mahalanobis(x - center) / last[1] ** 2
    logdet = covariance.logdet(grid.shape, x0.shape[1]).to(x) + 2 * n * last[1].log()
    return determinant - (n * math.log(2 * math.pi) + logdet + norm) / 2


def bits_per_dimension(log_likelihood: Tensor, dimensions: int) -> Tensor:
    """Convert log-likelihoods in nats, `(batch,)`, to negative log-likelihoods in bits per dimension, `(batch,)`.

    For comparison with the literature, where the value is an upper bound on the code length of 8-bit data: add noise
    uniform within a level to the data first (`dequantised`), and, for 256 levels from -1 to 1, which are 2/255 apart,
    add `log2(127.5) = 6.994` bits to the result.

    Raises:
        ValueError: If `dimensions` is below 1.
    """
    if dimensions < 1:
        raise ValueError(f"an example must have at least one dimension, got {dimensions}")
    return -log_likelihood / (dimensions * math.log(2))


def dequantised(x0: Tensor, seeds: Sequence[int]) -> Tensor:
    """Add noise uniform within a level to 8-bit data `(batch, channels, *grid)` in [-1, 1], with one seed per item."""
    noise = [torch.rand(x0.shape[1:], generator=torch.Generator().manual_seed(derive(seed, "level"))) for seed in seeds]
    return x0 + LEVEL * (torch.stack(noise) - 0.5)


def _check(process: Process, x0: Tensor, steps: int, seeds: Sequence[int], probes: int | None) -> None:
    if steps < 1 or (probes is not None and probes < 1):
        raise ValueError(f"a likelihood needs at least one step and one probe, got {steps} and {probes}")
    if probes is not None:
        checked_seeds(seeds, len(x0))
    if isinstance(process.covariance, PaddedCovariance):
        raise ValueError("noise drawn on a padded grid has no determinant in closed form: remove the padding")
    if process.modulation is not None:
        raise ValueError("likelihoods need scalar coefficients: remove the modulation")
    if not bool(process.covariance.support(x0.shape[2:]).all()):
        raise ValueError(
            "the noise has no power at some frequencies, where generated data are zero, so there is no density. "
            "Use a spectrum that is positive everywhere"
        )


def _follow(
    slope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], z: Tensor, ends: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Integrate z and the log-determinant between two log-SNRs with the classical Runge-Kutta scheme."""
    determinant, h = torch.zeros(len(z), dtype=torch.float64, device=z.device), (ends[1] - ends[0]) / steps
    for step in range(steps):
        log_snr = ends[0] + step * h
        k1, d1 = slope(log_snr, z)
        k2, d2 = slope(log_snr + h / 2, z + h / 2 * k1)
        k3, d3 = slope(log_snr + h / 2, z + h / 2 * k2)
        k4, d4 = slope(log_snr + h, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        determinant = determinant + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return z, determinant


def _exact(x0: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of equal basis vectors: on the two sides of a matrix, a pair selects one entry of the diagonal."""
    for index in range(x0[0].numel()):
        basis = torch.zeros(x0[0].numel(), dtype=torch.float64, device=x0.device)
        basis[index] = 1.0
        vector = basis.reshape(1, *x0.shape[1:]).expand(x0.shape)
        yield vector, vector


def _random(process: Process, x0: Tensor, seeds: Sequence[int], probes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random signs v as `R⁻ᵀ v` for the left side of the Jacobian, and `R v` for its right side."""
    split = x0.dim() - process.grid.dimensions
    white = SpectralCovariance(Flat(), process.grid).to(x0.device)
    for probe in range(probes):
        probe_seeds = [derive(int(seed), "likelihood", probe) for seed in seeds]
        # The signs of white Gaussian noise are fair and independent, so the usual noise generator is used.
        signs = white.sample(probe_seeds, tuple(x0.shape[1:split]), x0.shape[split:]).sign().double()
        yield process.covariance.whiten_transposed(signs), process.covariance.color(signs)


@dataclass(frozen=True)
class _Wiener:
    """Correct the probes by their error on the trace of the Wiener filter's Jacobian, which is known."""

    schedule: Schedule
    grid: Grid
    data: Tensor
    noise: Tensor
    missed: Tensor

    @classmethod
    def of(cls, process: Process, statistics: DataStatistics, vectors: Probes) -> _Wiener:
        like = vectors[0][0]
        shape, dimensions = tuple(like.shape[2:]), process.grid.dimensions
        if like.shape[1] != len(statistics.mean):
            raise ValueError(f"statistics have {len(statistics.mean)} channels, but the data have {like.shape[1]}")
        # Filters commute, so the colouring cancels: only the power of the probe remains. Where noise is correlated
        # between channels it does not cancel, but its expectation is the same: the correction remains unbiased.
        halves = [[to_half_spectrum(side, dimensions) for side in pair] for pair in vectors]
        power = sum(((left.conj() * right).real for left, right in halves), torch.zeros((), device="cpu")) / len(
            vectors
        )
        grid = process.grid.resize(shape)
        data, noise = (each.to(like.device) for each in (statistics.power_on(shape), process.covariance.power(shape)))
        return cls(process.schedule, grid, data, noise, grid.numel - power)

    def correction(self, log_snr: Tensor) -> Tensor:
        """Return the trace of the filter's Jacobian, `a²C/(a²C + b²W)`, minus the probes' estimate, `(batch,)`."""
        a, b = self.schedule.from_log_snr(log_snr)
        gain = a**2 * self.data / (a**2 * self.data + b**2 * self.noise)
        return self.grid.mean(gain * self.missed).sum(1)
